"""What ``crovca reproduce --list`` shows."""

import json

import pytest

from crovca.cli.reproduce_list import print_cells, print_experiments
from crovca.reproduce.paper import EXPERIMENTS, all_cells, cells


def test_the_list_of_experiments_names_all_of_them(capsys):
    print_experiments(False)
    out = capsys.readouterr().out
    assert all(name in out for name in EXPERIMENTS)
    print_experiments(True)
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed["experiments"]] == list(EXPERIMENTS)
    assert sum(row["cells"] for row in listed["experiments"]) == sum(len(all_cells(name)) for name in EXPERIMENTS)
    assert all("minutes" not in row for row in listed["experiments"])


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
    print_cells(chosen, 2, True)
    listed = json.loads(capsys.readouterr().out)
    assert [(row["row"], row["column"], row["paper"]) for row in listed["cells"]] == [
        (cell.row, cell.column, cell.value) for cell in chosen
    ]


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
    assert listed["models"] == 0
    assert {row["published_by"] for row in listed["cells"]} == {"CSQ"}
    assert {row["measurement"] for row in listed["cells"]} == {None}


def test_models_are_counted_once(capsys):
    lengths = cells("table4", dataset="cifar10")  # a float embedding, and codes of five lengths
    for seeds, nested, expected in ((1, False, 5), (2, False, 10), (2, True, 2)):
        print_cells(lengths, seeds, True, nested=nested)
        assert json.loads(capsys.readouterr().out)["models"] == expected
