"""Serving over HTTP, in one process or several that share a socket. Each reads its settings from the environment."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from crovca.errors import ConfigError
from crovca.service.api import create_app
from crovca.service.collection import Collection, by_name
from crovca.service.guard import Limits

_SETTINGS = "CROVCA_SERVED"  # an environment variable: a process that is started anew has nothing else
_SILENT = 60  # seconds after which a process that does not answer is started anew; starting takes some itself


@dataclass(frozen=True)
class Settings:
    """What every process of a service opens.

    Attributes:
        collections: name, folder of the index, and folder of its pictures or None.
        thumbnails: where small pictures are kept.
        token: what clients must show; None: nobody is asked.
        rate: requests a second of one address; 0: no limit.
        writable: whether clients may add and delete.
        workers: processes. A writer is one process; several only read.
        grace: seconds that requests which were begun have to end in when the service stops.
    """

    collections: list[tuple[str, str, str | None]]
    thumbnails: str
    token: str | None = None
    rate: float = 100.0
    writable: bool = False
    workers: int = 1
    grace: int = 10

    def open(self) -> list[Collection]:
        """The collections."""
        return [
            Collection(
                Path(index),
                name=name,
                root=None if root is None else Path(root),
                thumbnails=Path(self.thumbnails),
                writable=self.writable,
            )
            for name, index, root in self.collections
        ]


def app() -> FastAPI:
    """The service of one process, as the environment says it."""
    settings = Settings(**json.loads(os.environ[_SETTINGS]))
    limits = Limits(token=settings.token, per_second=settings.rate / settings.workers)
    return create_app(settings.open(), limits)


def run(settings: Settings, host: str, port: int, *, say: Callable[[str], None]) -> None:
    """Serve until a signal ends it: requests that were begun are answered, within the grace.

    Args:
        settings: what is served.
        host, port: where to listen; port 0 takes a free one.
        say: is given the address once clients can connect.

    Raises:
        ConfigError: nothing can listen there; two collections have the same name.
        CrovcaError: an index cannot be opened.
    """
    for one in by_name(settings.open()).values():  # in words here, where several processes would only die
        one.close()
    listening = _listening(host, port)
    os.environ[_SETTINGS] = json.dumps(asdict(settings))
    config = uvicorn.Config(
        "crovca.service.run:app", factory=True, workers=settings.workers, log_level="warning",
        timeout_graceful_shutdown=settings.grace, timeout_worker_healthcheck=_SILENT,
    )  # fmt: skip
    name = f"[{host}]" if ":" in host else host
    say(f"http://{name}:{listening.getsockname()[1]}  (Ctrl-C stops it)")
    if settings.workers == 1:
        with suppress(KeyboardInterrupt):  # raised again once the service has stopped as it should
            uvicorn.Server(config).run(sockets=[listening])
        return
    with tempfile.TemporaryDirectory(prefix="crovca-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # counters of all processes are added up
        Multiprocess(config, [listening]).run()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio answers at once (TCP_NODELAY) on sockets that name their protocol; on others a client waits for 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror}; give another --port") from error
    listening.set_inheritable(True)
    return listening
