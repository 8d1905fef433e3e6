"""An index, or a service over one, as a retriever of LangChain.

retriever = CrovcaRetriever(index=HashIndex.open("texts-index"), embeddings=embeddings, text="text")
retriever.invoke("a question", k=3)
"""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever

from crovca.integrations.passages import passages


class CrovcaRetriever(BaseRetriever):  # type: ignore[misc]
    """Documents of the items that are nearest to a question.

    Attributes:
        index: a ``HashIndex`` (or ``ShardedIndex``) that holds its model (``crovca index build --model``),
            or a ``service.Service`` of one.
        embeddings: what the items were embedded with.
        text: the metadata's column that becomes ``page_content``; the others and "distance" become ``metadata``.
        k: how many; ``invoke(question, k=...)`` goes before it.
        where, rescore: as of ``HashIndex.search``.

    Asking raises what ``HashIndex.search`` raises, and InvalidInputError where there is no such column.
    """

    index: Any
    embeddings: Embeddings
    text: str
    k: int = 4
    where: str | None = None
    rescore: float | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        embedding = self.embeddings.embed_query(query)
        wanted = self.k if k is None else k
        return [
            Document(id=one.id, page_content=one.text, metadata=one.metadata)
            for one in passages(self.index, embedding, self.text, wanted, where=self.where, rescore=self.rescore)
        ]
