"""The registry of estimators, the user's own ones, and the two backends."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import CASES, Episode, episode, table

from gigpo_mega.algorithms import device
from gigpo_mega.algorithms.advantage import BUILT_IN, check_advantage, estimate, lookup_estimator
from gigpo_mega.config import AdvantageConfig
from gigpo_mega.errors import ConfigError, UserError
from gigpo_mega.types import Advantages, RowTable

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/estimators.md").read_text(encoding="utf-8")
RETURNS = """
import numpy as np
from gigpo_mega.types import Advantages

def whole(rows, cfg, **changed):
    zeros = np.zeros(len(rows), dtype=np.float32)
    columns = {"total": zeros, "episode": zeros, "step": zeros, "step_group": zeros.astype(np.int64)}
    return Advantages(**(columns | changed))

def nothing(rows, cfg): return None
def short(rows, cfg): return whole(rows, cfg, total=np.zeros(1, dtype=np.float32))
def double(rows, cfg): return whole(rows, cfg, episode=np.zeros(len(rows)))
def plain(rows, cfg): return whole(rows, cfg, step=[0.0] * len(rows))
def nan(rows, cfg): return whole(rows, cfg, step=np.array([0.0, np.nan], dtype=np.float32))
"""
CALLS = """
from builtins import divmod

def two(rows, cfg): ...
def more(rows, cfg, scale=1.0): ...
def any_number(*given): ...
class Called:
    def __init__(self, rows, cfg): ...

def one_argument(rows): ...
def three(rows, cfg, extra): ...
def by_name(rows, *, cfg): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory on the path, as every program has; its modules are forgotten again."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*filter(None, sys.path), str(tmp_path)])
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def random_table(seed: int = 0, tasks: int = 4) -> RowTable:
    rng = np.random.default_rng(seed)
    episodes = []
    for index in range(5 * tasks):
        steps = int(rng.integers(1, 6))
        reward = np.where(rng.random(steps) < 0.5, rng.normal(size=steps), 10.0)
        states = [f"room {letter}" for letter in rng.choice(list("abc"), steps)]
        valid = (rng.random(steps) < 0.8).tolist()
        won = bool(rng.random() < 0.3)
        episodes.append(Episode(index % tasks, reward.tolist(), states, valid, won=won))
    return table(episodes)


def test_the_example_of_the_documentation_gives_its_numbers(folder: Path) -> None:
    [code] = re.findall(r"```python\n# my_estimators\.py\n(.*?)```", PAGE, re.DOTALL)
    (folder / "my_estimators.py").write_text(code, encoding="utf-8")
    lines = re.findall(r"^\| [01] \|.*$", PAGE, re.MULTILINE)
    values = np.array([[float(cell) for cell in line.strip("|").split("|")] for line in lines])
    rows = table([episode(0, *values[values[:, 0] == index, 2].tolist()) for index in (0, 1)])
    name = "my_estimators:task_level"
    cfg = AdvantageConfig(estimator=name, gamma=0.5, omega=1.0, normalization="mean")
    found = estimate(rows, cfg)
    assert found.episode.tolist() == values[:, 5].tolist()
    assert found.step.tolist() == values[:, 6].tolist()
    assert found.total.tolist() == values[:, 7].tolist()


def test_the_documentation_lists_the_estimators_and_the_limit() -> None:
    assert re.findall(r"^\| `(\w+)` \| .*arxiv", PAGE, re.MULTILINE) == list(BUILT_IN)
    assert f"at least {device.GPU_ROWS:,} rows" in PAGE


def test_an_unknown_estimator_is_refused_with_the_known_ones() -> None:
    said = (
        r"^advantage\.estimator: unknown estimator 'gigpoo'; known: gigpo, grpo, rloo, "
        r"reinforce_plus_plus_baseline, hgpo, g2po, graphgpo, gagpo, "
        r"or your own function as module:function \(docs/estimators\.md\)$"
    )
    with pytest.raises(ConfigError, match=said):
        lookup_estimator("gigpoo")
    with pytest.raises(ConfigError, match=r"unknown estimator ':f'"):
        check_advantage(AdvantageConfig(estimator=":f"))


