"""Configuration files that are damaged or no YAML: one line with the file and the line of what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from gigpo_mega.config.load import load_config
from tests.helpers import refused

SECTIONS = "it must hold sections, as in `advantage: {gamma: 0.9}`"
CASES = {
    "a bracket that never closes": ("iterations: 1\na: [1", "2: while parsing a flow sequence, expected"),
    "a bracket too many": ("iterations: 1\nseed: ]\n", "2: while parsing a block node, expected the node"),
    "a wrong indent": ("a: {}\n b: 1\n", "2: while parsing a block mapping, expected <block end>"),
    "an unknown escape": ('iterations: 1\noutput: "\\q"\n', "2: while scanning a double-quoted scalar"),
    "a tab": (
        "advantage:\n\tgamma: 1\n",
        "2: while scanning for the next token, found character '\\t' that cannot start any token; indent "
        "with blanks, not with tabs",
    ),
    "a key twice": ("iterations: 1\niterations: 2\n", "2: key 'iterations' comes twice"),
    "a key twice in a section": ("advantage:\n  gamma: 1\n  gamma: 2\n", "3: key 'gamma' comes twice"),
    "a key twice, once quoted": ("environment: {tasks: {1: a,\n '1': b}}\n", "2: key '1' comes twice"),
    "a list as key": ("? [a, b]\n: 1\n", "1: while constructing a mapping, found unhashable key"),
    "a mapping as key": ("iterations: 1\n? {a: b}\n: 1\n", "2: while constructing a mapping, found"),
    "a list at top level": ("# run\n- a\n- b\n", f"2: the file holds a sequence: {SECTIONS}"),
    "a word at top level": ("hello\n", f"1: the file holds a scalar: {SECTIONS}"),
    "null at top level": ("null\n", f"1: the file holds a scalar: {SECTIONS}"),
    "two documents": ("iterations: 1\n---\niterations: 2\n", "2: expected a single document in the stream"),
    "an alias of nothing": ("advantage: *x\n", "1: found undefined alias 'x'"),
    "an alias of what is around it": (
        "iterations: 1\nenvironment: &a\n  tasks: *a\n", "2: found unconstructable recursive node"),
    "a tag of Python": ("output: !!python/object:os.system 3\n", "1: could not determine a constructor for"),
    "a tag of YAML 1.1": ("output: !!timestamp never\n", "1: could not determine a constructor for the tag"),
    "a tag on another type": ("engine: {arguments: !!seq {a: 1}}\n", "1: expected a sequence node, but"),
    "a word tagged as integer": ("iterations: !!int abc\n", "1: 'abc' cannot be read as int"),
    "a list tagged as integer": ("iterations: !!int [1]\n", "1: expected a scalar node, but found sequence"),
    "a word tagged as truth": ("resume: !!bool maybe\n", "1: 'maybe' cannot be read as bool"),
    "nothing tagged as number": ('optimizer:\n  lr: !!float ""\n', "2: '' cannot be read as float"),
    "an integer of 5,000 digits": ("iterations: " + "9" * 5000, f"1: '{'9' * 40}' cannot be read as int"),
    "YAML 3": ("%YAML 3.0\n---\niterations: 1\n", "1: found incompatible YAML document"),
    "an escape sequence": ("iterations: 3\n# \x1b[0m\n", "2: character U+001B is not allowed in YAML"),
    "a zero byte": ("iterations: 3\noutput: a\x00b\n", "2: character U+0000 is not allowed in YAML"),
}  # fmt: skip


def complaint(file: Path) -> str:
    return refused(lambda: load_config([str(file)], "gigpo-mega train"))


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_a_damaged_file_is_refused_with_its_line(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert complaint(tmp_path / "run.yaml").startswith(f"{tmp_path / 'run.yaml'}:{expected}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [("iterations: 3\noutput: caf\u00e9\n".encode("latin-1"), "2: byte 0xe9 is not UTF-8 text"),
     ("iterations: 3\n".encode("utf-16"), "1: byte 0xff is not UTF-8 text"),
     (b"iterations: 3\noutput: caf\xc3", "2: byte 0xc3 is not UTF-8 text")],
    ids=["latin-1", "utf-16", "cut within a character"],
)  # fmt: skip
def test_another_encoding_is_refused_with_its_line(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    assert complaint(tmp_path / "run.yaml") == f"{tmp_path / 'run.yaml'}:{expected}"


@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_a_file_nested_too_deeply_is_refused(opening: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(opening * 3000)
    assert complaint(tmp_path / "run.yaml") == f"{tmp_path / 'run.yaml'}: it is nested too deeply"


@pytest.mark.parametrize("text", ["", "\n\n", "# iterations: 3\n", "---\n...\n"])
def test_an_empty_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert complaint(tmp_path / "run.yaml").endswith(f"{SECTIONS}")


def test_what_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, loop = tmp_path / "folder.yaml", tmp_path / "loop.yaml"
    folder.mkdir()
    loop.symlink_to(loop)
    for file, reason in (
        (Path("absent.yaml"), "No such file or directory"), (folder, "Is a directory"),
        (folder.with_name("a" * 300 + ".yaml"), "File name too long"),
        (loop, "Too many levels of symbolic links"),
    ):  # fmt: skip
        assert complaint(file) == f"cannot read config file {file}: {reason}"

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)  # as root every file can be read
    assert complaint(folder) == f"cannot read config file {folder}: Permission denied"


def test_a_byte_order_mark_and_anchors_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbfiterations: &n 3\nrollout: {groups: *n}\n")
    cfg = load_config([str(tmp_path / "run.yaml")], "gigpo-mega train")
    assert (cfg.iterations, cfg.rollout.groups) == (3, 3)


def test_the_last_line_of_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("iterations: 3\nadvantage: {gamma: 0.9,")
    assert complaint(tmp_path / "run.yaml").startswith(f"{tmp_path / 'run.yaml'}:2: ")


def test_a_list_of_servers_can_be_given_on_the_command_line() -> None:
    """It used to be taken for one URL."""
    named = load_config(["--engine.url", '["http://gpu07:30000", "http://gpu08:30000/"]'], "gigpo-mega train")
    assert named.engine.urls == ["http://gpu07:30000", "http://gpu08:30000"]
    assert load_config(["--engine.url=http://gpu07:30000"], "").engine.urls == ["http://gpu07:30000"]


@pytest.mark.parametrize("url", ["gpu07:30000", "http://[::1", "http://gpu07:port", "http://", "[http://a"])
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    line = refused(lambda: load_config(["--engine.url", url], "gigpo-mega train"))
    assert line.startswith(("engine.url '", "--engine.url: '["))


def test_text_may_begin_with_a_dollar_sign() -> None:
    said = "$100 is your budget. Spend it."
    found = load_config(["--environment.options.instruction", said], "gigpo-mega train")
    assert found.environment.options == {"instruction": said}
    line = refused(lambda: load_config(["--environment.options.file", "$NO_SUCH_NAME/x"], ""))
    assert "$NO_SUCH_NAME is not set on this machine" in line
