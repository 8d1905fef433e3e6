"""Models on the Hugging Face hub: a folder as ``Hasher.save`` writes it, and a card that says what is known of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from crovca._version import __version__
from crovca.encoders.hub import explained, fetch
from crovca.encoders.library import hub
from crovca.errors import ConfigError, CrovcaError

if TYPE_CHECKING:
    from crovca.hasher.hasher import Hasher

Measures = Mapping[int, Mapping[str, float]]

_FILES = ("config.json", "model.safetensors", "log.jsonl")
_TITLES = {
    "seen": "mAP, kinds that were learned",
    "new": "mAP, kinds that were not learned",
    "mixed": "mAP, a new kind among all",
    "order": "float neighbors kept",
    "distinct": "items with a code of their own",
}


def folder_of(source: str | Path, revision: str | None) -> Path:
    """A local folder as it is, or that of an id of the hub, fetched.

    Raises:
        ConfigError: a revision of a local folder, or neither a folder nor an id.
        EncoderError: the hub does not give it.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise ConfigError(f"{source} is a local folder, which has no revision {revision!r}; leave it out")
        return Path(source)
    if not isinstance(source, str) or "/" not in source or source.startswith((".", "/", "~")):
        raise ConfigError(f"there is no folder {str(source)!r}; expected a model's folder or an id of the hub")
    return fetch(source, revision, _FILES)


def push(
    hasher: Hasher,
    repo_id: str,
    *,
    private: bool,
    token: str | None,
    license: str | None,
    data: str | None,
    measures: Measures | None,
) -> str:
    """Write a model and its card to the hub; the address of the commit. See ``Hasher.push_to_hub``."""
    library = hub()
    with tempfile.TemporaryDirectory(prefix="crovca-push-") as temporary:
        folder = Path(temporary) / "model"
        hasher.save(folder)
        text = card(hasher, repo_id, license=license, data=data, measures=measures)
        (folder / "README.md").write_text(text, encoding="utf-8")
        try:
            library.create_repo(repo_id, private=private, token=token, exist_ok=True)
            written = library.upload_folder(
                repo_id=repo_id, folder_path=folder, token=token, commit_message=f"crovca {__version__}"
            )
        except CrovcaError:
            raise
        except Exception as error:  # as in ``fetch``
            raise explained(repo_id, None, "", error) from error
    return str(written)


def card(
    hasher: Hasher,
    repo_id: str,
    *,
    license: str | None = None,
    data: str | None = None,
    measures: Measures | None = None,
) -> str:
    """The text of a model's card, README.md: metadata for the hub, then what is known, in words.

    Args:
        hasher: fitted.
        repo_id: under which it is used.
        license: of the model, as the hub spells it ("apache-2.0"); None: nothing is said.
        data: what it was learned from, a sentence.
        measures: of each length the five measures, each in [0, 1] (``crovca evaluate --json``).
    """
    library = hub()
    towers = list(hasher._fitted())
    encoders = [tower.encoder for tower in towers if tower.encoder is not None]
    names = sorted({str(encoder.identity["source"]) for encoder in encoders})
    metadata = library.ModelCardData(
        library_name="crovca",
        license=license,
        base_model=[name for name in names if not Path(name).exists()] or None,
        pipeline_tag="image-feature-extraction" if towers[0].modality == "images" else "feature-extraction",
        tags=["hashing", "binary-embeddings", "similarity-search"],
    )
    takes = " and ".join(f"{tower.modality} ({tower.coder.width} numbers)" for tower in towers)
    kind = "Hasher.for_images" if encoders else "Hasher"
    lines = [
        f"# {repo_id}",
        f"Binary codes of {', '.join(map(str, hasher.lengths_))} bits, learned with crovca {__version__} ({kind}).",
        "## What it takes",
        f"{takes[0].upper()}{takes[1:]}." + (f" Encoder: {', '.join(names)}." if names else ""),
        "## How to use it",
        f"""```python
from crovca import Hasher

hasher = Hasher.from_pretrained("{repo_id}")
codes = hasher.encode(X)    # packed bits
logits = hasher.logits(X)   # of queries: search them asymmetrically
```""",
        "## What it was learned from",
        data or "Nothing was said of the data.",
        f"Learned {'with labels' if hasher.classes_ is not None else 'without labels'}; "
        f"pairs: {', '.join(hasher.pairing_)}; faithfulness: {hasher.faithfulness}.",
        "## How good it is",
    ]
    if measures:
        known = [name for name in _TITLES if any(name in row for row in measures.values())]
        table = [f"| bits | {' | '.join(_TITLES[name] for name in known)} |", "|---" * (1 + len(known)) + "|"]
        for bits, row in sorted(measures.items()):
            table.append(
                f"| {bits} | {' | '.join(f'{100 * row[name]:.1f}' if name in row else '' for name in known)} |"
            )
        lines += ["\n".join(table), "In %, on the data named above."]
    else:
        lines.append("It was not measured, or nothing was said of it: `crovca evaluate` does.")
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n"