def test_an_estimator_that_cannot_be_imported_says_why(folder: Path) -> None:
    for module, text in (
        ("divides", "1 / 0\n"),
        ("unnamed", "def f(rows: RowTable, cfg): ...\n"),
        ("unclosed", "def f(rows, cfg:\n"),
        ("needing", "\nimport nowhere_to_be_found\n"),
        ("other_estimators", "constant = 3\ndef task_level(rows, cfg): ...\n"),
    ):
        (folder / f"{module}.py").write_text(text)
    for name, why in (
        ("missing_estimators:f", r"No module named 'missing_estimators'; run in the folder of "
         "missing_estimators.py, or set PYTHONPATH$"),
        ("divides:f", r"ZeroDivisionError: division by zero \(.*divides.py, line 1\); correct it there$"),
        ("unnamed:f", r"NameError: name 'RowTable' .*\(.*unnamed.py, line 1\); correct it there$"),
        ("unclosed:f", r"'\(' was never closed \(unclosed.py, line 1\); correct it there$"),
        ("needing:f", r"No module named .*\(.*needing.py, line 2\); correct it there, or install it$"),
        ("other_estimators:tsk_level", r"module 'other_estimators' has no attribute 'tsk_level'; functions "
         "there: task_level$"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"^advantage\.estimator {name}: (\w+: )?{why}"):
            lookup_estimator(name)
    with pytest.raises(ConfigError, match=r"other_estimators:constant is int, not a function"):
        lookup_estimator("other_estimators:constant")


def test_an_estimator_that_cannot_be_called_with_rows_and_configuration_is_refused(folder: Path) -> None:
    (folder / "my_calls.py").write_text(CALLS)
    for name in ("two", "more", "any_number", "Called", "divmod"):
        check_advantage(AdvantageConfig(estimator=f"my_calls:{name}"))
    for name, why in (
        ("one_argument", "too many positional arguments"),
        ("three", "missing a required argument: 'extra'"),
        ("by_name", "too many positional arguments"),
    ):
        said = rf"my_calls:{name} cannot be called as {name}\(rows, cfg\): {why}; give it these two"
        with pytest.raises(ConfigError, match=rf"^advantage\.estimator {said}"):
            check_advantage(AdvantageConfig(estimator=f"my_calls:{name}"))


def test_what_an_estimator_returns_must_fit_the_rows(folder: Path) -> None:
    (folder / "my_results.py").write_text(RETURNS)
    rows = table([episode(0, 1.0, 2.0)])
    assert estimate(rows, AdvantageConfig(estimator="my_results:whole")).total.tolist() == [0.0, 0.0]
    for name, said in (
        ("nothing", r"returned NoneType; it must return gigpo_mega\.types\.Advantages"),
        ("short", r"returned total as float32\[1\]; it must be a numpy array float32\[2\]"),
        ("double", r"returned episode as float64\[2\]; it must be a numpy array float32\[2\]"),
        ("plain", r"returned step as list\[\]; it must be a numpy array float32\[2\]"),
        ("nan", r"returned step nan for row 1; all values must be finite"),
    ):
        with pytest.raises(UserError, match=rf"^advantage\.estimator my_results:{name} {said}"):
            estimate(rows, AdvantageConfig(estimator=f"my_results:{name}"))


def assert_equal(found: Advantages, expected: Advantages) -> None:
    """Ids bitwise, values to 1e-6."""
    np.testing.assert_array_equal(found.step_group, expected.step_group, strict=True)
    for name in ("total", "episode", "step"):
        one, other = getattr(found, name), getattr(expected, name)
        assert isinstance(one, np.ndarray)
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6, strict=True)


ON_GPU = [(estimator, preset) for estimator, preset in CASES if BUILT_IN[estimator].on_gpu]


def both(rows: RowTable, estimator: str, preset: str, **options: float) -> tuple[Advantages, Advantages]:
    """The advantages of `rows` by Triton and by numpy."""
    triton, numpy = (
        AdvantageConfig(estimator=estimator, preset=preset, backend=name, **options)  # pyright: ignore
        for name in ("triton", "numpy")
    )
    return estimate(rows, triton), estimate(rows, numpy)


@pytest.mark.interpret
@pytest.mark.parametrize(("estimator", "preset"), ON_GPU, ids=[f"{e}-{p}" for e, p in ON_GPU])
def test_triton_and_numpy_agree(estimator: str, preset: str) -> None:
    found, expected = both(random_table(), estimator, preset)
    assert_equal(found, expected)
    assert np.count_nonzero(expected.total) > 20
    assert (len(set(expected.step_group.tolist())) > 3) == (estimator == "gigpo")


