"""What mkdocs (``mkdocs.yml``) asks while it builds the site: a page of the commands, links, nothing from elsewhere."""

import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from crovca.cli.main import app

COMMANDS = "reference/commands.md"
_LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)")
_LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//"
    r"|<link\b(?=[^>]*\brel=\"?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=\"?(?:https?:)?//"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of the commands."""
    files.append(File.generated(config, COMMANDS, content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files outside of ``docs`` to the repository."""
    docs = Path(config.docs_dir)
    here = (docs / page.file.src_uri).parent

    def outside(found: re.Match[str]) -> str:
        target = (here / found[2]).resolve()
        if target.is_relative_to(docs) or not target.exists():  # mkdocs warns of what is not there
            return found[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"{found[1]}{config.extra['repository']}/{kind}/main/{target.relative_to(docs.parent).as_posix()}"

    return _LINK.sub(outside, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would load anything from elsewhere."""
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {output[found.start() : found.start() + 200]}")
    return output


def commands_page() -> str:
    """Every command: what it does, its arguments and its options, from the command line itself."""
    lines = ["# Commands", "", "Made from the command line itself; `crovca COMMAND --help` says the same.", ""]
    root = typer.main.get_command(app)
    for path, command, context in _walk(root, typer.Context(root, info_name="crovca")):
        if path == "crovca":
            continue
        lines += [f"## {path}", "", _prose(command.help or ""), ""]
        if hasattr(command, "commands"):
            continue
        usage = " ".join(command.collect_usage_pieces(context))
        lines += ["```", f"{path} {usage}", "```", "", "| argument, option | |", "|---|---|"]
        for parameter in command.get_params(context):
            name, said = parameter.get_help_record(context) or (parameter.name, "")
            if name != "--help":
                lines.append(f"| `{name}` | {_prose(' '.join(said.split()))} |")
        lines.append("")
    return "\n".join(lines)


def _walk(command: Any, context: typer.Context) -> list[tuple[str, Any, typer.Context]]:
    found = [(context.command_path, command, context)]
    for name, below in getattr(command, "commands", {}).items():
        found += _walk(below, typer.Context(below, info_name=name, parent=context))
    return found


def _prose(text: str) -> str:
    return re.sub(r"[<>*_|\[\]]", lambda found: f"&#{ord(found[0])};", text)
