"""Everything that crovca raises on purpose.

    CrovcaError
     ├── InvalidInputError       an array, a label or an argument that cannot be used   (ValueError)
     ├── FileFormatError         a file that is not what it should be                   (ValueError)
     ├── ConfigError             unknown, contradictory or out-of-range settings        (ValueError)
     ├── EncoderError            a foundation model cannot be found, fetched or loaded  (RuntimeError)
     ├── OutputExistsError       something stands where the result should go
     ├── StorageError            the operating system refused to read or write
     ├── NotFittedError          a hasher used before ``fit``                           (ValueError, AttributeError)
     ├── MissingDependencyError  an optional package is not installed                   (ImportError)
     ├── TrainingError           training itself failed                                 (RuntimeError)
     ├── WorkerError             another process of the same run failed                 (RuntimeError)
     └── ServerError            a database server cannot be reached, or refused        (RuntimeError)

A message says what was got, what was expected and what to do. The command line prints it in one
line and leaves with ``exit_status``: 2 where the user can mend it, 1 where something failed.
"""

from __future__ import annotations

import re
import sys
from typing import Any

# Controls (but tab and line feed), what turns the direction of text, and surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Text from elsewhere, so that no terminal takes a part of it for a command: ``\x1b[2J`` is shown as it is here.

    >>> print(printable("a\x1b[31mb\u202ec"))
    a\x1b[31mb\u202ec
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def reason_of(error: Exception) -> str:
    """Why something failed, in one line; what is no ``CrovcaError`` is named as well."""
    reason = str(error) if isinstance(error, CrovcaError) else f"{type(error).__name__}: {error}"
    return " ".join(reason.split())


class CrovcaError(Exception):
    """Base of every error that crovca raises on purpose."""

    exit_status = 2


class InvalidInputError(CrovcaError, ValueError):
    """An array, a label or an argument cannot be used."""


class FileFormatError(CrovcaError, ValueError):
    """A file is missing, damaged, or not in the format that its name says."""


class ConfigError(CrovcaError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class EncoderError(CrovcaError, RuntimeError):
    """A foundation model cannot be found, fetched or loaded."""


class OutputExistsError(CrovcaError):
    """Something stands already where the result should be written."""


class StorageError(CrovcaError):
    """The operating system refused to read or write (full disk, permissions)."""


class NotFittedError(CrovcaError, ValueError, AttributeError):
    """A hasher was used before it was fitted."""


class MissingDependencyError(CrovcaError, ImportError):
    """An optional package is needed and not installed."""

    exit_status = 1

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f"install it with: pip install 'crovca[{extra}]'"
        )


def needed(module: str, extra: str, purpose: str, *, package: str | None = None) -> Any:
    """An optional module, imported; MissingDependencyError where it is not installed.

    Args:
        module: its name.
        extra: of crovca, which installs it.
        purpose: what needs it.
        package: what it is called where it is installed from, if not as the module.
    """
    try:
        __import__(module)
        return sys.modules[module]
    except ImportError:
        raise MissingDependencyError(package or module, extra, purpose) from None


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error says, in one line of at most ``most`` characters; its type where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


class ServerError(CrovcaError, RuntimeError):
    """A database server cannot be reached, refused what it was asked, or cannot do it."""

    exit_status = 1


class TrainingError(CrovcaError, RuntimeError):
    """Training itself failed, for example because the loss became NaN."""

    exit_status = 1


class WorkerError(CrovcaError, RuntimeError):
    """Another process of the same run failed: with an error of its own, whose message this is, or by dying."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.exit_status)


class CrovcaWarning(UserWarning):
    """Something was accepted, but differs from what one would expect."""
