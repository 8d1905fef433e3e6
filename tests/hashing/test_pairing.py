import numpy as np
import pytest
import torch

from crovca.errors import InvalidInputError
from crovca.hashing.views import Copies, FeatureDropout, Mixed, Modalities, NeighborViews, StoredViews

ROWS = np.array([3, 0, 5])


def random():
    return np.random.default_rng(0)


def tagged(items, views, width=4):
    """Embeddings whose numbers tell item and view: 100 item + view."""
    tags = 100.0 * np.arange(items)[:, None] + np.arange(views)
    return np.repeat(tags[:, :, None], width, axis=2).astype(np.float16)


def test_stored_views_are_different_views_of_the_same_item():
    source = StoredViews(tagged(6, 3))
    seen = set()
    for seed in range(30):
        one, two = source.views(ROWS, np.random.default_rng(seed))
        assert one.dtype == torch.float32
        assert ((one[:, 0] // 100).int().tolist(), (two[:, 0] // 100).int().tolist()) == ([3, 0, 5], [3, 0, 5])
        pairs = list(zip((one[:, 0] % 100).tolist(), (two[:, 0] % 100).tolist(), strict=True))
        assert all(a != b for a, b in pairs)
        seen.update(pairs)
    assert len(seen) == 6  # every ordered pair of the three occurs


def test_more_than_two_views_can_be_drawn():
    views = StoredViews(tagged(6, 4), draw=3).views(ROWS, random())
    assert len(views) == 3
    assert all(len({float(view[item, 0]) for view in views}) == 3 for item in range(3))


def test_stored_views_refuse_single_embeddings():
    with pytest.raises(InvalidInputError, match=r"\(n, v, d\) with v at least 2, got \(6, 4\).*neighbors"):
        StoredViews(np.zeros((6, 4)))


def test_neighbors_pair_an_item_with_one_of_its_neighbors():
    near = np.array([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]])
    source = NeighborViews(tagged(6, 1)[:, 0], near, FeatureDropout(0.0, torch.zeros(())))
    item, other = source.views(ROWS, random())
    assert (item[:, 0] / 100).int().tolist() == ROWS.tolist()
    assert all(int(found) // 100 in near[row] for found, row in zip(other[:, 0], ROWS, strict=True))


def test_dropout_touches_the_neighbor_only():
    values = np.ones((10, 2000), np.float32)
    source = NeighborViews(values, np.roll(np.arange(10), 1)[:, None], FeatureDropout(0.3, torch.zeros(())))
    item, other = source.views(ROWS, random())
    assert (item == 1).all()
    assert float((other == 0).float().mean()) == pytest.approx(77 / 256, abs=0.02)
    assert other[other > 0].unique().tolist() == pytest.approx([256 / 179])
    assert float(other.mean()) == pytest.approx(1, abs=0.03)


def test_dropout_around_a_center_keeps_the_mean():
    center = torch.arange(3000.0)
    batch = center.expand(4, -1) + 1
    found = FeatureDropout(0.5, center)(batch, random()) - center
    assert found.unique().tolist() == [0.0, 2.0]
    assert float(found.mean()) == pytest.approx(1, abs=0.05)


def test_no_dropout_is_the_identity():
    batch = torch.randn(3, 4)
    assert FeatureDropout(0.0, torch.zeros(()))(batch, random()) is batch


def test_copies_are_the_item_with_different_dropout():
    source, chance = Copies(np.ones((6, 500), np.float32), FeatureDropout(0.5, torch.zeros(()))), random()
    (one,), (two,) = source.views(ROWS, chance), source.views(ROWS, chance)
    assert one.shape == two.shape == (3, 500)
    assert not torch.equal(one, two)


def test_modalities_give_paired_rows_and_one_caption_each():
    images, texts = tagged(6, 1)[:, 0], tagged(6, 3, width=7)
    source = Modalities([images, texts])
    image, text = source.views(ROWS, random())
    assert image.shape == (3, 4)
    assert text.shape == (3, 7)
    assert (text[:, 0] // 100).tolist() == ROWS.tolist()
    with pytest.raises(InvalidInputError, match=r"as many rows each, got \[6, 5\]"):
        Modalities([images, texts[:5]])


def test_mixed_takes_each_pair_from_one_source():
    values = tagged(50, 2)
    far = NeighborViews(values, (np.arange(50)[:, None] + 25) % 50, FeatureDropout(0.0, torch.zeros(())))
    rows = np.arange(50)
    one, two = Mixed([StoredViews(values), far]).views(rows, random())
    items = (one[:, 0] // 100).int().numpy(), (two[:, 0] // 100).int().numpy()
    assert (items[0] == rows).all()
    itself = items[1] == rows
    assert 10 < itself.sum() < 40
    assert (items[1][~itself] == (rows[~itself] + 25) % 50).all()


def test_the_same_stream_gives_the_same_views():
    source = NeighborViews(tagged(6, 2), np.array([[1], [0], [3], [2], [5], [4]]), FeatureDropout(0.3, torch.zeros(())))
    first, second = source.views(ROWS, random()), source.views(ROWS, random())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
