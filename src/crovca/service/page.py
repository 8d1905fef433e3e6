"""The page: a form, pictures, and what bits cost. Rendered here; htmx exchanges the parts that change.

Everything that is shown is named by the address, so an address can be kept: texts, liked and disliked items, a dropped
picture (as its embedding, which outlives a model), filters, length and cut-off.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import numpy as np
from fastapi import APIRouter, Depends, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel, field_validator

from crovca.archive.folder import columns_to_show
from crovca.data.embeddings import unit_rows
from crovca.errors import CrovcaError, FileFormatError, InvalidInputError, reason_of
from crovca.service.collection import FLOATS, GROUPS, HISTOGRAM, Collection, Term
from crovca.service.guard import COOKIE

HERE = Path(__file__).parent
_PAGE = 48  # pictures at a time
_BARS = 40
_MOST_FACETS = 30  # a column with more different values is no filter
_MOST_NAMES = 200  # but one of names, such as folders, is, where there are ...
_OF_A_NAME = 5  # ... so many items of each on average


class Asked(BaseModel):
    """What an address asks for."""

    q: list[str] = []
    like: list[str] = []
    unlike: list[str] = []
    z: str = ""
    f: list[str] = []
    bits: int | None = None
    floats: bool = False
    max: float | None = None
    offset: int = 0

    @field_validator("like", "unlike")
    @classmethod
    def _named(cls, ids: list[str]) -> list[str]:
        """Without the empty one that the form sends where nothing was written."""
        return [id for id in ids if id]

    def terms(self, collection: Collection) -> list[Term]:
        """The terms of the query; a text that begins with "-" is one not to be like."""
        found = [_text(text.strip()) for text in self.q if text.strip(" -")]
        found += [Term("id", id) for id in self.like] + [Term("id", id, -1.0) for id in self.unlike]
        if self.z:
            found.append(Term("embedding", _from_address(self.z)))
        if found and all(term.weight < 0 for term in found):
            raise InvalidInputError("say what to look for as well, not only what to leave out")
        return found

    def where(self) -> str | None:
        """The filters as a condition: any of a column's values, all columns."""
        columns: dict[str, list[str]] = {}
        for one in self.f:
            column, _, value = one.partition("=")
            columns.setdefault(column, []).append(value)
        parts = [
            f"CAST({_name(column)} AS VARCHAR) IN ({', '.join(map(_literal, values))})"
            for column, values in columns.items()
        ]
        return " AND ".join(parts) or None

    def how(self, page: int) -> dict[str, Any]:
        """How items are searched, so many a page: filters, length, or by the floats."""
        rescore = max(1.0, FLOATS / page) if self.floats else None
        return {"where": self.where(), "bits": self.bits, "rescore": rescore}

    def address(self, **changed: Any) -> str:
        """The query string of this, with changes."""
        values = {**self.model_dump(exclude={"offset"}), **changed}
        return urlencode([(key, one) for key, value in values.items() for one in _several(value)])


routes = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
_templates = Jinja2Templates(HERE / "templates")


def _served(request: Request, name: str) -> Collection:
    served: dict[str, Collection] = request.app.state.collections
    if name not in served:
        raise HTTPException(404, f"there is no collection {name!r}; there are {sorted(served)}")
    return served[name]


Served = Annotated[Collection, Depends(_served)]


def _writable(collection: Served) -> Collection:
    if not collection.writable:
        raise HTTPException(403, "served read-only; start the service with --writable and a token")
    return collection


Writable = Annotated[Collection, Depends(_writable)]
AskedFor = Annotated[Asked, Query()]


def _shown(request: Request, template: str, **values: Any) -> HTMLResponse:
    names = sorted(request.app.state.collections)
    return _templates.TemplateResponse(request, template, {"names": names, **values})


def problem(request: Request, status: int, message: str) -> HTMLResponse:
    """What went wrong, as a page."""
    return _templates.TemplateResponse(request, "problem.html", {"message": message}, status_code=status)


