"""An index as a retriever of LlamaIndex."""

from types import SimpleNamespace

import pytest

from crovca.errors import InvalidInputError
from tests.integrations.conftest import TEXTS, embedded
from tests.needs import needs

needs("llama_index")


@pytest.fixture(scope="module")
def library():
    """What a test needs of the library and of ours; importing it takes seconds, so not while tests are collected."""
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from crovca.integrations.llama_index import CrovcaRetriever

    class Words(BaseEmbedding):
        def _get_query_embedding(self, query):
            return embedded(query).tolist()

        async def _aget_query_embedding(self, query):
            return self._get_query_embedding(query)

        _get_text_embedding = _get_query_embedding

    return SimpleNamespace(Words=Words, CrovcaRetriever=CrovcaRetriever)


def test_what_is_asked_for_comes_first(library, texts_index):
    retriever = library.CrovcaRetriever(texts_index, library.Words(), "caption", similarity_top_k=3, rescore=4)
    found = retriever.retrieve(TEXTS[7])
    assert (found[0].node.node_id, found[0].text, found[0].metadata["year"]) == ("7", TEXTS[7], 1907)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    rows = texts_index.search(embeddings=embedded(TEXTS[7])[None], k=3, rescore=4).to_list()[0]
    assert [-one.score for one in found] == [row["distance"] for row in rows]


def test_a_query_engine_reads_what_was_found(library, texts_index):
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine

    retriever = library.CrovcaRetriever(texts_index, library.Words(), "caption", where="year = 1907")
    answer = RetrieverQueryEngine.from_args(retriever, llm=MockLLM()).query("a ship")
    assert [one.text for one in answer.source_nodes] == [TEXTS[7]]
    assert TEXTS[7] in str(answer)  # the mock says its prompt again


def test_a_missing_column(library, texts_index):
    with pytest.raises(InvalidInputError, match="no column 'words'"):
        library.CrovcaRetriever(texts_index, library.Words(), "words").retrieve("a ship")
