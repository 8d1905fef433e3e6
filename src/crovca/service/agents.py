"""Tools for agents over the Model Context Protocol: search by text, by image, more like this, show. Read-only."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Image
from mcp.server.mcpserver.exceptions import ToolError

import crovca
from crovca.errors import CrovcaError, InvalidInputError, reason_of
from crovca.service.collection import Collection, Term, by_name

_MOST = 100


def agent_server(collections: Sequence[Collection]) -> MCPServer[Any]:
    """A server of tools over collections; ``run()`` speaks on standard input and output."""
    served = by_name(collections)
    server: MCPServer[Any] = MCPServer(
        "crovca",
        version=crovca.__version__,
        instructions="Search collections of images and texts by meaning. A smaller distance is nearer.",
    )

    def found(collection: str, terms: list[Term], k: int, where: str | None) -> list[dict[str, Any]]:
        with _said():
            if not 1 <= k <= _MOST:
                raise InvalidInputError(f"k must be 1 to {_MOST}, got {k}")
            return [vars(hit) for hit in _of(served, collection).search(terms, k, where=where).hits]

    @server.tool()
    def list_collections() -> list[dict[str, Any]]:
        """What there is to search: names, sizes, columns of metadata, kinds of query."""
        return [one.describe() for one in served.values()]

    @server.tool()
    def search_by_text(collection: str, text: str, k: int = 10, where: str | None = None) -> list[dict[str, Any]]:
        """The items nearest to a text. ``where`` is a SQL condition on the metadata, like "year < 1960"."""
        return found(collection, [Term("text", text)], k, where)

    @server.tool()
    def search_by_image(
        collection: str, image_base64: str, k: int = 10, where: str | None = None
    ) -> list[dict[str, Any]]:
        """The items nearest to an image, given as the bytes of its file in base64."""
        try:
            content = base64.b64decode(image_base64, validate=True)
        except binascii.Error as error:
            raise ToolError(f"the image is not base64: {error}") from error
        return found(collection, [Term("image", content)], k, where)

    @server.tool()
    def more_like_this(collection: str, id: str, k: int = 10, where: str | None = None) -> list[dict[str, Any]]:
        """The items nearest to one that is in the collection."""
        return found(collection, [Term("id", id)], k, where)

    @server.tool()
    def show(collection: str, id: str) -> Image:
        """A small picture of an item."""
        with _said():
            return Image(data=_of(served, collection).picture(id, side=512), format="webp")

    return server


@contextmanager
def _said() -> Iterator[None]:
    """What is wrong reaches the agent in words."""
    try:
        yield
    except CrovcaError as error:
        raise ToolError(reason_of(error)) from error


def _of(served: dict[str, Collection], name: str) -> Collection:
    if name not in served:
        raise InvalidInputError(f"there is no collection {name!r}; there are {sorted(served)}")
    return served[name]