def _results(collection: Collection, asked: Asked) -> dict[str, Any]:
    """What the parts of the page show; an error is one of the things that can be shown."""
    about = collection.describe()
    values: dict[str, Any] = {"collection": collection, "asked": asked, "about": about}
    values["told"] = columns_to_show(about["metadata"])
    try:
        terms = asked.terms(collection)
        missing = next((id for id in (*asked.like, *asked.unlike) if not collection.holds(id)), None)
        if missing is not None:
            values |= {"missing": missing, "suggested": collection.ids_like(missing)}
        elif terms:
            answer = collection.search(terms, _PAGE, max_distance=asked.max, offset=asked.offset, **asked.how(_PAGE))
            following = asked.address(offset=asked.offset + _PAGE) if answer.more else None
            values |= {"answer": answer, "next": following}
    except CrovcaError as error:
        values["error"] = reason_of(error)
    return values


@routes.get("/")
def home(request: Request) -> Response:
    """The collections; the only one is opened at once."""
    served = request.app.state.collections
    if len(served) == 1:
        return RedirectResponse(f"/c/{quote(next(iter(served)))}")
    return _shown(request, "home.html", collections=[one.describe() for one in served.values()])


@routes.get("/c/{name}")
def show(request: Request, collection: Served, asked: AskedFor) -> HTMLResponse:
    """The whole page."""
    return _shown(request, "page.html", **_results(collection, asked))


@routes.get("/c/{name}/results")
def results(request: Request, collection: Served, asked: AskedFor) -> HTMLResponse:
    """The results alone, or more of them."""
    found = _shown(request, "results.html", **_results(collection, asked))
    if not asked.offset:
        found.headers["HX-Push-Url"] = f"/c/{quote(collection.name)}?{asked.address()}"
    return found


@routes.post("/c/{name}/image")
def image(collection: Served, image: Annotated[UploadFile, File()]) -> Response:
    """A dropped picture becomes an address that holds its embedding."""
    try:
        embedding = collection.embedding_of_image(image.file.read())
    except FileFormatError as error:
        raise FileFormatError(f"{error}. Choose another picture, such as a JPEG or a PNG.") from error
    return RedirectResponse(f"/c/{quote(collection.name)}?{Asked(z=_to_address(embedding)).address()}", 303)


@routes.get("/c/{name}/bits")
def bits(request: Request, collection: Served, asked: AskedFor) -> HTMLResponse:
    """The answer at each length, side by side."""
    values: dict[str, Any] = {}
    try:
        values["rows"] = collection.compare_lengths(asked.terms(collection), 8, where=asked.where())
    except CrovcaError as error:
        values["error"] = str(error)
    return _shown(request, "bits.html", collection=collection, asked=asked, **values)


@routes.get("/c/{name}/distances")
def distances(request: Request, collection: Served, asked: AskedFor) -> HTMLResponse:
    """A histogram of the nearest items' distances, to cut at."""
    try:
        found = collection.distances(asked.terms(collection), **asked.how(HISTOGRAM))
    except CrovcaError:
        found = []
    return _shown(request, "distances.html", collection=collection, asked=asked, **_bars(found))


@routes.get("/c/{name}/filters")
def filters(request: Request, collection: Served, asked: AskedFor) -> HTMLResponse:
    """Columns of the metadata with few values, and how many items have each."""
    columns = {}
    for column, kind in collection.describe()["metadata"].items():
        found = collection.facets(column, most=_MOST_NAMES if kind == "string" else _MOST_FACETS, few=True)
        often = sum(items for _, items in found) >= _OF_A_NAME * len(found)
        if len(found) > 1 and (often or len(found) <= _MOST_FACETS):
            columns[column] = found
    return _shown(request, "filters.html", collection=collection, asked=asked, columns=columns)


@routes.get("/c/{name}/map")
def map_(request: Request, collection: Served) -> HTMLResponse:
    """What there is, like beside like: shown where nothing was asked yet."""
    return _shown(request, "map.html", collection=collection, tiles=collection.map())


