"""The HTTP API under /v1, described at /openapi.json; ``create_app`` puts the whole service together."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.exceptions import HTTPException as StarletteHTTPException

import crovca
from crovca.errors import CrovcaError, reason_of
from crovca.service import page
from crovca.service.collection import Answer, Collection, Hit, NotThereError, Term, by_name
from crovca.service.guard import Guard, Limits
from crovca.service.map import Tile
from crovca.service.schema import (
    CollectionModel,
    ConfirmedGroupModel,
    Deleted,
    DuplicateModel,
    DuplicatesModel,
    FacetModel,
    NewItems,
    Problem,
    SearchAnswer,
    SearchRequest,
    Written,
)

_WRONG: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "something cannot be used; the message says what to do"},
    404: {"model": Problem, "description": "no such collection or item"},
    409: {"model": Problem, "description": "the collection has changed since the cursor was given"},
    413: {"model": Problem, "description": "too large"},
    422: {"model": Problem, "description": "the request is not of the form that is described here"},
    429: {"model": Problem, "description": "too many requests"},
}
_MAY_WRITE = {**_WRONG, 403: {"model": Problem, "description": "served read-only"}}


health = APIRouter(tags=["health"])
v1 = APIRouter(prefix="/v1", responses=_WRONG)


def create_app(collections: Sequence[Collection], limits: Limits | None = None) -> FastAPI:
    """The service."""
    served = by_name(collections)
    registry, limits = CollectorRegistry(), limits or Limits()

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        for one in served.values():
            one.close()

    app = FastAPI(
        title="crovca",
        version=crovca.__version__,
        summary="Search by meaning in a few bytes an item.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
    )
    app.state.collections, app.state.registry, app.state.limits = served, registry, limits
    for router in (health, v1, page.routes):
        app.include_router(router)
    app.mount("/static", page.static())
    app.add_middleware(Guard, limits=limits, registry=registry)
    app.add_exception_handler(CrovcaError, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(StarletteHTTPException, _http)  # that of FastAPI is one, and unknown paths
    return app


@health.get("/healthz", response_class=PlainTextResponse)
def alive() -> str:
    """The process answers."""
    return "ok"


@health.get("/readyz", response_class=PlainTextResponse)
def ready(request: Request) -> str:
    """Every collection can be read."""
    for one in request.app.state.collections.values():
        one.describe()
    return "ok"


@health.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> str:
    """Counters in the form of Prometheus, of all processes of the service."""
    registry: CollectorRegistry = request.app.state.registry
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry).decode()


ItemId = Annotated[str, Query(max_length=4096)]
Condition = Annotated[str | None, Query(max_length=10_000)]


@v1.get("/collections", tags=["collections"])
def collections(request: Request) -> list[CollectionModel]:
    """What is served."""
    return [CollectionModel(**one.describe()) for one in request.app.state.collections.values()]


@v1.post("/collections/{name}/search", tags=["search"])
def search(collection: page.Served, request: SearchRequest) -> list[SearchAnswer]:
    """The nearest items of each query, exactly."""
    if request.cursor is not None and len(request.queries) > 1:
        raise HTTPException(400, "a cursor goes with one query")
    offset = _offset(request.cursor, collection)
    try:
        queries = [[term.term() for term in query] for query in request.queries]
    except binascii.Error as error:
        raise HTTPException(400, f"the image is not base64: {error}") from error
    wanted: dict[str, Any] = {
        "where": request.where,
        "bits": request.bits,
        "max_distance": request.max_distance,
        "rescore": request.rescore,
        "offset": offset,
    }
    return [_answer(collection.search(terms, request.k, **wanted), offset + request.k) for terms in queries]


@v1.post("/collections/{name}/search/image", tags=["search"])
def search_image(
    collection: page.Served,
    image: Annotated[UploadFile, File(description="an image file")],
    k: Annotated[int, Form(ge=1, le=1000)] = 10,
    where: Annotated[str | None, Form(max_length=10_000)] = None,
) -> SearchAnswer:
    """The items nearest to an image that is sent along."""
    return _answer(collection.search([Term("image", image.file.read())], k, where=where), k)


@v1.get("/collections/{name}/item", tags=["items"])
def item(collection: page.Served, id: ItemId) -> Hit:
    """An item's metadata."""
    return collection.item(id)