@pytest.mark.interpret
def test_triton_takes_groups_of_similar_texts_from_the_host() -> None:
    texts = ["go to shelf 1", "go to shelf 2", "look around the kitchen"]
    rows = table([Episode(7, [float(i)], [text], [True]) for i, text in enumerate(texts)])
    found, expected = both(rows, "gigpo", "paper", similarity=0.9)
    assert_equal(found, expected)
    assert found.step_group.tolist() == [0, 0, 1]


@pytest.mark.gpu
@pytest.mark.parametrize(("estimator", "preset"), ON_GPU, ids=[f"{e}-{p}" for e, p in ON_GPU])
def test_a_large_table_agrees_on_the_gpu(estimator: str, preset: str) -> None:
    rows = random_table(tasks=2000)
    found, expected = both(rows, estimator, preset)
    assert_equal(found, expected)


def test_auto_uses_the_gpu_for_many_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, many in (("cuda", "cuda"), ("cpu", None), (None, None)):  # "cpu" is Triton's interpreter
        monkeypatch.setattr(device, "triton_device", lambda here=here: here)
        assert device.column_device("auto", device.GPU_ROWS - 1) is None
        assert device.column_device("auto", device.GPU_ROWS) == many
        assert device.column_device("numpy", device.GPU_ROWS) is None


def test_triton_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "triton_device", lambda: None)
    check_advantage(AdvantageConfig())
    with pytest.raises(
        ConfigError, match=r"^advantage\.backend triton needs a CUDA device and triton, which"
    ):
        check_advantage(AdvantageConfig(backend="triton"))


@pytest.mark.parametrize("estimator", [name for name in BUILT_IN if not BUILT_IN[name].on_gpu])
def test_an_estimator_of_the_host_refuses_triton_and_takes_numpy_for_auto(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "triton_device", lambda: "cuda")
    monkeypatch.setattr(device, "GPU_ROWS", 1)  # the columns of gigpo would go to the GPU
    rows = random_table()
    said = (
        rf"^advantage\.backend triton: advantage\.estimator {estimator} runs on the host only; set it to auto"
    )
    for act in (check_advantage, lambda cfg: estimate(rows, cfg)):
        with pytest.raises(ConfigError, match=said):
            act(AdvantageConfig(estimator=estimator, backend="triton"))
    auto, numpy = (estimate(rows, AdvantageConfig(estimator=estimator, backend=b)) for b in ("auto", "numpy"))
    np.testing.assert_array_equal(auto.total, numpy.total)


def test_an_estimator_without_official_code_has_no_reference_preset() -> None:
    rows = random_table()
    for act in (check_advantage, lambda cfg: estimate(rows, cfg)):
        with pytest.raises(ConfigError, match=r"advantage\.estimator gagpo does not have; set it to paper"):
            act(AdvantageConfig(estimator="gagpo", preset="reference"))


CHANGED: dict[str, Any] = {
    "gamma": 0.5, "omega": 0.25, "episode_weight": 0.25, "normalization": "mean", "epsilon": 0.5,
    "similarity": 0.5, "history_length": 0, "history_alpha": 3.0, "gae_lambda": 0.1, "distance": "relative",
    "goal_reward": 3.0,
}  # fmt: skip


@pytest.mark.parametrize("estimator", BUILT_IN)
def test_a_field_has_an_effect_or_is_refused(estimator: str) -> None:
    rows, built_in = random_table(), BUILT_IN[estimator]
    always = {"estimator", "preset", "backend", "invalid_penalty"}
    assert CHANGED.keys() == {field.name for field in fields(AdvantageConfig)} - always
    plain = AdvantageConfig(estimator=estimator)
    check_advantage(plain)
    for name, value in CHANGED.items():
        cfg = replace(plain, **{name: value})
        same = np.array_equal(estimate(rows, cfg).total, estimate(rows, plain).total)
        if name in built_in.reads:
            check_advantage(cfg)
            assert not same or (estimator, name) == ("rloo", "normalization")
        else:
            assert same, name
            with pytest.raises(ConfigError, match=rf"^advantage\.{name} {value} has no effect on advantage"):
                check_advantage(cfg)


def test_a_user_s_estimator_may_read_every_field(folder: Path) -> None:
    (folder / "my_reader.py").write_text(RETURNS)
    check_advantage(AdvantageConfig(estimator="my_reader:whole", **CHANGED))


def test_advantages_on_the_host_load_no_torch() -> None:
    code = (
        "import sys, gigpo_mega.algorithms.advantage as a; from gigpo_mega.config import AdvantageConfig; "
        "from gigpo_mega.types import RowTable; a.check_advantage(AdvantageConfig()); "
        "a.estimate(RowTable.from_groups([]), AdvantageConfig()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
