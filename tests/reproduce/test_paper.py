"""The paper's cells agree with themselves, with the paper's structure and with what crovca can measure."""

import csv
import re
from collections import Counter, defaultdict
from importlib import resources

import pytest

from crovca.baselines.registry import baseline
from crovca.datasets.registry import PROTOCOLS
from crovca.encoders.families import ALIASES
from crovca.errors import ConfigError, FileFormatError
from crovca.hashing.config import PRESETS
from crovca.reproduce import paper
from crovca.reproduce.paper import EXPERIMENTS, SETTINGS, Training, all_cells, cells, experiment_of, methods

EVERYTHING = [cell for name in EXPERIMENTS for cell in all_cells(name)]
DATASETS = ("cifar10", "coco", "flickr25k", "nuswide21", "imagenet100")

# Cells of other methods, cells of its own, and own cells without a number.
COUNTS = {
    "table1": (15, 7 * 20, 0),
    "table2": (12, 6, 0),
    "table3": (0, 4 * 20, 0),
    "table4": (0, 6 * 5, 0),
    "table5": (0, 7 * 10, 0),
    "table6": (4, 8, 0),
    "table7": (0, 24, 8),
    "table11": (9 + 9 + 12 + 9, 7 * 15, 0),
    "table12": (24, 6, 0),
    "figure3": (0, 2, 2),
    "figure4": (0, 2, 2),
    "figure5": (0, 6, 6),
    "figure6": (0, 2 * 2 * 7, 28),
    "figure7": (0, 4, 4),
    "figure8": (0, 2 * 2 * 4, 16),
    "figure9": (0, 1, 1),
}


def values(experiment, row):
    return {cell.column: cell.value for cell in cells(experiment, rows=row)}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_table_has_the_cells_it_was_printed_with(name):
    found = all_cells(name)
    published, own, empty = COUNTS[name]
    assert len([cell for cell in found if cell.published_by]) == published
    assert len([cell for cell in found if not cell.published_by]) == own
    assert len([cell for cell in found if cell.value is None]) == empty
    assert all(number == 1 for number in Counter((cell.row, cell.column) for cell in found).values())
    assert {cell.experiment for cell in found} == {name}


def test_every_file_in_the_package_belongs_to_an_experiment():
    files = {file.name for file in (resources.files("crovca.reproduce") / "tables").iterdir()}
    assert files == {f"{name}.csv" for name in EXPERIMENTS} | {"methods.csv"}


def test_numbers_are_percentages_with_one_decimal():
    for cell in EVERYTHING:
        if cell.value is not None:
            assert 0 < cell.value < 100
            assert round(cell.value, 1) == cell.value
    # No number is at or below chance on its dataset (datasets without labels aside).
    chance = {"cifar10": 10, "coco": 35, "flickr25k": 53.5, "nuswide21": 44, "imagenet100": 1}
    for cell in EVERYTHING:
        if cell.value is not None and cell.dataset in chance:
            assert cell.value > chance[cell.dataset], cell


def test_an_empty_cell_of_a_table_says_why():
    for cell in EVERYTHING:
        if cell.value is None and EXPERIMENTS[cell.experiment].kind == "table":
            assert "not legible" in cell.note or "for the two columns" in cell.note


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_measurement_names_what_exists(name):
    for cell in all_cells(name):
        check_names(cell)


def check_names(cell):
    assert cell.dataset in PROTOCOLS
    measurement = cell.measurement
    if measurement is None:
        assert cell.published_by or "Hashing-Baseline" in cell.row
        return
    protocol = PROTOCOLS[cell.dataset]
    assert measurement.dataset == cell.dataset
    assert measurement.encoder in ALIASES
    assert measurement.task.replace("-", " to ") in protocol.task
    if measurement.task == "image-image":
        assert (measurement.metric, measurement.k) == ("map", protocol.k)
    if measurement.metric == "recall":
        assert protocol.relevance == "own caption"
    training = measurement.training
    assert (training is None) == (measurement.score == "cosine") == (cell.bits is None)
    if training is not None:
        assert training.encoder == measurement.encoder
        assert training.bits == cell.bits
        assert training.preset in PRESETS
        assert "train" in PROTOCOLS[training.dataset].counts
        if training.setting == "supervised":
            assert PROTOCOLS[training.dataset].classes
        if training.fitting == "lora":
            assert PRESETS[training.preset].lora_rank


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_and_columns_say_what_is_measured(name):
    """What a label says is what the measurement holds: a shifted line of a CSV would differ."""
    for cell in all_cells(name):
        if cell.measurement:
            check_labels(cell)


