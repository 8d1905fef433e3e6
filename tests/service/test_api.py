"""The API: answers are the index's own, bad requests are refused in words, nothing but items can be seen."""

import asyncio
import base64
import io
import shutil

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client import CollectorRegistry
from sklearn.datasets import load_digits

from crovca import Codes, Hasher, HashIndex
from crovca.archive.ingest import build_index
from crovca.archive.refit import refit
from crovca.data.embeddings import unit_rows
from crovca.hashing.train import Silent
from crovca.service import page
from crovca.service.api import create_app
from crovca.service.collection import Collection, Term
from crovca.service.guard import Guard, Limits
from crovca.service.map import map_of

pytestmark = pytest.mark.starts

SEARCH = "/v1/collections/digits/search"


@pytest.fixture
def client(collection):
    with TestClient(create_app([collection]), raise_server_exceptions=False) as opened:
        yield opened


def test_what_is_served_is_described(client):
    (about,) = client.get("/v1/collections").json()
    assert about["name"] == "digits"
    assert about["items"] == 400
    assert about["lengths"] == [16, 32]
    assert about["queries"] == ["id", "logits"]
    assert client.get("/healthz").text == client.get("/readyz").text == "ok"
    assert "/v1/collections/{name}/search" in client.get("/openapi.json").json()["paths"]


def test_a_search_answers_as_the_index_does(client, made):
    path, _, logits, _, ids = made
    with HashIndex.open(path) as index:
        expected = index.search(logits[:3], 7, where="digit != '3'")
        near = index.neighbors_of([ids[5]], 7)
    queries = [[{"logits": row.tolist()}] for row in logits[:3]]
    answers = client.post(SEARCH, json={"queries": queries, "k": 7, "where": "digit != '3'"}).json()
    assert [[hit["id"] for hit in answer["hits"]] for answer in answers] == expected.ids.tolist()
    assert [[hit["distance"] for hit in answer["hits"]] for answer in answers] == expected.distances.tolist()
    (answer,) = client.post(SEARCH, json={"queries": [[{"id": ids[5]}]], "k": 7}).json()
    assert [hit["id"] for hit in answer["hits"]] == near.ids[0].tolist()
    assert answer["metric"] == "hamming"


def test_terms_are_added_with_their_weights(client, made):
    path, _, logits, *_ = made
    with HashIndex.open(path) as index:
        expected = index.search([(logits[0] - logits[1]) / 2], 5).ids[0].tolist()
    terms = [{"logits": logits[0].tolist()}, {"logits": logits[1].tolist(), "weight": -1}]
    (answer,) = client.post(SEARCH, json={"queries": [terms], "k": 5}).json()
    assert [hit["id"] for hit in answer["hits"]] == expected


def test_a_cursor_goes_on_where_the_answer_ended(client, made):
    query = {"queries": [[{"logits": made[2][9].tolist()}]], "k": 30}
    whole = client.post(SEARCH, json={**query, "k": 90}).json()[0]["hits"]
    found, cursor = [], None
    for _ in range(3):
        (answer,) = client.post(SEARCH, json={**query, **({"cursor": cursor} if cursor else {})}).json()
        found, cursor = found + answer["hits"], answer["cursor"]
    assert found == whole
    (last,) = client.post(SEARCH, json={**query, "k": 1000}).json()
    assert last["cursor"] is None
    assert len(last["hits"]) == 400


def test_nothing_beyond_the_cut_off_is_shown(client, made):
    query = {"queries": [[{"logits": made[2][9].tolist()}]], "k": 50}
    (whole,) = client.post(SEARCH, json=query).json()
    cut = whole["hits"][20]["distance"]
    (answer,) = client.post(SEARCH, json={**query, "max_distance": cut}).json()
    assert answer["hits"] == [hit for hit in whole["hits"] if hit["distance"] <= cut]


def test_rescoring_orders_by_the_kept_embeddings(client, made):
    logits, ids = made[2], made[4]
    pixels = load_digits(return_X_y=True)[0][:400]
    unit = unit_rows((pixels - pixels.mean(axis=0)).astype(np.float32))
    asked = {"queries": [[{"id": ids[7]}]], "k": 5}
    (whole,) = client.post(SEARCH, json={**asked, "rescore": 100}).json()
    cosine = unit @ unit[7]
    assert whole["metric"] == "cosine"
    assert whole["exact"]
    assert [hit["id"] for hit in whole["hits"]] == ids[np.argsort(-cosine)[1:6]].tolist()  # itself is left out
    np.testing.assert_allclose([hit["distance"] for hit in whole["hits"]], 1 - np.sort(cosine)[::-1][1:6], atol=0.01)
    (some,) = client.post(SEARCH, json={**asked, "rescore": 2}).json()
    assert not some["exact"]
    refused = client.post(SEARCH, json={"queries": [[{"logits": logits[0].tolist()}]], "rescore": 2})
    assert "logits cannot be rescored" in refused.json()["error"]
    refused = client.post(SEARCH, json={"queries": [[{"id": ids[0]}]], "k": 1000, "rescore": 1000})
    assert "reads up to 100,000" in refused.json()["error"]


