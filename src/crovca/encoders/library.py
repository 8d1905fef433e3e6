"""transformers and huggingface_hub, imported when they are needed, kept quiet, and with their failures explained."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crovca.errors import EncoderError, MissingDependencyError, one_line

_PURPOSE = "a foundation model"
_EXTRA = "images"


def transformers() -> Any:
    """The package transformers."""
    return _import("transformers")


def hub() -> Any:
    """The package huggingface_hub."""
    return _import("huggingface_hub")


def transformers_class(name: str) -> Any:
    """A class of transformers."""
    library = transformers()
    try:
        with quiet():
            return getattr(library, name)
    except AttributeError:
        raise EncoderError(
            f"transformers {library.__version__} has no {name}; upgrade it: pip install -U transformers"
        ) from None
    except Exception as error:  # its lazy modules raise whatever their imports raise
        raise _explained("transformers", error) from error


def broken_torchvision() -> str | None:
    """Why an installed torchvision does not import; None where it does, or is not there.

    crovca never needs it, but transformers imports it wherever it finds it, and one that was built for another
    version of torch fails, and takes transformers along.
    """
    name = "torchvision"
    try:
        if importlib.util.find_spec(name) is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines, progress bars or warnings of transformers; they are as before afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _import(package: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise MissingDependencyError(package, _EXTRA, _PURPOSE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(package)
    except Exception as error:
        raise _explained(package, error) from error


def _explained(package: str, error: Exception) -> EncoderError:
    reason = broken_torchvision()
    if reason is not None:
        import torch

        return EncoderError(
            f"the installed torchvision does not work with torch {torch.__version__} ({reason}), which breaks "
            "transformers; remove it (pip uninstall torchvision; crovca does not need it), or install the one "
            "that belongs to this torch"
        )
    return EncoderError(f"{package} is installed but does not import ({one_line(error)}); reinstall it")