def check_labels(cell):
    measurement, labels = cell.measurement, f"{cell.row} {cell.column}"
    titles = {
        "CIFAR10": "cifar10", "FLICKR25K": "flickr25k", "ImageNet100": "imagenet100", "IN100": "imagenet100",
        "IN1k": "imagenet1k", "Flickr25K": "flickr25k-ddbh",
    }  # fmt: skip
    for title, dataset in titles.items():
        if re.search(rf"\b{title}\b", labels):
            assert cell.dataset == dataset
    families = {
        "SimDINOv2": ("simdinov2",), "DINOv2": ("dinov2",), "DINOv3 ViT-S": ("dinov3-s",),
        "DFN ViT-B": ("dfn-b",), "(Base)": ("dfn-b",), "(Large)": ("dfn-l",), "SWAG": ("swag",), "DeiT": ("deit",),
        "CNX-S": ("dinov3-convnext-s",), "ViT-L": ("dinov3-l",),
    }  # fmt: skip
    for title, encoders in families.items():
        if re.search(rf"(?<!\w){re.escape(title)}(?!\w)", labels):
            assert measurement.encoder in encoders
    if length := re.search(r" (16|32|64)$|^(\d+)-bit", cell.column if cell.experiment != "table4" else cell.row):
        assert cell.bits == int(length[1] or length[2])
    if cell.column.endswith("Orig"):
        assert measurement.training is None
    for setting in ("Unsupervised", "Supervised", "Random"):
        if cell.row.startswith(setting) and measurement.training:
            assert measurement.training.setting == setting.lower()
    if "T2I" in labels or "I2T" in labels:
        assert measurement.task == ("text-image" if "T2I" in labels else "image-text")


def test_two_cells_of_one_measurement_agree_or_say_that_they_do_not():
    found = defaultdict(list)
    for cell in EVERYTHING:
        if cell.measurement and cell.value is not None:
            found[cell.measurement].append(cell)
    contradictions = 0
    for same in found.values():
        for cell in same:
            for other in same:
                if cell.value != other.value:
                    contradictions += 1
                    assert str(other.value) in cell.note
    # Table 1 and Table 5 on DINOv3 ViT-B (3 rows of it), and two rows of Table 5 on ViT-L; both ways.
    assert contradictions == 2 * (5 * 3 + 1)


def test_tables_repeat_each_other_where_the_paper_says_so():
    """Table 11's and 12's own rows are Table 1's and 2's, and 256 bits of Table 4 are Table 5's."""
    assert (
        not {cell.measurement for cell in all_cells("table11")}
        - {cell.measurement for cell in all_cells("table1")}
        - {None}
    )
    own = lambda name: {  # noqa: E731
        (cell.row, cell.column): cell.value
        for cell in all_cells(name)
        if cell.measurement and cell.measurement.training
    }
    assert own("table1") == own("table11")
    assert own("table2") == own("table12")
    columns = ("CIFAR10", "COCO", "FLICKR25K", "NUS-WIDE", "ImageNet100")
    table4, table5 = values("table4", "256-bit"), values("table5", "Unsupervised CNX-S")
    assert [table4[column] for column in columns] == [table5[f"{column} Code"] for column in columns]
    table4 = values("table4", "768-dim")
    assert [table4[column] for column in columns] == [table5[f"{column} Orig"] for column in columns]
    for column, value in values("table3", "Supervised DINOv2").items():
        if column.endswith("Orig"):
            assert value == values("table1", "DINOv2 ViT-B")[column]


def test_the_best_published_numbers_are_the_best_of_table_11():
    best = defaultdict(float)
    for cell in all_cells("table11"):
        if cell.published_by:
            best[cell.column] = max(best[cell.column], cell.value)
    assert values("table1", "SOTA") == dict(best) | {"COCO 16": 82.2}
    by_method = {(cell.column, cell.value): cell.published_by for cell in all_cells("table11") if cell.published_by}
    for cell in cells("table1", rows="SOTA"):
        if cell.column != "COCO 16":
            assert by_method[cell.column, cell.value] == cell.published_by
    assert "82.6" in cells("table1", rows="SOTA", dataset="coco", bits=16)[0].note
    assert "82.2" in cells("table11", rows="IPHASH", dataset="coco", bits=16)[0].note


def test_some_numbers_as_they_are_printed():
    assert values("table1", "DINOv2 ViT-B")["CIFAR10 16"] == 98.6
    assert values("table2", "Ours (DINOv2)")["IN1k 64"] == 65.9
    assert values("table3", "Supervised SimDINOv2")["NUS-WIDE 32"] == 76.2
    assert values("table5", "Random HashCoder ViT-B")["COCO Code"] == 74.5
    assert values("table6", "DDBH (SOTA)")["Flickr25K I2T"] == 84.5
    assert values("table7", "DFN (Large)")["symBCE 1"] == 81.6


