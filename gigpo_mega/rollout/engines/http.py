"""HTTP to an engine, past any proxy: an engine is on this machine or in its cluster."""

from __future__ import annotations

import json
from http.client import HTTPResponse
from urllib.request import ProxyHandler, Request, build_opener

_DIRECT = build_opener(ProxyHandler({}))


def open_direct(request: str | Request, timeout: float) -> HTTPResponse:
    """Open `request` without the environment's proxies; raises URLError and OSError as `urlopen` does."""
    return _DIRECT.open(request, timeout=timeout)


def weight_version(url: str, timeout: float = 30.0) -> str | None:
    """The tag of the weights that the server at `url` samples with; raises OSError or ValueError."""
    with open_direct(f"{url}/model_info", timeout) as answer:
        return json.loads(answer.read()).get("weight_version")
