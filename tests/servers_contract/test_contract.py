"""What every server does, on every server."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crovca.codes import Codes
from crovca.errors import InvalidInputError
from tests.servers_contract.samples import ODD_IDS, queries_for, records, sample, truth

METRICS = ["bce", "asymmetric_hamming", "hamming"]


@pytest.mark.parametrize(("bits", "id_type"), [(13, "string"), (64, "int64")])
def test_search_equals_numpy(make, bits, id_type):
    ids, codes, metadata = sample(400, bits, id_type=id_type)
    cluster = make(bits, id_type)
    cluster.upsert(ids, codes, metadata)
    assert (cluster.bits, cluster.id_type, cluster.count()) == (bits, id_type, 400)
    logits = queries_for(codes, 4)
    for metric in METRICS:
        expected_ids, expected = truth(logits, 30, metric, ids, codes)
        for overfetch, exact in ((400, False), (30, True), (401, False)):
            found = cluster.search(logits, 30, metric=metric, overfetch=overfetch, exact=exact)
            assert found.ids.dtype.kind == ids.dtype.kind
            assert np.array_equal(found.distances, expected)
            if exact or overfetch > 400:
                assert found.proven.all()
                assert np.array_equal(found.ids, expected_ids)


def test_unproven_answers_say_so_and_proven_ones_are_exact(make):
    """Hypothesis over a real server: what is proven equals numpy, ties and all."""
    ids, codes, metadata = sample(1500, 13, seed=3)
    cluster = make(13)
    cluster.upsert(ids, codes, metadata)
    seen = set()

    @settings(max_examples=6)
    @given(k=st.integers(1, 20), more=st.integers(0, 500), seed=st.integers(0, 99))
    def check(k, more, seed):
        logits = queries_for(codes, 5, seed)
        expected_ids, expected = truth(logits, k, "bce", ids, codes)
        found = cluster.search(logits, k, overfetch=k + more)
        assert np.array_equal(found.ids[found.proven], expected_ids[found.proven])
        assert (found.distances >= expected).all()
        seen.update(found.proven.tolist())

    check()
    assert seen == {True, False}


def test_filters(make, kind):
    ids, codes, metadata = sample(300, 64)
    cluster = make(64)
    cluster.upsert(ids, codes, metadata)
    logits = queries_for(codes, 3)
    label, year = metadata["label"].to_pylist(), metadata["year"].to_numpy()
    conditions = {
        "year > 2005": year > 2005,
        "year > 2005 AND seen": (year > 2005) & metadata["seen"].to_numpy(),
        "label = 'it''s'": np.array([one == "it's" for one in label]),
        "label LIKE 'c%' -- the cats": np.array([one == "cat" for one in label]),
        "label IS NULL": np.array([one is None for one in label]),
        "id < 100": ids < 100,
    }
    if kind == "milvus":
        conditions = {
            "year > 2005": year > 2005,
            "year > 2005 and seen == true": (year > 2005) & metadata["seen"].to_numpy(),
            'label == "it\'s"': np.array([one == "it's" for one in label]),
            'label like "c%"': np.array([one == "cat" for one in label]),
            "not exists label": np.array([one is None for one in label]),
            "id < 100": ids < 100,
        }
    for where, mask in conditions.items():
        assert 0 < mask.sum() < 300
        expected_ids, expected = truth(logits, 10, "bce", ids[mask], codes[mask])
        found = cluster.search(logits, 10, where=where)
        assert found.proven.all()
        assert np.array_equal(found.ids, expected_ids)
        assert np.array_equal(found.distances, expected)
    found = cluster.search(logits, 10, where="year > 2005", overfetch=10, exact=True)
    assert np.array_equal(found.ids, truth(logits, 10, "bce", ids[year > 2005], codes[year > 2005])[0])


def test_fewer_than_k_and_none(make):
    ids, codes, _ = sample(5, 13)
    cluster = make(13)
    assert cluster.search(np.ones((2, 13)), 3).ids.shape == (2, 0)
    cluster.upsert(ids, codes)
    found = cluster.search(np.ones((2, 13)), 10)
    assert found.ids.shape == found.distances.shape == (2, 5)
    assert found.proven.all()
    assert found.candidates.tolist() == [5, 5]
    assert cluster.search(np.ones((2, 13)), 3, where="id > 1000000").ids.shape == (2, 0)


@pytest.mark.parametrize("id_type", ["int64", "string"])
def test_upsert_get_and_delete(make, id_type):
    ids, codes, metadata = sample(60, 13, id_type=id_type)
    cluster = make(13, id_type)
    cluster.upsert(ids, codes, metadata)
    stored = cluster.get(ids[::-1])
    assert stored.ids.tolist() == ids[::-1].tolist()
    assert stored.codes == codes[np.arange(60)[::-1]]
    assert records(stored) == records_of(ids, codes, metadata)

    other = Codes.from_bits(1 - codes.unpack()[:20])
    cluster.upsert(ids[:20], other, metadata.select(["year"])[:20])  # replaced whole: the rest becomes null
    cluster.delete(ids[40:])
    cluster.delete(ids[50:])  # not there: passed over
    assert cluster.count() == 40
    expected = records_of(ids[:20], other, metadata.select(["year"])[:20])
    expected |= records_of(ids[20:40], codes[20:40], metadata[20:40])
    assert records(cluster.get(ids[:40])) == expected
    live = Codes.concatenate([other, codes[20:40]])
    logits = queries_for(codes, 3)
    expected_ids, _ = truth(logits, 40, "bce", ids[:40], live)
    assert np.array_equal(cluster.search(logits, 60).ids, expected_ids)
    with pytest.raises(InvalidInputError, match="there is no item with the id"):
        cluster.get(ids[39:41])
    cluster.upsert(ids[:0], codes[:0])
    cluster.delete(ids[:0])
    assert cluster.count() == 40


def records_of(ids, codes, metadata):
    from crovca.index.results import StoredItems

    return records(StoredItems(ids, codes, metadata))


def test_odd_strings_are_ids(make):
    ids, codes, _ = sample(len(ODD_IDS), 13, id_type="string")
    assert ids.tolist() == ODD_IDS
    cluster = make(13, "string")
    cluster.upsert(ids, codes)
    for one in range(len(ids)):
        assert cluster.get(ids[one : one + 1]).codes == codes[one]
    cluster.delete(ids[::2])
    assert sorted(cluster.search(np.ones((1, 13)), 20).ids[0]) == sorted(ids[1::2])


def test_ids_at_the_ends_of_int64(make, kind):
    ids = np.array([-(2**63), -1, 0, 2**53 + 1, 2**63 - 2, 2**63 - 1])
    codes = sample(6, 13)[1]
    cluster = make(13)
    if kind == "milvus":
        with pytest.raises(InvalidInputError, match="Milvus cannot find the id 9223372036854775807 again"):
            cluster.upsert(ids, codes)
        ids, codes = ids[:5], codes[:5]
    cluster.upsert(ids, codes)
    assert cluster.get(ids).codes == codes
    assert cluster.get(ids[:1]).codes == codes[0]
    assert sorted(cluster.search(np.ones((1, 13)), 6).ids[0]) == ids.tolist()
    assert sorted(np.concatenate(list(cluster.stored_ids()))) == ids.tolist()
    cluster.delete(ids[:1])
    assert cluster.count() == len(ids) - 1


def test_misuse_is_refused_and_changes_nothing(make):
    ids, codes, metadata = sample(10, 13)
    cluster = make(13)
    cluster.upsert(ids, codes, metadata)
    for wrong, message in [
        ((ids, sample(10, 24)[1]), "holds codes of 13 bits, got 24"),
        ((ids[:9], codes), "got 9 ids and 10 codes"),
        ((ids, codes, metadata[:3]), "got 10 ids and 3 rows of metadata"),
        ((np.zeros(10, int), codes), "the id 0 is given twice"),
        ((ids.astype(float), codes), "must be whole numbers of 64 bits"),
        ((ids.astype(str), codes), "must be whole numbers of 64 bits"),
        ((ids, codes, pa.table({"code": ids})), "'code' has a name that servers need"),
        ((ids, codes, pa.table({"tags": [["a"]] * 10})), "'tags' is of type list"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            cluster.upsert(*wrong)
    with pytest.raises(InvalidInputError, match="cannot use where = 'year >'"):
        cluster.search(np.ones((1, 13)), where="year >")
    with pytest.raises(InvalidInputError, match="the metric 'cosine' is not known"):
        cluster.search(np.ones((1, 13)), metric="cosine")
    assert records(cluster.get(ids)) == records_of(ids, codes, metadata)


@pytest.mark.parametrize("bits", [1, 4096])
def test_every_length(make, bits):
    ids, codes, _ = sample(20, bits)
    cluster = make(bits)
    cluster.upsert(ids, codes)
    logits = queries_for(codes, 2)
    found = cluster.search(logits, 20)
    assert np.array_equal(found.ids, truth(logits, 20, "bce", ids, codes)[0])
    assert cluster.get(ids).codes == codes


def test_dates_survive(make, kind):
    if kind == "sharded":
        pytest.skip("a sharded table has the columns that it was made with")
    ids, codes, _ = sample(2, 13)
    moment = datetime.datetime(2001, 2, 3, 4, 5, 6, 789, tzinfo=datetime.UTC)
    plain = moment.replace(tzinfo=None)
    columns = {"at": pa.array([moment, None], pa.timestamp("us", "UTC")), "day": [moment.date()] * 2}
    cluster = make(13)
    for _ in range(2):  # what is there keeps its type, so that it can be written again
        cluster.upsert(ids, codes, pa.table({**columns, "plain": [plain, plain]}))
    found = cluster.get(ids).metadata.to_pylist()
    if kind in ("milvus", "sqlite", "qdrant"):
        assert found[0] == {"at": moment.isoformat(), "day": "2001-02-03", "plain": plain.isoformat()}
    else:
        assert found[0] == {"at": moment, "day": moment.date(), "plain": plain}
    assert found[1]["at"] is None
