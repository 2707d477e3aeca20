"""Write the folder NAME: an environment with a reward, a recipe, a test and a README; it trains as written.

NAME becomes the module of the environment, NAME.py, which NAME.yaml names. Nothing has to be registered.
"""

from __future__ import annotations

import argparse
import keyword
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gigpo_mega.errors import UserError

STARTER = Path(__file__).parent / "starter"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder and print what to do in it."""
    parser = argparse.ArgumentParser(prog="gigpo-mega init", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="of the folder, and of the module in it")
    options = parser.parse_args(argv)
    write(options.name)
    print(f"{options.name}/README.md says how it trains:")
    print(f"cd {options.name}")
    print("\n".join(re.findall(r"^    (gigpo-mega .*)$", Path(options.name, "README.md").read_text(), re.M)))


def write(name: str) -> None:
    """Write the folder `name`; raises UserError if it exists or could not be imported by that name."""
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        raise UserError(f"{name!r} is no name of a Python module; take ASCII letters, digits and underscores")
    folder = Path(name)
    if folder.exists():
        raise UserError(f"{name} exists already; choose another name")
    if find_spec(name) is not None:
        raise UserError(f"{name} is an installed module, which would come before yours; choose another name")
    try:
        folder.mkdir()
    except OSError as error:
        raise UserError(f"{name} cannot be made here: {error.strerror}; go to a folder of yours") from None
    for template in sorted(STARTER.glob("*.*")):
        text = template.read_text(encoding="utf-8").replace("NAME", name)
        (folder / template.name.replace("NAME", name)).write_text(text, encoding="utf-8")
