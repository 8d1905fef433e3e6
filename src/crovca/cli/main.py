"""``crovca``: the commands, and how errors leave it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer
from typer import Option
from typer.exceptions import Abort, Exit, TyperException

from crovca.cli import (
    archive,
    compare,
    convert,
    datasets,
    demo,
    doctor,
    embed,
    encode,
    evaluate,
    export,
    finetune,
    index,
    reproduce,
    search,
    serve,
    store,
    train,
)
from crovca.cli.output import notes_for_warnings, stderr
from crovca.errors import CrovcaError, MissingDependencyError

_INTERRUPTED = 130
_EXTRAS = {"PIL": ("pillow", "images"), "matplotlib": ("matplotlib", "report"), "openTSNE": ("openTSNE", "report")}
"""Modules that are imported where they are used, whoever uses them: their package, and the extra that installs it."""

app = typer.Typer(
    name="crovca",
    help="Binary hash codes that keep the meaning of embeddings: embed, train, encode, index, search, evaluate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("embed")(embed.embed)
app.command("train")(train.train)
app.command("finetune")(finetune.finetune)
app.command("encode")(encode.encode)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("reproduce")(reproduce.reproduce)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.add_typer(archive.archive, name="archive")
app.add_typer(index.index, name="index")
app.add_typer(store.store, name="store")
app.command("search")(search.search)
app.command("dedup")(search.dedup)
app.command("duplicates")(archive.duplicates)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("datasets")(datasets.datasets)
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def _root(version: bool = Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from crovca import __version__

        sys.stdout.write(f"crovca {__version__}\n")
        raise Exit(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 well, 1 failed, 2 something to mend, 130 interrupted.

    Every error is one line on standard error. Set CROVCA_DEBUG=1 for the traceback.
    """
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    try:
        with notes_for_warnings():
            status = typer.main.get_command(app).main(arguments, prog_name="crovca", standalone_mode=False)
        if status == _INTERRUPTED:  # typer makes a status of Ctrl-C
            return _interrupted(KeyboardInterrupt(), arguments)
        return status if isinstance(status, int) else 0
    except CrovcaError as error:
        return _fail(error, str(error), error.exit_status)
    except Exit as error:
        if error.exit_code == _INTERRUPTED:
            return _interrupted(error, arguments)
        return error.exit_code
    except TyperException as error:
        message = error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError":  # typer does not export it
            sys.stderr.write(f"{message}\n")
            return error.exit_code
        return _fail(error, f"{message} (see 'crovca --help')", error.exit_code) if message else error.exit_code
    except (KeyboardInterrupt, Abort) as error:
        return _interrupted(error, arguments)
    except BrokenPipeError:
        return 1
    except OSError as error:
        where = "" if error.filename is None else f" {error.filename}"
        return _fail(error, f"cannot read or write{where}: {error.strerror or error}", 2)
    except MemoryError as error:
        return _fail(
            error, "not enough memory; .npy files and stores are memory-mapped, and fewer queries at once take less", 1
        )
    except Exception as error:
        return _unexpected(error, arguments)


def _unexpected(error: Exception, arguments: list[str]) -> int:
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module in _EXTRAS:
        return _fail(error, str(MissingDependencyError(*_EXTRAS[module], f"'crovca {arguments[0]}'")), 1)
    where = f"{type(error).__name__}: {error}"
    return _fail(error, f"internal error: {where} (set CROVCA_DEBUG=1 for a traceback; please report it)", 1)


def _interrupted(error: BaseException, arguments: list[str]) -> int:
    goes_on = arguments[:1] in (["train"], ["embed"], ["finetune"], ["reproduce"])
    more = "; the same command without --force goes on where it stopped" if goes_on else ""
    return _fail(error, f"interrupted{more}", _INTERRUPTED)


def _fail(error: BaseException, message: str, status: int) -> int:
    if os.environ.get("CROVCA_DEBUG"):
        raise error
    stderr.print(f"error: {' '.join(message.split())}", markup=False, soft_wrap=True)
    return status


if __name__ == "__main__":
    main()