def test_pages_of_what_was_rescored_are_of_the_same_items(client, made):
    """Each page had candidates of its own, and an item could be on two pages or on none."""
    query, found, cursor = {"queries": [[{"id": made[4][7]}]], "k": 20, "rescore": 2.5}, [], None
    for pages in range(3, 0, -1):
        (answer,) = client.post(SEARCH, json={**query, **({"cursor": cursor} if cursor else {})}).json()
        found, cursor = found + answer["hits"], answer["cursor"]
        assert (cursor is None) == (pages == 1)
    assert len({hit["id"] for hit in found}) == len(found) == 50
    distances = [hit["distance"] for hit in found]
    assert distances == sorted(distances)


def test_metadata_are_json(client, made):
    assert client.get("/v1/collections/digits/item", params={"id": made[4][0]}).json()["metadata"] == {
        "digit": "0",
        "odd": None,
    }
    facets = client.get("/v1/collections/digits/facets", params={"column": "digit"}).json()
    assert sum(one["items"] for one in facets) == 400
    three = client.get("/v1/collections/digits/facets", params={"column": "digit", "where": "digit = '3'"})
    assert [one["value"] for one in three.json()] == ["3"]


def test_values_are_counted_of_the_items_that_are_there(tmp_path):
    columns = {
        "name": ["a", "b", "b", None],
        "odd": [float("nan"), float("inf"), 1.0, 1.0],
        "tags": [["x"], [], ["x"], None],
    }
    with HashIndex.create(tmp_path / "index", 8) as index:
        index.add(np.arange(4), Codes.from_logits(np.ones((4, 8))), columns)
        index.add(np.arange(4, 200), Codes.from_logits(np.ones((196, 8))))  # a segment without these columns
    served = Collection(tmp_path / "index", writable=True)
    assert served.facets("name") == [("b", 2), ("a", 1)]
    assert served.facets("odd") == [(1.0, 2), (None, 2)]
    assert served.facets("tags") == [("['x']", 2), ("[]", 1)]
    assert served.facets("name", where="odd = 1.0") == [("b", 1)]
    assert served.facets("name", most=1) == [("b", 2)]
    assert served.facets("name", most=1, few=True) == []
    served.delete([1])
    assert served.facets("name") == [("a", 1), ("b", 1)]
    served.close()


def test_a_column_of_many_names_is_a_filter_where_each_is_of_several_items(tmp_path):
    names = {"folder": [f"folder {row // 5}" for row in range(500)], "file": [f"{row}.png" for row in range(500)]}
    with HashIndex.create(tmp_path / "x", 8) as index:
        index.add(np.arange(500), Codes.from_logits(np.ones((500, 8))), names)
    with TestClient(create_app([Collection(tmp_path / "x")])) as client:
        page = client.get("/c/x/filters").text
    assert "folder=folder 99" in page and "file=" not in page


def test_pictures_are_made_once_and_only_of_items(client, made, tmp_path):
    path = "/v1/collections/digits/picture"
    answer = client.get(path, params={"id": made[4][0], "side": 32})
    assert answer.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(answer.content)).size == (32, 32)
    (kept,) = (tmp_path / "thumbnails").rglob("*.webp")
    assert kept.read_bytes() == answer.content
    for id in ("../index/manifest.json", "/etc/passwd", "0/../../index/manifest.json", "no such", "\0"):
        refused = client.get(path, params={"id": id})
        assert refused.status_code == 404, id
        assert "there is no item" in refused.json()["error"] or "not" in refused.json()["error"]


