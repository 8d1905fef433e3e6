"""The field's benchmarks, read from the user's own copy and checked; one file for each.

Nothing is downloaded and no image is decoded: ``open_dataset`` lists the items of each split with their labels and
captions, after counting them, comparing checksums, and making sure that every image is there.
"""

from crovca.datasets.registry import PROTOCOLS, open_dataset, pin_checksums, rebuild_database, survey
from crovca.datasets.splits import export_splits
from crovca.datasets.structure import Captions, Dataset, Fetched, Protocol, Split

__all__ = [
    "PROTOCOLS",
    "Captions",
    "Dataset",
    "Fetched",
    "Protocol",
    "Split",
    "export_splits",
    "open_dataset",
    "pin_checksums",
    "rebuild_database",
    "survey",
]
