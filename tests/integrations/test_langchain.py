"""An index as a retriever of LangChain, which has a suite of tests of its own for those."""

import pytest

from crovca.errors import InvalidInputError
from tests.integrations.conftest import TEXTS, embedded

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_tests")

from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import RetrieversIntegrationTests

from crovca.integrations.langchain import CrovcaRetriever


class Words(Embeddings):
    def embed_query(self, text):
        return embedded(text).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


@pytest.mark.anyio
class TestStandard(RetrieversIntegrationTests):
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    @pytest.fixture(autouse=True)
    def _index(self, texts_index):
        self.index = texts_index

    @property
    def retriever_constructor(self):
        return CrovcaRetriever

    @property
    def retriever_constructor_params(self):
        return {"index": self.index, "embeddings": Words(), "text": "caption"}

    @property
    def retriever_query_example(self):
        return "a ship"


@pytest.mark.parametrize("rescore", [None, 4])
def test_what_is_asked_for_comes_first(texts_index, rescore):
    retriever = CrovcaRetriever(index=texts_index, embeddings=Words(), text="caption", k=2, rescore=rescore)
    first, _ = retriever.invoke(TEXTS[7])
    assert (first.id, first.page_content, first.metadata["year"]) == ("7", TEXTS[7], 1907)
    (row,) = texts_index.search(embeddings=embedded(TEXTS[7])[None], k=1, rescore=rescore).to_list()[0]
    assert first.metadata["distance"] == row["distance"]


def test_conditions_and_a_missing_column(texts_index):
    retriever = CrovcaRetriever(index=texts_index, embeddings=Words(), text="caption", k=12, where="year < 1903")
    assert {found.metadata["year"] for found in retriever.invoke("a ship")} == {1900, 1901, 1902}
    retriever.text = "words"
    with pytest.raises(InvalidInputError, match=r"no column 'words'; it has \['caption', 'year'\]"):
        retriever.invoke("a ship")
