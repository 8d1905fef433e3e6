"""What the API takes and gives, as its OpenAPI description says it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crovca.service.collection import Hit, Term

Id = Annotated[str, Field(max_length=4096)] | int
Number = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[list[Number], Field(max_length=16384)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Query(_Strict):
    """One term of a query: exactly one of id, text, image, logits and embedding."""

    id: Id | None = None
    text: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    image: Annotated[bytes, Field(max_length=32 << 20)] | None = Field(
        None, description="the bytes of an image file, in base64"
    )
    logits: Vector | None = None
    embedding: Vector | None = None
    weight: Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _one_kind(self) -> Query:
        given = [name for name in ("id", "text", "image", "logits", "embedding") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of id, text, image, logits and embedding; got {given or 'none'}")
        return self

    def term(self) -> Term:
        """As the collection takes it."""
        import base64

        for kind in ("id", "text", "logits", "embedding"):
            value = getattr(self, kind)
            if value is not None:
                return Term(kind, value, self.weight)
        assert self.image is not None
        return Term("image", base64.b64decode(self.image, validate=True), self.weight)


Terms = Annotated[list[Query], Field(min_length=1, max_length=16)]


class SearchRequest(_Strict):
    """Several queries, each of several terms, are answered in one request."""

    queries: Annotated[list[Terms], Field(min_length=1, max_length=256)]
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    where: Annotated[str, Field(max_length=10_000)] | None = Field(
        None, description="a SQL condition on id and metadata"
    )
    bits: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, description="search by the first so many bits")
    max_distance: Number | None = None
    rescore: Annotated[float, Field(ge=1, le=10_000, allow_inf_nan=False)] | None = Field(
        None,
        description="compare so many times k items, found by bits, by the cosine of their kept embeddings; "
        "all pages of the answer are of these",
    )
    cursor: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="of the answer before; one query only"
    )


class SearchAnswer(BaseModel):
    """The answer to one query."""

    hits: list[Hit]
    metric: str
    exact: bool = Field(description="proven that nothing nearer was left out")
    milliseconds: float
    cursor: str | None = Field(None, description="give it back for what comes next; None: there is nothing more")


class CollectionModel(BaseModel):
    """What is served."""

    name: str
    items: int
    bits: int
    lengths: list[int]
    bytes_per_item: int
    embedding_bytes: int | None = Field(description="of the embedding that is kept of each item; null: none is")
    id_type: str | None
    metadata: dict[str, str]
    queries: list[str]
    pictures: bool
    writable: bool
    generation: int


class FacetModel(BaseModel):
    """A value of a metadata column, and how many items have it."""

    value: Any
    items: int


class DuplicateModel(BaseModel):
    """An item of a group, and the bits in which it differs from the first of it."""

    id: str | int
    bits: int


class ConfirmedModel(BaseModel):
    """A duplicate that its pixels confirm: "copy", "gray" or "burst"."""

    id: str
    similarity: float
    kind: str


class ConfirmedGroupModel(BaseModel):
    """Duplicates, and which of them to keep."""

    keep: str
    items: list[ConfirmedModel]


class DuplicatesModel(BaseModel):
    """Groups of near duplicates."""

    confirmed: list[ConfirmedGroupModel] | None = Field(
        description="what 'crovca duplicates' found last, as decisions make it; null: it was not asked, or no archive"
    )
    radius: int
    groups: list[list[DuplicateModel]] = Field(description="by code: candidates, not proof")


class NewItems(_Strict):
    """Items to add, or to put in the place of those with the same ids: embeddings or logits or both, and metadata."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=10_000)]
    logits: list[Vector] | None = None
    embeddings: list[Vector] | None = None
    metadata: dict[str, list[Any]] | None = None


class Deleted(_Strict):
    """Items to delete."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=10_000)]


class Written(BaseModel):
    """What a write did."""

    items: int
    changed: int


class Problem(BaseModel):
    """What was wrong: what was got, what was expected, what to do."""

    error: str
    request: str
