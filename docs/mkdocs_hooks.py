"""What mkdocs makes besides the pages of this folder (mkdocs.yml): pages from the code and from README.md.

Links of a page to files outside this folder become the file's name: the site has no repository to point to.
Those to README.md#measured lead to the page that is made of it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from gigpo_mega.config.load import FIELDS, SECTIONS
from gigpo_mega.program import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
WIDE = ("measured.md", "metrics.md", "recipes.md")  # mostly tables
FIELD_COMMANDS = ("train", "evaluate", "coldstart", "quickstart")  # whose help is the page of all fields


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """`[text](target)` becomes `text` if the target is outside this folder and no page is made of it.

    WIDE pages have no contents.
    """
    folder = PurePosixPath(page.file.src_uri).parent

    def link(found: re.Match[str]) -> str:
        target = found["target"].partition("#")[0]
        if not target or re.match(r"\w+:", target):
            return found[0]
        place = (ROOT / "docs" / folder / target).resolve()
        if found["target"].endswith("README.md#measured") and place == ROOT / "README.md":
            return f"[{found['text']}]({os.path.relpath('measured.md', folder)})"
        return found[0] if place.is_relative_to(ROOT / "docs") else found["text"]

    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    return re.sub(r"(?<!!)\[(?P<text>[^]\[]*)\]\((?P<target>[^)\s]+)\)", link, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """A_E and A_S get an index, except in code."""
    parts = re.split(r"(<(code|pre)\b.*?</\2>)", html, flags=re.DOTALL)
    texts = (re.sub(r"\bA_([ES])\b", r"A<sub>\1</sub>", text) for text in parts[::3])
    return "".join(text + code for text, code in zip(texts, [*parts[1::3], ""], strict=True))


def configuration() -> str:
    """Every field by section, from the docstrings that `--help` shows."""
    how = "On the command line `--section.field VALUE`, in a file `section: {field: VALUE}`."
    lines = ["# Configuration", "", how, "", "## run"]
    section = ""
    for item in FIELDS.values():
        head = item.path.rpartition(".")[0]
        if head != section:
            section = head
            lines += ["", f"## {section}", "", (SECTIONS[section].__doc__ or "").strip().splitlines()[0]]
        default = json.dumps(item.default, default=str)
        lines += ["", f"### `{item.path}`", "", f"{item.expected}, by default `{default}`. {item.help}"]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """What every command says of itself."""
    lines = ["# Commands"]
    for name, (module, purpose) in COMMANDS.items():
        lines += ["", f"## gigpo-mega {name}", "", purpose[0].upper() + purpose[1:] + "."]
        if name in FIELD_COMMANDS:
            lines += ["", "Takes recipes, files and every field of the [configuration](configuration.md)."]
        else:
            lines += ["", "```text", help_of(module), "```"]
    return "\n".join(lines) + "\n"


def help_of(module: str) -> str:
    """What `--help` of the command in `module` prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return said.getvalue().rstrip()


def measured() -> str:
    """The section of README.md with what was measured, which `make lint` compares with the records."""
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Measured\n")
    section = rest.partition("\n## ")[0].replace("](docs/", "](")
    return f"# Figures\n\nThis is the table of README.md.\n{section}\n"


def architecture() -> str:
    """ARCHITECTURE.md, with links from this folder."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return text.replace("](docs/", "](").replace("](kernels/", "](../kernels/")


PAGES = {
    "reference/configuration.md": configuration,
    "reference/commands.md": commands,
    "measured.md": measured,
    "architecture.md": architecture,
}
