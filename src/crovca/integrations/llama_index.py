"""An index, or a service over one, as a retriever of LlamaIndex.

retriever = CrovcaRetriever(HashIndex.open("texts-index"), embed_model, text="text")
retriever.retrieve("a question")
"""

from __future__ import annotations

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from crovca.index.reader import Reader
from crovca.integrations.passages import passages
from crovca.integrations.service import Service


class CrovcaRetriever(BaseRetriever):  # type: ignore[misc]
    """Nodes of the items that are nearest to a question; a node's score is minus its distance.

    Args:
        index: a ``HashIndex`` (or ``ShardedIndex``) that holds its model (``crovca index build --model``),
            or a ``service.Service`` of one.
        embed_model: what the items were embedded with.
        text: the metadata's column that becomes the node's text; the others and "distance" become its metadata.
        similarity_top_k: how many.
        where, rescore: as of ``HashIndex.search``.

    Asking raises what ``HashIndex.search`` raises, and InvalidInputError where there is no such column.
    """

    def __init__(
        self,
        index: Reader | Service,
        embed_model: BaseEmbedding,
        text: str,
        similarity_top_k: int = 4,
        *,
        where: str | None = None,
        rescore: float | None = None,
    ) -> None:
        super().__init__()
        self._index, self._embed_model, self._text = index, embed_model, text
        self._k, self._where, self._rescore = similarity_top_k, where, rescore

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        embedding = query_bundle.embedding or self._embed_model.get_query_embedding(query_bundle.query_str)
        found = passages(self._index, embedding, self._text, self._k, where=self._where, rescore=self._rescore)
        return [
            NodeWithScore(node=TextNode(id_=one.id, text=one.text, metadata=one.metadata), score=-one.distance)
            for one in found
        ]
