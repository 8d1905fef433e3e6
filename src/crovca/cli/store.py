"""``crovca store``: stores of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from crovca.cli.options import Json
from crovca.cli.output import answer

store = typer.Typer(help="Stores of embeddings.", no_args_is_help=True, rich_markup_mode=None)


@store.command("verify")
def verify(
    path: Annotated[Path, Argument(metavar="STORE", help="Folder that 'crovca embed' wrote.")], json: Json = False
) -> None:
    """Compare every file with the checksum taken when it was written; exits with 1 where one has changed."""
    from crovca.data.store import store_parts, verify_store

    parts, problems = store_parts(path), verify_store(path)
    items = sum(part.rows for part in parts)
    content = {"store": str(path), "parts": len(parts), "items": items, "problems": problems}
    whole = f"{path}: {items:,} items in {len(parts):,} parts, all whole"
    answer(json, content, *([f"damaged: {problem}" for problem in problems] or [whole]))
    if problems:
        raise typer.Exit(1)
