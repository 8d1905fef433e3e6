"""A running ``crovca serve``, asked over HTTP as an index is: for retrievers that are not where the index is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy.typing as npt

from crovca.errors import ConfigError, InvalidInputError, ServerError, one_line

__all__ = ["Service", "ServiceNeighbors"]


@dataclass(frozen=True)
class ServiceNeighbors:
    """The nearest items of each query, best first.

    Attributes:
        rows: of each query: ``{"id": ..., "distance": ..., "metadata": {column: value}}``.
    """

    rows: list[list[dict[str, Any]]]

    def to_list(self) -> list[list[dict[str, Any]]]:
        """The rows, as of ``Neighbors``."""
        return self.rows


@dataclass(frozen=True)
class Service:
    """A collection of a running service.

    Attributes:
        url: where it listens, as "http://127.0.0.1:8000".
        collection: its name there.
        token: what CROVCA_TOKEN is there; None where it asks for none.
        timeout: seconds that an answer may take.
    """

    url: str
    collection: str
    token: str | None = None
    timeout: float = 30.0

    def search(
        self, *, embeddings: npt.NDArray[Any], k: int = 10, where: str | None = None, rescore: float | None = None
    ) -> ServiceNeighbors:
        """The k nearest items of each embedding: as ``HashIndex.search``.

        Args:
            embeddings: (q, d), at most 256.
            k: at most 1,000.
            where, rescore: as of ``HashIndex.search``.

        Raises:
            ConfigError: the address is none of HTTP.
            InvalidInputError: the service refuses what was asked for.
            ServerError: the service cannot be reached, or fails.
        """
        asked = {
            "queries": [[{"embedding": one}] for one in embeddings.tolist()],
            "k": k,
            "where": where,
            "rescore": rescore,
        }
        return ServiceNeighbors([answer["hits"] for answer in self._post("search", asked)])

    def _post(self, what: str, asked: dict[str, Any]) -> Any:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"the address of a service begins with http:// or https://, got {self.url!r}")
        address = f"{self.url.rstrip('/')}/v1/collections/{quote(self.collection, safe='')}/{what}"
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            with urlopen(Request(address, json.dumps(asked).encode(), headers), timeout=self.timeout) as answer:
                return json.load(answer)
        except HTTPError as error:
            kind = InvalidInputError if error.code in (400, 404, 422) else ServerError
            raise kind(f"the service at {self.url} answers {error.code}: {_said(error)}") from None
        except (OSError, HTTPException, ValueError) as error:
            raise ServerError(f"the service at {self.url} cannot be asked: {one_line(error)}") from error


def _said(error: HTTPError) -> str:
    """What the service says of its refusal; what is between us and it may say something else."""
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
