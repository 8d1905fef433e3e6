"""One of several processes, one of which fails and lives on until the others have said what became of them.

python failing.py OUTPUT CASE [ENCODER PHOTOS], with a launcher's variables.
"""

import sys
import time
from pathlib import Path

from crovca.hasher.processes import launched

FIRST = [OSError(28, "No space left on device"), ValueError("a value"), KeyboardInterrupt(), SystemExit(3)]


def train(encoder, photos, process_group):
    """The last process cannot read its part of the second batch."""
    from crovca.hasher import Hasher
    from crovca.hasher.image_views import ImageViews
    from tests.hasher.worker import SETTINGS

    views, steps = ImageViews.views, []

    def broken(self, rows, random):
        steps.append(rows)
        if process_group.rank == process_group.size - 1 and len(steps) > 1:
            raise OSError("the disk is gone")
        return views(self, rows, random)

    ImageViews.views = broken
    Hasher.for_images(encoder, **SETTINGS).fit(photos, process_group=process_group)


def said(output, name, error):
    (output / f"{name}.part").write_text(f"{type(error).__name__}: {error}")
    (output / f"{name}.part").rename(output / f"{name}.txt")


def wait(*files):
    """Live on until the others have written; they may take long, but not for ever."""
    end = time.monotonic() + 100
    while not all(file.exists() for file in files):
        if time.monotonic() > end:
            sys.exit(f"the others never wrote {files}")
        time.sleep(0.02)


def in_the_first(output, process_group):
    """Whatever the first process raises, and stays in the group."""
    for number, error in enumerate(FIRST):

        def action(error=error):
            raise error

        try:
            process_group.first(action)
        except BaseException as heard:
            said(output, f"{number}-{process_group.rank}", heard)
        if process_group.rank == 0:
            wait(*(output / f"{number}-{rank}.txt" for rank in range(1, process_group.size)))


def main(output, case, *inputs):
    try:
        with launched("cpu") as (process_group, _):
            if case == "in the first":
                in_the_first(output, process_group)
            elif case == "train":
                train(*inputs, process_group)
            else:
                import torch.distributed.nn.functional  # as transformers does, after the group was made

                process_group.gather(torch.ones(3, 2))
                if process_group.rank == process_group.size - 1:
                    raise OSError("the disk is gone")
                process_group.gather(torch.ones(3, 2))
    except Exception as error:
        said(output, process_group.rank, error)
        if process_group.rank == process_group.size - 1:
            wait(*(output / f"{rank}.txt" for rank in range(process_group.size - 1)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:]))