def test_methods_of_others_say_what_can_be_rebuilt():
    named = {cell.published_by for cell in EVERYTHING if cell.published_by}
    assert named == set(methods())
    for method in methods().values():
        if method.rebuilt:
            assert baseline(method.rebuilt)
            assert "crovca compare" in method.why
        assert method.why
    for cell in EVERYTHING:
        if cell.published_by:
            assert cell.measurement is None
            assert methods()[cell.published_by].why in cell.note


def test_contradictions_are_noted_on_their_cells():
    note = {(cell.experiment, cell.row, cell.column): cell.note for cell in EVERYTHING}
    assert "2,100" in note["table1", "DeiT ViT-B", "NUS-WIDE 16"]
    assert "COCO2017" in note["table6", "DFN (Base)", "NUS-WIDE T2I"]
    assert "Table 10" in note["table11", "DINOv3 ViT-S", "CIFAR10 16"]
    assert "79.7" in note["table5", "Unsupervised ViT-L", "NUS-WIDE Orig"]


def test_cells_are_chosen_by_dataset_encoder_bits_and_row():
    chosen = cells("table1", dataset="cifar10", encoder="dinov2", bits=[16, 64])
    assert [(cell.column, cell.value) for cell in chosen] == [("CIFAR10 16", 98.6), ("CIFAR10 64", 97.9)]
    assert len(cells("table1", dataset=["cifar10", "coco"])) == 2 * (3 + 7 * 4)
    assert {cell.row for cell in cells("table12", rows=["csq", "FPPQ"])} == {"CSQ", "FPPQ"}
    assert {cell.dataset for cell in cells("table3", dataset="coco")} == {"coco"}  # what is searched


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"dataset": "imagenet1k"}, "no dataset 'imagenet1k'; it has cifar10, coco, flickr25k, nuswide21, imagenet100"),
        ({"encoder": ["dinov2", "clip"]}, "no encoder 'clip'; it has simdinov2, dinov2"),
        ({"bits": 256}, "no bits '256'; it has 16, 32, 64"),
        ({"rows": "ours"}, "no row 'ours'; it has SOTA, SimDINOv2 ViT-B"),
        ({"rows": "SOTA", "encoder": "swag"}, "no cell that is all of what was asked for; datasets: cifar10"),
    ],
)
def test_a_choice_that_leaves_nothing_lists_what_there_is(choice, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        cells("table1", **choice)


@pytest.mark.parametrize("name", SETTINGS)
def test_tables_of_settings_are_refused_with_where_they_stand(name):
    with pytest.raises(ConfigError, match="holds no results to reproduce; it is"):
        experiment_of(name)


def test_an_unknown_table_is_refused():
    with pytest.raises(ConfigError, match="no 'table10b' to reproduce; known are table1, table2"):
        cells("table10b")


def test_presets_are_the_columns_of_table_8():
    def preset(dataset, setting="unsupervised"):
        return Training("dinov2", dataset, setting, "lora", 16).preset

    assert [preset(name) for name in ("coco", "imagenet100", "imagenet1k")] == ["small", "small", "imagenet1k"]
    assert preset("imagenet1k", "random") == "imagenet1k"
    assert preset("flickr25k-ddbh", "pairs") == "text-small"
    assert preset("cc3m", "pairs") == preset("cc3m", "random") == "cc3m"


def test_keys_tell_measurements_apart():
    found = {cell.measurement for cell in EVERYTHING if cell.measurement}
    assert len({measurement.key for measurement in found}) == len(found)
    key = cells("table2", rows="Ours (DINOv2)", bits=16)[0].measurement.key
    assert key == "dinov2-imagenet100-supervised-lora-16/imagenet100/image-image/asymmetric_hamming/map@1000"
    assert cells("table6", encoder="dfn-b")[0].measurement.key.endswith(
        "dfn-b-float/flickr25k-ddbh/text-image/cosine/map@all"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"score": "euclid"}, "'euclid' is none of cosine"),
        ({"bits": "many"}, "invalid literal"),
        ({"experiment": "table9"}, "it belongs to 'table9'"),
        ({"published_by": "nobody"}, "'nobody'"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(change, message):
    text = (resources.files("crovca.reproduce") / "tables" / "table2.csv").read_text(encoding="utf-8")
    line = list(csv.DictReader(text.splitlines()))[-1]
    with pytest.raises(FileFormatError, match=rf"table2.csv, line 7: .*{re.escape(message)}"):
        paper._cell("table2", 7, line | change)
