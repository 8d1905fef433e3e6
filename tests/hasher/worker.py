"""One of two processes that train together, with a launcher's variables: python worker.py OUTPUT ENCODER PHOTOS."""

import sys
import weakref
from pathlib import Path

import numpy as np
import torch.distributed as dist

from crovca.errors import ConfigError, CrovcaError
from crovca.hasher import Hasher
from crovca.hasher.processes import launched
from crovca.hashing.train import Silent
from crovca.sources.opening import open_images

SETTINGS = {
    "bits": 16,
    "nested": (8,),
    "epochs": 2,
    "batch_size": 24,  # all of them: one step an epoch
    "learning_rate": 1e-4,
    "lora_rank": 4,
    "lora_dropout": 0.0,  # its masks are drawn in each process
    "head_epochs": 0,
    "dtype": "float32",
    "device": "cpu",
}
CASES = {"views": {}, "running": {"prototypes": "running"}, "batch": {"prototypes": "batch"}}


class Recorder(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


def results(encoder, photos, process_group):
    """Loss and gradients of the last step of short runs, and the logits that came of them, by name."""
    found = {}
    source = open_images(photos)
    several = np.stack([source.labels == "flat", np.arange(len(source)) % 3 == 0], axis=1)
    for case, settings in CASES.items():
        labels = None if case == "views" else several if case == "batch" else source.labels
        hasher = Hasher.for_images(encoder, **SETTINGS, **settings).fit(source, labels, process_group=process_group)
        last = hasher.history_[-1]
        found |= {f"{case} {name}": np.array(last[name]) for name in ("loss", "alignment", "diversity")}
        for name, parameter in hasher.towers_.named_parameters():
            found[f"{case} gradient {name}"] = parameter.grad.numpy()
        found[f"{case} logits"] = hasher.logits(photos)
    return found


def refuse():
    raise ConfigError("the first process will not")


if __name__ == "__main__":
    output, encoder, photos = map(Path, sys.argv[1:])
    with launched("cpu") as (process_group, device):
        assert device == "cpu"
        group = weakref.ref(dist.group.WORLD)
        found = results(encoder, photos, process_group)
        np.savez(output / f"{process_group.rank}-of-{process_group.size}.npz", **found)
        try:
            process_group.first(refuse)
        except CrovcaError as error:
            (output / f"{process_group.rank}.txt").write_text(f"{type(error).__name__}: {error}")
    assert group() is None, "what lives on has threads, which can abort the process at its end"