@routes.get("/c/{name}/duplicates")
def duplicates(request: Request, collection: Served, radius: Annotated[int, Query(ge=0, le=16)] = 0) -> HTMLResponse:
    """Confirmed groups of an archive, and candidates by code."""
    reviewed = _reviewed(collection)
    known = [{group.keep, *(one.id for one in group.items)} for group in reviewed["confirmed"] or ()]
    candidates = collection.duplicates(radius)
    groups = [group for group in candidates if not any({id for id, _ in group} <= one for one in known)]
    values = {"about": collection.describe(), "groups": groups, "radius": radius}
    return _shown(request, "duplicates.html", collection=collection, most=GROUPS, **reviewed, **values)


def _reviewed(collection: Collection) -> dict[str, Any]:
    """Groups to decide on, and what was decided."""
    found = collection.confirmed_duplicates()
    if found is None:
        return {"confirmed": None, "decisions": []}
    groups, decisions = found
    decided = [{one.id, *one.others} for one in decisions if one.same]
    open_ = [group for group in groups if not any({group.keep, *(i.id for i in group.items)} <= one for one in decided)]
    return {"confirmed": open_, "decisions": decisions}


@routes.post("/c/{name}/duplicates")
def decide(
    request: Request,
    collection: Writable,
    id: Annotated[str, Form()],
    others: Annotated[list[str], Form()],
    same: Annotated[bool, Form()],
) -> HTMLResponse:
    """Remembers whether these are duplicates of which the first is kept, or the first is none of the others."""
    collection.decide(id, others, same=same)
    said = f"{id} is kept; the others are its duplicates." if same else f"{id} is no duplicate."
    return _shown(request, "review.html", collection=collection, most=GROUPS, said=said, **_reviewed(collection))


@routes.post("/c/{name}/duplicates/{number}/undo")
def take_back(request: Request, collection: Writable, number: int) -> HTMLResponse:
    """Takes a decision back."""
    collection.take_back(number)
    said = "Taken back."
    return _shown(request, "review.html", collection=collection, most=GROUPS, said=said, **_reviewed(collection))


@routes.get("/login")
def login(request: Request) -> HTMLResponse:
    """Asks for the token."""
    return _shown(request, "login.html")


@routes.post("/login")
def log_in(request: Request, token: Annotated[str, Form(max_length=1000)]) -> Response:
    """Keeps the token as a cookie that scripts cannot read."""
    if not request.app.state.limits.admits(token.strip()):
        refused = _shown(request, "login.html", wrong=True)
        refused.status_code = 401
        return refused
    answer = RedirectResponse("/", 303)
    answer.set_cookie(COOKIE, token.strip(), httponly=True, samesite="strict", max_age=30 * 24 * 3600)
    return answer


def static() -> StaticFiles:
    """The style, the script and htmx."""
    return StaticFiles(directory=HERE / "static")


def _text(text: str) -> Term:
    return Term("text", text[1:].strip(), -1.0) if text.startswith("-") else Term("text", text)


def _several(value: Any) -> Sequence[Any]:
    if isinstance(value, list):
        return value
    return [] if value in (None, "", False) else [value]


def _to_address(embedding: Any) -> str:
    return base64.urlsafe_b64encode(unit_rows(embedding[None]).astype("<f2").tobytes()).decode().rstrip("=")


def _from_address(text: str) -> list[float]:
    try:
        values = np.frombuffer(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "<f2").astype(np.float64)
    except ValueError:
        values = np.empty(0)
    if not len(values) or not np.isfinite(values).all():
        raise InvalidInputError("this address was cut or changed: the picture in it cannot be read; drop it again")
    return list(values.tolist())


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _bars(distances: list[float]) -> dict[str, Any]:
    """Numbers of items in equal steps of distance."""
    if not distances:
        return {"bars": [], "low": 0.0, "high": 0.0}
    low, high = min(distances), max(distances)
    edges: Any = np.linspace(low, high, _BARS + 1)
    if all(one.is_integer() for one in distances):  # bits that differ: each bar stands for as many of them
        step = -(-(high - low + 1) // _BARS)
        edges = low - 0.5 + step * np.arange(1 - (low - high - 1) // step)
    counts = np.histogram(distances, bins=edges)[0]
    tallest = int(counts.max())
    bars = [
        {"height": 100 * int(count) / tallest, "items": int(count), "up_to": float(edge)}
        for count, edge in zip(counts, edges[1:], strict=True)
    ]
    return {"bars": bars, "low": low, "high": high}