@v1.get("/collections/{name}/picture", tags=["items"], response_class=Response)
def picture(collection: page.Served, id: ItemId, side: Annotated[int, Query(ge=16, le=2048)] = 320) -> Response:
    """A picture of an item, as WebP."""
    content = collection.picture(id, side=side)
    return Response(content, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})


@v1.get("/collections/{name}/facets", tags=["items"])
def facets(
    collection: page.Served, column: Annotated[str, Query(max_length=1000)], where: Condition = None
) -> list[FacetModel]:
    """Values of a metadata column, and how many items have each."""
    return [FacetModel(value=value, items=items) for value, items in collection.facets(column, where=where)]


@v1.get("/collections/{name}/map", tags=["items"])
def map_(collection: page.Served) -> list[Tile]:
    """What there is: an item for each part of the collection, laid out so that like is beside like."""
    return collection.map()


@v1.get("/collections/{name}/duplicates", tags=["items"])
def duplicates(collection: page.Served, radius: Annotated[int, Query(ge=0, le=16)] = 0) -> DuplicatesModel:
    """Confirmed groups of an archive; and items whose codes differ in a few bits: candidates, not proof."""
    groups = [[DuplicateModel(id=id, bits=bits) for id, bits in group] for group in collection.duplicates(radius)]
    found = collection.confirmed_duplicates()
    confirmed = found and [ConfirmedGroupModel.model_validate(one, from_attributes=True) for one in found[0]]
    return DuplicatesModel(confirmed=confirmed, radius=radius, groups=groups)


@v1.put("/collections/{name}/items", tags=["items"], responses=_MAY_WRITE)
def add(collection: page.Writable, items: NewItems) -> Written:
    """Add items, or put them in the place of those with the same ids; durably."""
    replaced = collection.add(items.ids, logits=items.logits, embeddings=items.embeddings, metadata=items.metadata)
    return Written(items=len(collection.index), changed=replaced)


@v1.post("/collections/{name}/delete", tags=["items"], responses=_MAY_WRITE)
def delete(collection: page.Writable, items: Deleted) -> Written:
    """Delete items, durably; ids that are not there are passed over."""
    changed = collection.delete(items.ids)
    return Written(items=len(collection.index), changed=changed)


def _answer(answer: Answer, reached: int) -> SearchAnswer:
    cursor = base64.urlsafe_b64encode(f"{answer.generation}:{reached}".encode()).decode() if answer.more else None
    return SearchAnswer(
        hits=answer.hits,
        metric=answer.metric,
        exact=answer.exact,
        milliseconds=round(answer.milliseconds, 3),
        cursor=cursor,
    )


def _offset(cursor: str | None, collection: Collection) -> int:
    """Where an answer goes on."""
    if cursor is None:
        return 0
    try:
        generation, offset = (int(part) for part in base64.urlsafe_b64decode(cursor).decode("ascii").split(":"))
    except (ValueError, binascii.Error, UnicodeDecodeError):
        raise HTTPException(400, "this is not a cursor of this service; leave it out to begin anew") from None
    if generation != collection.index.generation:
        raise HTTPException(409, "the collection has changed since; leave the cursor out to begin anew")
    return offset


def _problem(request: Request, status: int, message: str) -> Response:
    if not request.url.path.startswith("/v1") and "text/html" in request.headers.get("accept", ""):
        return page.problem(request, status, message)  # a person reads it
    return JSONResponse({"error": message, "request": request.scope["state"]["request"]}, status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, CrovcaError)
    status = 404 if isinstance(error, NotThereError) else 400 if error.exit_status == 2 else 500
    return _problem(request, status, reason_of(error))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    answer = _problem(request, error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    said = first["type"] in ("missing", "json_invalid", "value_error")  # there is nothing, or the message has it
    got = "" if said else f", got {first['input']!r:.100}"
    return _problem(request, 422, f"{where}: {first['msg']}{got}")