def test_an_item_that_names_a_file_outside_is_not_shown(made, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
    with HashIndex.create(tmp_path / "index", bits=8) as index:
        index.add(["../secret.png", "link.png"], Codes.from_bits(np.zeros((2, 8), bool)))
    served = Collection(tmp_path / "index", name="x", root=tmp_path / "pictures")
    with TestClient(create_app([served])) as client:
        for id in ("../secret.png", "link.png"):
            assert "is not there" in client.get("/v1/collections/x/picture", params={"id": id}).json()["error"]


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"queries": []}, 422, "queries"),
        ({"queries": [[{}]]}, 422, "exactly one"),
        ({"queries": [[{"id": "a", "text": "b"}]]}, 422, "exactly one"),
        ({"queries": [[{"id": "none"}]]}, 400, "not in the index"),
        ({"queries": [[{"logits": [1.0]}]]}, 400, "32 numbers"),
        ({"queries": [[{"text": "a dog"}]]}, 400, "cannot be encoded here"),
        ({"queries": [[{"image": "%%%"}]]}, 400, "base64"),
        ({"queries": [[{"id": "0/0.png"}]], "where": "no_such = 1"}, 400, "no_such"),
        ({"queries": [[{"id": "0/0.png"}]], "where": "1 = 1; DROP TABLE x"}, 400, ""),
        ({"queries": [[{"id": "0/0.png"}]], "k": 0}, 422, "greater than or equal to 1, got 0"),
        ({"queries": [[{"id": "0/0.png"}]], "bits": 99}, 400, "99"),
        ({"queries": [[{"id": "0/0.png"}]], "cursor": "nonsense"}, 400, "cursor"),
        ({"queries": [[{"id": "0/0.png"}]], "cursor": base64.b64encode(b"77:3").decode()}, 409, "changed"),
        ({"queries": [[{"id": "0/0.png"}]], "surprise": 1}, 422, "surprise"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(client, request_, status, words):
    answer = client.post(SEARCH, json=request_)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert answer.json()["request"] == answer.headers["x-request-id"]


def test_read_only_by_default(client):
    answer = client.put("/v1/collections/digits/items", json={"ids": ["x"], "logits": [[0.0] * 32]})
    assert answer.status_code == 403
    assert client.post("/v1/collections/digits/delete", json={"ids": ["0/0.png"]}).status_code == 403
    assert client.get("/v1/collections/nobody/item", params={"id": "x"}).status_code == 404


def test_items_are_added_and_deleted_with_a_token(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "index")
    served = Collection(tmp_path / "index", name="digits", writable=True)
    limits = Limits(token="let me in")
    with TestClient(create_app([served], limits)) as client:
        body = {"ids": ["new"], "logits": [[3.0] * 32], "embeddings": [[1.0] * 64], "metadata": {"digit": ["7"]}}
        assert client.put("/v1/collections/digits/items", json=body).status_code == 401
        client.headers["Authorization"] = "Bearer let me in"
        assert client.put("/v1/collections/digits/items", json=body).json() == {"items": 401, "changed": 0}
        (answer,) = client.post(SEARCH, json={"queries": [[{"logits": [3.0] * 32}]], "k": 1}).json()
        assert answer["hits"][0]["id"] == "new"
        assert client.post("/v1/collections/digits/delete", json={"ids": ["new", "none"]}).json() == {
            "items": 400,
            "changed": 1,
        }


def test_without_the_token_nobody_sees_anything(collection):
    with TestClient(create_app([collection], Limits(token="right"))) as client:
        assert client.get("/healthz").status_code == 200
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "crovca_token=wrong"}):
            for path in ("/v1/collections", "/c/digits", "/metrics", "/openapi.json"):
                assert client.get(path, headers=wrong).status_code == 401, path
        person = {"Accept": "text/html,*/*"}
        for path in ("/", "/c/digits?like=a"):
            answer = client.get(path, headers=person, follow_redirects=False)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert client.get("/v1/collections", headers=person).status_code == 401
        wrong_one = client.post("/login", data={"token": "left"})
        assert (wrong_one.status_code, "That is not the token." in wrong_one.text) == (401, True)
        assert client.get("/c/digits").status_code == 401
        client.post("/login", data={"token": "right"})
        assert client.get("/c/digits").status_code == 200


def test_problems_are_pages_for_people_and_json_for_programs(collection):
    with TestClient(create_app([collection])) as client:
        for path, status in (("/c/none", 404), ("/c/digits?bits=x", 422), ("/nothing", 404)):
            assert client.get(path).json()["error"]
            answer = client.get(path, headers={"Accept": "text/html"})
            assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
            assert "That did not work" in answer.text
            assert client.get(path, headers={"Accept": "text/html"}).headers["x-request-id"]
        assert client.get("/v1/collections/none/map", headers={"Accept": "text/html"}).json()["error"]


def test_ids_that_hold_a_text_are_found(collection, made):
    found = collection.ids_like("/12", most=3)
    assert len(found) == 3
    assert found == sorted(id for id in found if "/12" in id and id in made[4])
    assert collection.ids_like("/12.PNG") == [next(id for id in made[4] if id.endswith("/12.png"))]
    assert collection.ids_like("it's %_") == []


