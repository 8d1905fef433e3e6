"""A service asked as an index is: the same answers, and its refusals as ours."""

from dataclasses import replace

import numpy as np
import pytest

from crovca import HashIndex
from crovca.errors import ConfigError, InvalidInputError, ServerError
from crovca.integrations.service import Service
from tests.integrations.conftest import TEXTS, embedded


@pytest.mark.slow
def test_it_answers_as_the_index_does(texts_folder, service):
    asked = {"embeddings": np.stack([embedded(text) for text in TEXTS[:3]]), "k": 4, "where": "year > 1901"}
    with HashIndex.open(texts_folder) as index:
        for rescore in (None, 2):
            there = service.search(**asked, rescore=rescore).to_list()
            here = index.search(**asked, rescore=rescore).to_list()
            assert [[row["id"] for row in rows] for rows in there] == [[row["id"] for row in rows] for rows in here]
            assert there[0][0]["metadata"] == here[0][0]["metadata"]
    for wrong, message in (
        ({"where": "nothing = 1"}, "answers 400: .*there is no column"),
        ({"k": 0}, "answers 422: .*greater than or equal to 1"),
        ({"embeddings": np.ones((1, 3))}, "answers 400: .*3"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            service.search(**asked | wrong)
    with pytest.raises(InvalidInputError, match="answers 404"):
        replace(service, collection="a/b").search(**asked)


def test_addresses_that_do_not_answer():
    for url, kind in (("http://127.0.0.1:9", ServerError), ("file:///etc", ConfigError), ("http://[", ServerError)):
        with pytest.raises(kind):
            Service(url, "index", token="t", timeout=1).search(embeddings=np.ones((1, 3)))
