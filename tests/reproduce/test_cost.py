"""Estimated minutes: the arithmetic, and what is counted once. And the listing that shows them."""

import json
from dataclasses import replace

import pytest

from crovca.cli.reproduce_list import print_cells, print_experiments
from crovca.datasets.registry import PROTOCOLS
from crovca.errors import ConfigError
from crovca.reproduce import cost
from crovca.reproduce.cost import estimate, multiply_adds
from crovca.reproduce.paper import EXPERIMENTS, all_cells, cells


def minutes(work):
    """Of so many multiply-adds."""
    return pytest.approx(2 * work / cost.THROUGHPUT / 60)


def test_multiply_adds_are_what_is_published():
    for shape, published in (
        (cost._Transformer(12, 384, 197, 16), 4.6),
        (cost._Transformer(12, 768, 197, 16), 17.6),
        (cost._Transformer(24, 1024, 197, 16), 61.6),
        (cost._Transformer(12, 768, 577, 16), 55.5),
        (cost._Transformer(24, 1024, 257, 14), 81.1),
    ):
        assert shape.multiply_adds / 1e9 == pytest.approx(published, rel=0.005)
    assert multiply_adds("dinov3-convnext-s") == 8.7e9
    with pytest.raises(ConfigError, match="cost of a text in 'dinov2' is not known"):
        multiply_adds("dinov2", "text")


def test_every_cell_can_be_estimated():
    for name in EXPERIMENTS:
        for cell in all_cells(name):
            assert (estimate([cell]).minutes > 0) == (cell.measurement is not None)


def test_the_float_embedding_is_one_pass_over_queries_and_database():
    found = estimate(cells("table1", rows="DINOv2 ViT-B", dataset="cifar10")[:1], 3)
    assert found.minutes == minutes(60_000 * multiply_adds("dinov2"))
    assert found.models == 0


def test_a_model_with_lora_trains_and_embeds_anew():
    one = cells("table1", encoder="dinov2", dataset="coco", bits=16)
    training = 10_000 * 2 * (1 + 4 * 3)  # two views; the first epoch is the HashCoder's alone
    assert estimate(one).minutes == minutes((training + 122_218) * multiply_adds("dinov2"))
    assert estimate(one, 3).minutes == pytest.approx(3 * estimate(one).minutes)
    assert estimate(one, 3).models == 3
    assert estimate(one, epochs=1).minutes == minutes((20_000 + 122_218) * multiply_adds("dinov2"))
    assert estimate(one, throughput=25e12).minutes == pytest.approx(2 * estimate(one).minutes)


def test_frozen_encoders_share_embeddings_and_train_by_forward_passes_alone():
    lengths = cells("table4", dataset="cifar10")
    assert len(lengths) == 6
    training, images = 1_281_167 * 2 * 5, 60_000
    assert estimate(lengths).minutes == minutes((5 * training + images) * 8.7e9)
    assert estimate(lengths).models == 5
    assert estimate(lengths, nested=True).minutes == minutes((training + images) * 8.7e9)


def test_a_model_that_several_cells_need_is_trained_once():
    transfer = cells("table3", encoder="dinov2", bits=16, rows="Unsupervised DINOv2")
    assert len(transfer) == 5
    together, alone = estimate(transfer), [estimate([cell]) for cell in transfer]
    training = minutes(1_281_167 * 2 * 13 * multiply_adds("dinov2")).expected
    assert together.minutes == pytest.approx(sum(one.minutes for one in alone) - 4 * training)
    assert together.models == 1
    both = [*all_cells("table1"), *all_cells("table11")]
    assert estimate(both) == estimate(all_cells("table1"))


def test_a_random_hashcoder_is_one_pass_and_no_training():
    random = cells("table5", rows="Random HashCoder ViT-B", dataset="cifar10", bits=256)
    assert estimate(random, 5).minutes == minutes((1_281_167 + 60_000) * multiply_adds("dinov3-b"))
    assert estimate(random, 5).models == 0