def test_bars_stand_for_whole_bits():
    bars = page._bars([3.0, 3.0, 4.0, 6.0])
    assert [(bar["items"], bar["up_to"]) for bar in bars["bars"]] == [(2, 3.5), (1, 4.5), (0, 5.5), (1, 6.5)]
    assert (bars["low"], bars["high"]) == (3.0, 6.0)
    assert len(page._bars([0.0, 255.0])["bars"]) == 37  # of 7 bits each
    assert sum(bar["items"] for bar in page._bars([0.25, 0.5, 1.75])["bars"]) == 3


def test_large_bodies_and_many_requests_are_refused(collection):
    limits = Limits(body_bytes=1000, per_second=0.001, burst=5)
    with TestClient(create_app([collection], limits)) as client:
        assert client.post(SEARCH, content=b"x" * 1001).status_code == 413
        chunked = client.post(
            SEARCH, content=iter([b"x" * 600, b"x" * 600]), headers={"content-type": "application/json"}
        )
        assert chunked.status_code == 413
        assert [client.get("/healthz").status_code for _ in range(5)] == [200, 200, 200, 200, 429]


def test_what_the_end_of_the_service_cut_off_is_told_so():
    async def cut_off(scope, receive, send):
        raise asyncio.CancelledError

    async def send(message):
        sent.append(message)

    sent = []
    scope = {"type": "http", "method": "GET", "path": "/v1/collections", "headers": []}
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Guard(cut_off, Limits(), CollectorRegistry())(scope, None, send))
    assert sent[0]["status"] == 503 and b"stopped before this was answered" in sent[1]["body"]


def test_a_changed_index_is_seen(made, tmp_path, monkeypatch):
    shutil.copytree(made[0], tmp_path / "index")
    monkeypatch.setattr("crovca.service.collection._CHECK_SECONDS", 0.0)
    with TestClient(create_app([Collection(tmp_path / "index", name="digits")])) as client:
        with HashIndex.open(tmp_path / "index", writable=True) as index:
            index.delete(["0/0.png"])
        assert client.get("/v1/collections").json()[0]["items"] == 399


def test_what_happens_is_counted(client):
    client.get("/v1/collections")
    assert 'crovca_requests_total{method="GET",status="200"}' in client.get("/metrics").text


def test_the_map_shows_all_of_it_like_beside_like(client, made):
    tiles = client.get("/v1/collections/digits/map").json()
    places = {(tile["row"], tile["column"]): tile["id"] for tile in tiles}
    assert len(places) == len(tiles) == 96
    assert sum(tile["items"] for tile in tiles) == 400
    beside = [(id, places[row, column + 1]) for (row, column), id in places.items() if (row, column + 1) in places]
    bits = dict(zip(made[4].tolist(), made[2] > 0, strict=True))
    apart = [np.sum(bits[one] != bits[other]) for one, other in beside]
    all_apart = [np.sum(bits[one] != bits[other]) for one in places.values() for other in places.values()]
    assert np.mean(apart) < 0.92 * np.mean(all_apart)


def test_the_map_of_a_few_items(tmp_path):
    with HashIndex.create(tmp_path / "few", bits=16) as index:
        assert map_of(index.view()) == []
        codes = Codes.from_logits(np.random.default_rng(0).normal(size=(3, 16)))
        index.add(["a", "b", "c", "d"], Codes.from_logits(np.r_[codes.unpack(), codes.unpack()[:1]] - 0.5))
        index.delete(["b"])
        tiles = map_of(index.view())
    assert {tile.id for tile in tiles} in ({"a", "c"}, {"d", "c"})
    assert sum(tile.items for tile in tiles) == 3


def test_a_model_that_was_learned_anew_encodes_the_queries(tmp_path, monkeypatch):
    monkeypatch.setattr("crovca.service.collection._CHECK_SECONDS", 0.0)
    embeddings = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
    np.savez(tmp_path / "items.npz", embeddings=embeddings)
    Hasher(bits=16, epochs=1, device="cpu").fit(embeddings).save(tmp_path / "model")
    build_index(tmp_path / "items.npz", tmp_path / "index", model=tmp_path / "model", device="cpu", observer=Silent())
    served = Collection(tmp_path / "index")
    try:
        for bits in (16, 24):
            if bits == 24:
                refit(tmp_path / "index", bits=24, device="cpu", observer=Silent())
            with HashIndex.open(tmp_path / "index") as index:
                expected = index.search(embeddings=embeddings[:1], k=5)
            found = served.search([Term("embedding", embeddings[0])], 5)
            assert [hit.id for hit in found.hits] == expected.ids[0].tolist()
            assert [hit.distance for hit in found.hits] == expected.distances[0].tolist()
    finally:
        served.close()
