"""`gigpo-mega bug-report`: what it tells, and what it keeps to itself."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gigpo_mega.commands.bug_report import main, redacted
from gigpo_mega.errors import UserError


@pytest.mark.parametrize(("text", "kept"), [
    ("api_key: 0123abcd", "api_key: ***"),
    ("engine: {arguments: [--api-key, s3cret]}", "engine: {arguments: [--api-key, ***]}"),
    ("- --api-key\n- s3cret\n- --dtype", "- --api-key\n- ***\n- --dtype"),
    ("--hf-token=abc --seed 3", "--hf-token=*** --seed 3"),
    ('{"password": "x y", "a": 1}', '{"password": "***", "a": 1}'),
    ("  password: my own, secret pass\n  seed: 3", "  password: ***\n  seed: 3"),
    ("secret_key: 'it is, this'", "secret_key: '***'"),
    ("AWS_SECRET_ACCESS_KEY=abc/def+g OPENAI_KEY=xyz A=1", "AWS_SECRET_ACCESS_KEY=*** OPENAI_KEY=*** A=1"),
    ("private_key: abc", "private_key: ***"),
    ("passphrase: abc", "passphrase: ***"),
    ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic ***"),
    ("https://ghtoken@host/x http://me:pa@ss@host", "https://***@host/x http://***@host"),
    ("token: 123456", "token: ***"),
    ("Authorization: Bearer abcdefgh.ijk=", "Authorization: Bearer ***"),
    ("http://me:pass@host:80/x", "http://***@host:80/x"),
    ("said hf_abcdefghijklmnop and sk-abcdefghijkl", "said *** and ***"),
    ("max_total_tokens: 8192", "max_total_tokens: 8192"),
    ("--max-total-tokens 8192", "--max-total-tokens 8192"),
    ("max_response_tokens: null, tokenizer: x", "max_response_tokens: null, tokenizer: x"),
    ("eos_token_id: 7, the token is sampled", "eos_token_id: 7, the token is sampled"),
])  # fmt: skip
def test_secrets_are_replaced_and_counts_of_tokens_are_not(text: str, kept: str) -> None:
    assert redacted(text) == kept


def test_home_and_host_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/somewhere/ann"))
    monkeypatch.setattr(socket, "gethostname", lambda: "box7")
    said = redacted("/somewhere/ann/runs on box7:8000, /somewhere/anna, box77")
    assert said == "~/runs on HOST:8000, /somewhere/anna, box77"


def test_a_run_is_told_by_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("iterations: 3\nengine: {arguments: [--api-key, s3cret]}\n")
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}\n{"iteration": 1}\n')
    (tmp_path / "sglang.log").write_text("".join(f"line {number}\n" for number in range(100)))
    (tmp_path / "episodes.jsonl").write_text('{"observation": "private"}\n')
    (tmp_path / "checkpoints" / "iteration_000001").mkdir(parents=True)
    main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "torch: " in said
    assert "commit: " in said
    assert "iterations: 3" in said
    assert '{"iteration": 1}' in said
    assert '{"iteration": 0}' not in said
    assert ("line 60\n" in said, "line 59\n" in said) == (True, False)
    assert "files: checkpoints/iteration_000001" in said
    assert "s3cret" not in said
    assert "private" not in said


def test_variables_are_told_by_name_only_if_they_are_harmless(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    main([])
    said = capsys.readouterr().out
    assert "OMP_NUM_THREADS: '1'" in said
    assert "WANDB_API_KEY" not in said
    assert "0" * 40 not in said


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent is no folder; give that of the run"):
        main([str(tmp_path / "absent")])
