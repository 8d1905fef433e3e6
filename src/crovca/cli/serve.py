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
    thumbnails: Annotated[Path | None, Option(help="Folder for small pictures [default: in the user's cache].")] = None,
) -> None:
    """Serve indexes: a page to search with pictures and text, and an API under /v1 (described at /openapi.json).

    Listens on this machine only. Anywhere else it wants a token.
    """
    for package in ("mcp",) if mcp else ("fastapi", "uvicorn", "jinja2", "multipart", "prometheus_client"):
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

    from crovca.archive.folder import index_folder, root_of
    from crovca.service.collection import Collection

    kept = thumbnails or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "crovca" / "thumbnails"
    collections = []
    for one in index:
        name, equals, path = one.partition("=")
        folder = Path(path if equals else one)
        pictures, called = root or root_of(folder), name if equals else folder.resolve().name
        collections.append(
            Collection(index_folder(folder), name=called, root=pictures, thumbnails=kept, writable=writable)
        )
    if mcp:
        from crovca.service.agents import agent_server

        agent_server(collections).run()
        return
    import uvicorn

    from crovca.service.api import create_app
    from crovca.service.guard import Limits

    app = create_app(collections, Limits(token=token, per_second=rate))
    server = uvicorn.Server(
        uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=10)
    )
    _say(server, host)
    server.run()


def _say(server: object, host: str) -> None:
    """Print the address once the server listens: with port 0 it is not known before."""
    import uvicorn

    assert isinstance(server, uvicorn.Server)
    begin = server.startup

    async def startup(sockets: object = None) -> None:
        await begin(sockets)  # type: ignore[arg-type]
        if server.started:
            port = server.servers[0].sockets[0].getsockname()[1]
            shown = f"[{host}]" if ":" in host else host
            say(f"http://{shown}:{port}  (Ctrl-C stops it)")

    server.startup = startup  # type: ignore[method-assign]


def _local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
