"""What an experiment runs: a recipe, its variants, and the seeds that each of them is run with."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from gigpo_mega.config import Config, recipes
from gigpo_mega.config.checks import STRICT, require
from gigpo_mega.config.core_yaml import leaves, read
from gigpo_mega.config.load import complaints, load_config
from gigpo_mega.errors import ConfigError

Settings = dict[str, Any]  # a field's path, e.g. advantage.gamma, and its value

_OF_THE_COLDSTART = ("environment.", "prompt.", "rollout.max_", "coldstart.", "scratch.")
_OF_THE_RUNNER = {"seed", "output", "resume"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, config=STRICT)
class Spec:
    """One experiment: every variant is run with every seed."""

    recipe: Path
    """Configuration that all runs share."""
    seeds: list[int]
    """Seeds of task order, shuffling and sampling, and of the cold start if there is one."""
    variants: dict[str, Settings]
    """Name of each variant, and the fields in which it differs from the recipe."""
    settings: Settings
    """Fields in which all runs differ from the recipe."""
    references: list[str] = field(default_factory=list[str])
    """Variants that all others are compared with; the curves are drawn over the first one's."""
    main: list[str] = field(default_factory=list[str])
    """A variant and a reference: their difference on the panel is the main question, others are secondary."""
    power_for: list[int] = field(default_factory=list[int])
    """A pilot's: numbers of seeds that a later experiment may have; the summary says what they could show."""
    coldstart: Path | None = None
    """Configuration of the cold start on top of the recipe; null: all runs start from the recipe's policy."""
    seeds_per_coldstart: int = 1
    """Seeds in a row that share a cold start, which has the first one's seed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(bool(self.seeds), "seeds is empty; name at least one")
        require(len(set(self.seeds)) == len(self.seeds), f"seeds {self.seeds} names one twice")
        require(min(self.seeds) >= 0, f"seeds must be >= 0, got {min(self.seeds)}")
        require(max(self.seeds) < 2**32, f"seeds must be < 2^32, got {max(self.seeds)}")
        require(self.seeds_per_coldstart >= 1, "seeds_per_coldstart must be >= 1")
        require(min(self.power_for, default=2) >= 2, f"power_for {self.power_for}: numbers of seeds, from 2")
        require(bool(self.variants), "variants is empty; name at least one")
        for name in self.variants:
            legal = _NAME.fullmatch(name) is not None and name != COLDSTART
            require(legal, f"variants: {name!r} must be a word of a-z, 0-9 and _ other than {COLDSTART}")
        for name in self.references:
            require(name in self.variants, f"references: {name!r} is none of the variants")
        for where, settings in (("settings", self.settings), *self.variants.items()):
            for name in _OF_THE_RUNNER & settings.keys():
                raise ValueError(f"{where}: {name} is set for each run by the experiment; leave it out")
        pair = len({*self.main}) == 2 and self.main[0] in self.variants and self.main[1] in self.references
        require(not self.main or pair, f"main {self.main}: name a variant and the reference it is held to")
        return self

    def coldstart_seed(self, seed: int) -> int:
        """The seed of the cold start that the runs of `seed` begin with."""
        place = self.seeds.index(seed)
        return self.seeds[place - place % self.seeds_per_coldstart]

    def words(self, variant: str = "") -> list[str]:
        """The command-line words of the configuration of all runs, or of a variant's."""
        return [str(self.recipe), *flags(self.settings), *flags(self.variants.get(variant, {}))]

    def coldstart_words(self) -> list[str]:
        """Those of the cold start, which only settings of demonstrations, policy and cloning concern."""
        return [str(self.recipe), str(self.coldstart), *flags(self._of_the_coldstart)]

    def config(self, variant: str = "") -> Config:
        """The configuration of a variant or COLDSTART, seed, output and policy apart; raises ConfigError."""
        words = self.coldstart_words() if variant == COLDSTART else self.words(variant)
        return load_config(words, "gigpo-mega experiment")

    def has(self, variant: str, seed: int) -> bool:
        """Whether a run, or the panel of a cold start, is of this experiment as it is."""
        named = variant in self.variants or (variant == COLDSTART and self.coldstart is not None)
        return named and seed in self.seeds

    def settings_of(self, variant: str) -> Settings:
        """The fields in which a variant, or COLDSTART, differs from its files."""
        settings = self._of_the_coldstart if variant == COLDSTART else self.settings
        return settings | self.variants.get(variant, {})

    @property
    def _of_the_coldstart(self) -> Settings:
        return {path: v for path, v in self.settings.items() if path.startswith(_OF_THE_COLDSTART)}


COLDSTART = "coldstart"  # takes the place of a variant in the names of cold starts


def flags(settings: Mapping[str, Any]) -> list[str]:
    """`settings` as words of a command line."""
    texts = {path: value if isinstance(value, str) else json.dumps(value) for path, value in settings.items()}
    return [f"--{path}={text}" for path, text in texts.items()]


def load_spec(file: Path) -> Spec:
    """The experiment that `file` describes, every variant of which is a valid configuration.

    Raises ConfigError that names file and field otherwise.
    """
    spec = _read_spec(file)
    for name, recipe in (("recipe", spec.recipe), ("coldstart", spec.coldstart)):
        try:
            if recipe is not None:
                recipes.check_found(recipe)
        except ConfigError as error:
            raise ConfigError(f"{file}: {name}: {error}") from None
    if spec.coldstart is not None:
        try:
            spec.config(COLDSTART)
        except ConfigError as error:
            raise ConfigError(f"{file}: coldstart: {error}") from None
    for variant in spec.variants:
        try:
            cfg = spec.config(variant)
        except ConfigError as error:
            raise ConfigError(f"{file}: variants.{variant}: {error}") from None
        if cfg.iterations < 1:
            raise ConfigError(f"{file}: variants.{variant}: iterations is {cfg.iterations}; a run needs one")
        if spec.coldstart is not None and cfg.model != spec.config().model:
            raise ConfigError(f"{file}: variants.{variant} sets model, but runs of a seed share a cold start")
    return spec


def _read_spec(file: Path) -> Spec:
    """What `file` says, before any recipe is read; raises ConfigError for keys and values that none has."""
    values, known = read(file), [item.name for item in fields(Spec)]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"{file}: unknown key {name}; {hint}")
    for name in ("recipe", "seeds", "variants"):
        if name not in values:
            raise ConfigError(f"{file}: {name} is missing; docs/experiments.md has an example")
    try:
        found = TypeAdapter(Spec).validate_json(json.dumps({"settings": {}, **values}), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{file}: {complaints(error, {})}") from None
    variants = {name: dict(leaves(settings)) for name, settings in found.variants.items()}
    return replace(found, settings=dict(leaves(found.settings)), variants=variants)
