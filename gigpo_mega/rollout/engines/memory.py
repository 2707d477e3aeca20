"""The memory of an engine's KV cache, which a learner on the same GPU uses while no episode is played."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from gigpo_mega.rollout.engines.base import EngineError, EngineLost
from gigpo_mega.rollout.engines.http import open_direct

IDLE_SECONDS = 60  # that a server may take until it has no request left


class CacheMemory:
    """Gives the memory of the KV cache of the server at `url` back to the GPU, and takes it again.

    The server was launched with --enable-memory-saver. Its weights and CUDA graphs stay, and addresses stay
    valid; the prefix cache is dropped. Raises EngineError if the server refuses, EngineLost if it fails.
    """

    def __init__(self, url: str, timeout: float = 600.0) -> None:
        self._url, self._timeout = url, timeout
        self._released = False

    def release(self) -> None:
        """Give the memory back, once all requests are done."""
        if not self._released:
            # SGLang asserts that it is idle, and dies otherwise; to flush it waits until it is.
            self._post(f"/flush_cache?timeout={IDLE_SECONDS}")
            self._post("/release_memory_occupation", tags=["kv_cache"])
            self._released = True

    def resume(self) -> None:
        """Take the memory again."""
        if self._released:  # SGLang dies of a tag that is not released
            self._post("/resume_memory_occupation", tags=["kv_cache"])
            self._released = False

    def _post(self, path: str, **payload: Any) -> None:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, json.dumps(payload).encode(), headers)
        try:
            with open_direct(request, self._timeout + IDLE_SECONDS):
                pass
        except urllib.error.HTTPError as error:
            reason = f"{error.code}: {error.read()[:300].decode('utf-8', 'replace').strip()}"
            kind = EngineError if error.code < 500 else EngineLost
        except (urllib.error.URLError, HTTPException, OSError) as error:
            reason, kind = str(error), EngineLost
        else:
            return
        raise kind(
            f"{self._url}{path}: {reason}; the server's log says more, and engine.release_memory false keeps "
            "its KV cache where it is"
        )
