"""Opening a source: what a path holds decides how it is read.

``open_images`` takes a folder, a split file, Parquet, a saved Hugging Face dataset or WebDataset tars; ``open_texts`` a
.txt, .csv, .tsv or .parquet, or a store whose items have captions. Opening the same data again gives the same list.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from crovca.errors import FileFormatError, InvalidInputError
from crovca.sources import folders, tables, tars, texts
from crovca.sources.decode import IMAGE_SUFFIXES
from crovca.sources.source import Source


def open_images(
    path: str | Path, *, root: Path | None = None, image_column: str | None = None, caption_column: str | None = None
) -> Source[bytes]:
    """Open a source of images; what ``path`` holds decides how.

    Args:
        path: a folder of images, of Parquet files or of tars; a saved Hugging Face dataset; a split file (.txt, .lst);
            a .parquet or .tar file.
        root: the folder that a split file's paths are relative to [default: the split file's own].
        image_column: Parquet and Hugging Face: the column of the images [default: the one that looks like it].
        caption_column: likewise, the column of their captions.

    Raises:
        FileFormatError: ``path`` is missing, damaged, or nothing that images are read from.
        InvalidInputError: it holds no image, or an option does not go with it.
    """
    path = Path(path)
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    suffix = path.suffix.lower()
    columns = {"image_column": image_column, "caption_column": caption_column}
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found = tables.open_saved_dataset(path, **columns)
        else:
            found = _open_folder(path, columns)
    elif suffix == ".parquet":
        found = tables.open_parquet_images([path], path.parent, **columns)
    elif suffix == ".tar":
        found = tars.open_tars([path], None)
    elif suffix in (".txt", ".lst"):
        found = folders.open_split(path, root or path.parent)
    else:
        raise FileFormatError(f"{path}: {_advice(path)}")
    if root is not None and found.kind != "split file":
        raise InvalidInputError(f"{path}: a root goes with a split file; this is a {found.kind}")
    if (image_column or caption_column) and found.kind not in ("Parquet", "Hugging Face dataset"):
        raise InvalidInputError(f"{path}: columns are named for Parquet and Hugging Face data; this is a {found.kind}")
    return found


def open_texts(path: str | Path, *, caption_column: str | None = None) -> Source[str]:
    """Open a source of texts: .txt (a line each), .csv, .tsv or .parquet with a caption column, or a store's captions.

    A store's captions keep its ids and labels, row by row: images and texts of two such stores are pairs.

    Raises:
        FileFormatError: the file is missing, damaged or of another kind.
        InvalidInputError: it has no such column, or no text.
    """
    path = Path(path)
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    return texts.open_texts(path, caption_column)


def _open_folder(path: Path, columns: dict[str, str | None]) -> Source[bytes]:
    if (path / "manifest.json").is_file() and any(path.glob("part-*")):
        raise InvalidInputError(f"{path} is a store of embeddings already; give the images")
    files, others = folders.scan(path)
    by_suffix = {suffix: [file for file in others if file.lower().endswith(suffix)] for suffix in (".parquet", ".tar")}
    tables_, archives = by_suffix[".parquet"], by_suffix[".tar"]
    if files:
        found = folders.open_folder(path, files, len(others))
        said = f"the images themselves are read, not the {_counted(by_suffix)} beside them"
        return _noted(found, said) if tables_ or archives else found
    if tables_ and archives:
        # img2dataset writes what it knows of 00000.tar into 00000.parquet; of anything else one cannot tell.
        if {file[: -len(".parquet")] for file in tables_} <= {file[: -len(".tar")] for file in archives}:
            tables_ = []
        else:
            raise InvalidInputError(
                f"{path} holds {_counted(by_suffix)}, which may both hold the images; give a folder of one kind"
            )
    if tables_:
        return tables.open_parquet_images([path / file for file in by_suffix[".parquet"]], path, **columns)
    if archives:
        found = tars.open_tars([path / file for file in archives], path)
        said = f"of {_counted(by_suffix)} the tars are read"
        return _noted(found, said) if by_suffix[".parquet"] else found
    raise InvalidInputError(
        f"{path} holds no image, but {len(others):,} other files; expected .jpg, .png, .webp and the like, "
        ".parquet or .tar"
    )


def _counted(by_suffix: dict[str, list[str]]) -> str:
    return " and ".join(f"{len(files):,} {suffix}" for suffix, files in by_suffix.items() if files)


def _noted(source: Source[bytes], note: str) -> Source[bytes]:
    return replace(source, notes=(*source.notes, note))


def _advice(path: Path) -> str:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "a single image; give the folder that it lies in"
    if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")):
        return "a compressed tar cannot be read at any place; unpack it, or store it uncompressed (.tar)"
    return (
        "not a source of images; expected a folder, a split file (.txt), .parquet, .tar, "
        "or the folder of a saved Hugging Face dataset"
    )
