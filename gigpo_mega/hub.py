"""Models by their id on the Hugging Face hub, e.g. `Qwen/Qwen2.5-1.5B-Instruct`, in the place of a directory.

`huggingface_hub` finds cache, hub and token as its own commands do (HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE,
HF_ENDPOINT, HF_TOKEN).
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from gigpo_mega.config import recipes
from gigpo_mega.errors import UserError
from gigpo_mega.hf_config import WEIGHTS_INDEX, holds_weights, read_object
from gigpo_mega.launch import leads_node

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_OURS = ("models", "runs")  # folders that pages and recipes write to, whether they exist yet
_SETTINGS = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
_WEIGHTS = "*.safetensors"


def directory(model: Path, weights: bool = True) -> Path:
    """`model` itself, or where the hub's cache has the model of that id; downloads what is missing.

    A path that exists is no id, nor is one in a folder that exists or in models or runs. A complete copy is
    taken as it is, without asking the hub, so that a resumed run gets the revision that it had. Without
    `weights`, configuration and tokenizer are enough. Raises UserError, with the command to run, if the model
    is neither cached nor to be had, or if the cold start of a recipe has yet to make it.
    """
    name = str(model)
    if model.exists():
        return model
    if coldstart := recipes.coldstart_into(model):
        raise UserError(f"model.path: {name} does not exist yet; make it with `{coldstart}`")
    if not _ID.fullmatch(name) or model.parent.is_dir() or model.parent.name in _OURS:
        return model
    from huggingface_hub import try_to_load_from_cache  # some 0.3 s, for those who name an id

    with _alone(name):
        config = try_to_load_from_cache(name, "config.json")
        cached = Path(config).parent if isinstance(config, str) else None
        if cached and (cached / "tokenizer.json").exists() and _complete(cached, weights):
            return cached
        return _download(name, weights)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Wait for the other ranks: one must not take for complete what another is downloading."""
    from huggingface_hub.constants import HF_HUB_CACHE

    lock = Path(HF_HUB_CACHE, ".locks", f"gigpo-mega--{name.replace('/', '--')}.lock")
    with ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(lock.open("w")), fcntl.LOCK_EX)
        except OSError:  # a cache that is only read, or has no locks
            pass
        yield


def _complete(snapshot: Path, weights: bool) -> bool:
    """Whether a folder has the configuration and, with `weights`, all files that hold them."""
    if not (snapshot / "config.json").exists():
        return False
    if not weights:
        return True
    if not (snapshot / WEIGHTS_INDEX).exists():
        return holds_weights(snapshot)
    files = cast("dict[str, str]", read_object(snapshot / WEIGHTS_INDEX).get("weight_map", {})).values()
    return all((snapshot / file).exists() for file in set(files))


def _download(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    wanted = [*_SETTINGS, _WEIGHTS] if weights else [*_SETTINGS]
    if not leads_node():
        disable_progress_bars()
    try:
        found = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns="*/*"))
    except Exception as error:  # no network, no access, no space: all types of its own
        raise _refusal(name, _reason(error)) from None
    if not _complete(found, weights):
        raise _refusal(name, "config.json or *.safetensors are missing in the copy there")
    return found


def _reason(error: Exception) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model, or you may not read it (hf auth login)"
    if isinstance(error, OSError) and error.strerror:  # of this machine
        return error.strerror
    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids downloading it"
    return f"the hub cannot be reached ({type(error.__cause__ or error).__name__})"


def _refusal(name: str, reason: str) -> UserError:
    from huggingface_hub.constants import HF_HUB_CACHE

    return UserError(
        f"model.path: {name} is no folder, and the model with that hub id is not in {HF_HUB_CACHE}: "
        f"{reason}; run `hf download {name}` where the hub can be reached, or give a Hugging Face directory"
    )
