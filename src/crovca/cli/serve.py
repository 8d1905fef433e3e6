"""``crovca serve``: indexes over HTTP, with a page."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from crovca.cli.output import say
from crovca.errors import ConfigError, MissingDependencyError


def serve(
    index: Annotated[list[str], Argument(help="Index or archive, or NAME=FOLDER; several may be given.")],
    root: Annotated[Path | None, Option(help="Folder that ids are paths below: pictures are shown from it.")] = None,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, Option(envvar="CROVCA_TOKEN", help="What clients must show (better: set CROVCA_TOKEN).")
    ] = None,
    writable: Annotated[bool, Option("--writable", help="Let clients add and delete; needs a token.")] = False,
    mcp: Annotated[
        bool, Option("--mcp", help="No HTTP: tools for agents on standard input and output, read-only.")
    ] = False,
    rate: Annotated[float, Option(help="Requests a second of one address; 0: no limit.")] = 100.0,
    workers: Annotated[int, Option(help="Processes that answer; each loads the encoder.")] = 1,
    grace: Annotated[
        int, Option(help="Seconds that requests have to end in when the service stops; 0: none.", min=0)
    ] = 10,
    thumbnails: Annotated[Path | None, Option(help="Folder for small pictures [default: in the user's cache].")] = None,
) -> None:
    """Serve indexes: a page to search with pictures and text, and an API under /v1 (described at /openapi.json).

    Listens on this machine only. Anywhere else it wants a token.
    """
    for package in ("fastapi", "uvicorn", "jinja2", "multipart", "prometheus_client", "mcp"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "serve", "serving an index")
    if not _local(host) and not token:
        raise ConfigError(f"{host} can be reached from other machines: set CROVCA_TOKEN, or listen on 127.0.0.1")
    if mcp and writable:
        raise ConfigError("agents only read: leave --writable out")
    if writable and not token:
        raise ConfigError("whoever reaches a writable service can delete items: set CROVCA_TOKEN")
    if not 0 <= port < 65536:
        raise ConfigError(f"a port lies in 0 to 65535, got {port}")

    if workers < 1 or (writable and workers > 1):
        raise ConfigError("--workers is at least 1, and 1 where clients may write: a writer is one process")

    from crovca.archive.folder import index_folder, root_of
    from crovca.service.run import Settings, run

    kept = thumbnails or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "crovca" / "thumbnails"
    collections = []
    for one in index:
        name, equals, path = one.partition("=")
        folder = Path(path if equals else one)
        pictures = root or root_of(folder)
        collections.append((
            name if equals else folder.resolve().name,
            str(index_folder(folder)),
            None if pictures is None else str(pictures),
        ))  # fmt: skip
    settings = Settings(collections, str(kept), token, rate, writable, workers, grace)
    if mcp:
        from crovca.service.agents import agent_server

        agent_server(settings.open()).run()
        return
    run(settings, host, port, say=say)


def _local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