def test_texts_and_images_each_pass_their_tower():
    image, text = multiply_adds("dfn-l"), multiply_adds("dfn-l", "text")
    cosine, codes = cells("table7", rows="DFN (Large)")[0], cells("table7", rows="DFN (Large)", bits=256)[0]
    assert estimate([cosine]).minutes == minutes(50_000 * image + 1_000 * text)
    pairs = 3_318_333 * (image + text)
    assert estimate([codes], 2).minutes == minutes(pairs + 50_000 * image + 1_000 * text)
    curves = all_cells("figure6")  # both directions, trained and random: every item once
    assert estimate(curves).minutes == minutes(pairs + 5_000 * image + 25_000 * text)
    base, words = multiply_adds("dfn-b"), multiply_adds("dfn-b", "text")
    one = cells("table6", encoder="dfn-b", bits=16, dataset="flickr25k-ddbh")
    assert [cell.measurement.task for cell in one] == ["text-image", "image-text"]
    assert estimate(one).minutes == minutes((10_000 * 13 + 24_581) * (base + words))


def test_counts_are_those_of_the_protocols_given():
    tiny = {
        name: replace(protocol, counts={"database": 30, "query": 10}) for name, protocol in PROTOCOLS.items()
    }
    found = estimate(cells("table1", rows="DeiT ViT-B", dataset="cifar10")[:1], protocols=tiny)
    assert found.minutes == minutes(40 * multiply_adds("deit"))


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"throughput": 0}, {"epochs": 0}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ConfigError, match="must be 1 or more"):
        estimate([], **wrong)


def test_the_list_of_experiments_names_all_of_them(capsys):
    print_experiments(False)
    out = capsys.readouterr().out
    assert all(name in out for name in EXPERIMENTS)
    assert "estimated, not measured" in out
    print_experiments(True)
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed["experiments"]] == list(EXPERIMENTS)
    assert sum(row["cells"] for row in listed["experiments"]) == sum(
        len(all_cells(name)) for name in EXPERIMENTS
    )
    assert "assumed 50 TFLOP/s" in listed["minutes_are"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_of_every_experiment_is_listed(name, capsys):
    chosen = cells(name)
    print_cells(chosen, 2, False)
    out = capsys.readouterr().out
    for cell in chosen:
        if cell.value is not None:
            assert f" {cell.value:.1f} " in out
        for note in cell.note.split("; "):
            assert note in out
    assert "crovca datasets NAME" in out
    assert "estimated, not measured" in out
    print_cells(chosen, 2, True)
    listed = json.loads(capsys.readouterr().out)
    assert [(row["row"], row["column"], row["paper"]) for row in listed["cells"]] == [
        (cell.row, cell.column, cell.value) for cell in chosen
    ]
    assert listed["minutes"] == round(estimate(chosen, 2).minutes, 1)


def test_a_listed_cell_says_what_it_needs(capsys):
    chosen = cells("table5", rows="Supervised ViT-L", dataset="coco")
    print_cells(chosen, 1, True)
    original, code = json.loads(capsys.readouterr().out)["cells"]
    assert original["measurement"]["training"] is None
    assert code["measurement"]["training"] == {
        "dataset": "imagenet1k",
        "setting": "supervised",
        "fitting": "probing",
        "bits": 256,
        "preset": "imagenet1k",
    }
    assert code["minutes"] > original["minutes"] > 0
    print_cells(chosen, 1, False)
    out = capsys.readouterr().out
    assert "datasets needed: coco, imagenet1k " in out
    assert "encoders: dinov3-l\n" in out


def test_numbers_of_other_publications_need_nothing(capsys):
    print_cells(cells("table12", rows="CSQ"), 1, False)
    out = capsys.readouterr().out
    assert "CSQ, published" in out
    assert "datasets needed: none" in out
    print_cells(cells("table12", rows="CSQ"), 1, True)
    listed = json.loads(capsys.readouterr().out)
    assert listed["minutes"] == 0
    assert {row["published_by"] for row in listed["cells"]} == {"CSQ"}
    assert {row["measurement"] for row in listed["cells"]} == {None}
