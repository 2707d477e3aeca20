"""Properties have a fixed seed and no deadline: a red run means a change, never chance or load."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")
