"""Let a shell complete commands, recipes and fields of the configuration after `gigpo-mega`.

Without SHELL, for that of $SHELL. Writes a file and, for bash and zsh, a line in ~/.bashrc or ~/.zshrc that
reads it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from gigpo_mega.errors import UserError

BASH = """\
_gigpo_mega() {
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _gigpo_mega gigpo-mega
"""
ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_gigpo_mega() {
    local -a found
    found=(${(f)"$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( $#found )); then compadd -a found; else _files; fi
}
compdef _gigpo_mega gigpo-mega
"""
FISH = """\
function __gigpo_mega
    set -l typed (commandline -opc)
    set -l current (commandline -ct)
    $typed[1] __complete $typed[2..-1] "$current" 2>/dev/null
end
complete -c gigpo-mega -a '(__gigpo_mega)'
"""
# Shell -> what it reads, where that is written, and the start-up file that reads it if the shell does not.
SHELLS = {
    "bash": (BASH, ".local/share/gigpo-mega/completion.bash", ".bashrc"),
    "zsh": (ZSH, ".local/share/gigpo-mega/completion.zsh", ".zshrc"),
    "fish": (FISH, ".config/fish/completions/gigpo-mega.fish", None),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Install, and say where; raises UserError for a shell that is not known."""
    parser = argparse.ArgumentParser(prog="gigpo-mega --install-completion", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("shell", metavar="SHELL", nargs="?", help=", ".join(SHELLS))
    shell = parser.parse_args(argv).shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        known = " or ".join(SHELLS)
        raise UserError(f"{shell or 'no shell'} cannot be completed for; give {known} after it")
    for file in install(shell, Path.home()):
        print(file)
    print(f"a new {shell} completes gigpo-mega")


def install(shell: str, home: Path) -> list[Path]:
    """Write the files of `shell` in the home folder; returns those that changed."""
    text, place, start_up = SHELLS[shell]
    file = home / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    if start_up is None:
        return [file]
    line = f'[ -r "$HOME/{place}" ] && . "$HOME/{place}"\n'
    reader = home / start_up
    before = reader.read_text(encoding="utf-8") if reader.exists() else ""
    if line in before:
        return [file]
    with reader.open("a", encoding="utf-8") as written:
        written.write(line if before.endswith("\n") or not before else f"\n{line}")
    return [file, reader]
