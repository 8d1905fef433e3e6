"""Mutations of stores, codes and models: each must be refused in words, change nothing, or be named by ``verify``."""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crovca.codes import Codes
from crovca.data.embeddings import load_embeddings
from crovca.data.encoded import Encoded
from crovca.data.store import save_store, verify_store
from crovca.errors import CrovcaError
from crovca.hasher import Hasher

ROWS, WIDTH, BITS = 60, 8, 20
ODD: tuple[object, ...] = (
    None,
    True,
    -1,
    2**31,
    2**63,
    10**30,
    1.5,
    1e300,
    "",
    "..",
    "/etc",
    "x" * 10_000,
    [],
    {},
    [[]],
    "part-00000",
)


def write_store(path: Path) -> None:
    random_ = np.random.default_rng(0)
    values = random_.normal(size=(ROWS, WIDTH)).astype(np.float32)
    ids = np.array([f"item {row}" for row in range(ROWS)])
    save_store(path, values, ids=ids, labels=np.arange(ROWS) % 3, shard_size=25)


def write_codes(path: Path) -> None:
    logits = np.random.default_rng(1).normal(size=(ROWS, BITS)).astype(np.float32)
    ids = np.array([f"item {row}" for row in range(ROWS)])
    Encoded(Codes.from_logits(logits), ids, np.arange(ROWS) % 3, logits).save(path)


def write_model(path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(ROWS, WIDTH)).astype(np.float32)
    Hasher(bits=BITS, epochs=1, device="cpu").fit(values).save(path)


def answer_of_model(path: Path) -> tuple[bytes, ...]:
    found = Hasher.load(path)
    asked = np.random.default_rng(3).normal(size=(5, WIDTH)).astype(np.float32)
    return found.logits(asked).tobytes(), repr((found.lengths_, found.pairing_, found.history_)).encode()


def answer_of_store(path: Path) -> tuple[bytes, ...]:
    found = load_embeddings(path)
    values = found.values[np.arange(len(found))]
    return (
        str((values.dtype, values.shape)).encode(),
        values.tobytes(),
        repr(found.ids).encode(),
        repr(None if found.labels is None else found.labels.tolist()).encode(),
    )


def answer_of_codes(path: Path) -> tuple[bytes, ...]:
    found = Encoded.load(path)
    logits = b"" if found.logits is None else found.logits.tobytes()
    labels = None if found.labels is None else found.labels.tolist()
    return (
        found.codes.packed.tobytes(),
        str(found.codes.bits).encode(),
        repr((None if found.ids is None else found.ids.tolist(), labels)).encode(),
        logits,
    )


def mutate_bytes(file: Path, chance: random.Random) -> str:
    """Change a file as disks, transfers and hands do."""
    data = bytearray(file.read_bytes())
    size = len(data)
    place = chance.randrange(size)
    if chance.random() < 0.3:  # headers and footers decide most
        place = chance.choice([chance.randrange(min(128, size)), size - 1 - chance.randrange(min(128, size))])
    kind = chance.choice(["flip", "byte", "number", "cut", "grow", "zero", "swap", "delete", "insert"])
    if kind == "flip":
        data[place] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        data[place] = chance.randrange(256)
    elif kind == "number":
        value = struct.pack("<q", chance.choice([-1, 0, 2**31, 2**62, 1, 255]))
        data[place : place + 8] = value[: min(8, size - place)]
    elif kind == "cut":
        del data[place:]
    elif kind == "grow":
        data += chance.randbytes(chance.randrange(1, 200))
    elif kind == "zero":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif kind == "swap":
        other = chance.randrange(size)
        data[place : place + 8], data[other : other + 8] = data[other : other + 8], data[place : place + 8]
    elif kind == "delete":
        del data[place : place + chance.randrange(1, 9)]
    else:
        data[place:place] = chance.randbytes(chance.randrange(1, 9))
    file.write_bytes(data)
    return f"{kind} at {place} of {file.name}"


def mutate_manifest(file: Path, chance: random.Random) -> str:
    content = json.loads(file.read_text())
    holder = chance.choice(holders_in(content))
    key, value = chance.choice(list(holder)), chance.choice(ODD)
    holder[key] = value
    file.write_text(json.dumps(content))
    return f"{key} = {str(value)[:20]} in the manifest"


def holders_in(content: Any) -> list[dict[str, Any]]:
    """All JSON objects with entries."""
    if isinstance(content, list):
        return [found for part in content for found in holders_in(part)]
    if not isinstance(content, dict) or not content:
        return []
    return [content, *(found for part in content.values() for found in holders_in(part))]


def mutate_tree(store: Path, chance: random.Random) -> str:
    file = chance.choice(sorted(path for path in store.rglob("*") if path.is_file()))
    other = chance.choice(sorted(path for path in store.rglob("*") if path.is_file() and path != file))
    kind = chance.choice(["remove", "copy", "link", "loop", "folder", "pipe", "part"])
    if kind == "copy":
        shutil.copyfile(other, file)
    elif kind == "part":
        shutil.rmtree(store / "part-00001", ignore_errors=True)
    else:
        file.unlink()
        if kind == "link":
            file.symlink_to(chance.choice(["/etc/passwd", "/dev/zero", "nowhere"]))
        elif kind == "loop":
            file.symlink_to(file)
        elif kind == "folder":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)
    return f"{kind} {file.relative_to(store)}"


# How each is written and read; the manifest of those that are folders.
KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], tuple[bytes, ...]], str | None]] = {
    "store": (write_store, answer_of_store, "manifest.json"),
    "codes": (write_codes, answer_of_codes, None),
    "model": (write_model, answer_of_model, "config.json"),
}


def fuzz(root: Path, what: str, seeds: range) -> dict[str, list[str]]:
    """Mutate a store, codes or a model once for each seed; what happened, by kind."""
    write, answer, manifest = KINDS[what]
    good = root / ("good" if manifest else "good.npz")
    write(good)
    expected = answer(good)
    found: dict[str, list[str]] = {kind: [] for kind in ("refused", "same", "named", "changed", "traceback")}
    for seed in seeds:
        chance = random.Random(seed)
        bad = root / ("bad" if manifest else "bad.npz")
        if manifest:
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(good, bad)
            draw = chance.random()
            if draw < 0.15:
                how = mutate_tree(bad, chance)
            elif draw < 0.35:
                how = mutate_manifest(bad / manifest, chance)
            else:
                how = mutate_bytes(chance.choice(sorted(p for p in bad.rglob("*") if p.is_file())), chance)
        else:
            shutil.copyfile(good, bad)
            how = mutate_bytes(bad, chance)
        try:
            kind = "same" if answer(bad) == expected else "changed"
            if kind == "changed" and what == "store" and verify_store(bad):
                kind = "named"
        except CrovcaError:
            kind = "refused"
        except BaseException as error:
            kind, how = "traceback", f"{how}: {type(error).__name__}: {error}"
        found[kind].append(f"seed {seed}: {how}")
    return found
