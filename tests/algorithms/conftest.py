"""Property tests have a fixed seed and no deadline: a failure means a change, never chance or load."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
