"""Programs for a checkout: benchmarks (tools/bench), comparisons with other implementations (tools/oracles).

`make setup` installs the checkout in editable mode, which also makes this folder importable (setup.py), so
that `python tools/NAME.py` finds `tools.bench`; without an installation, use `python -m tools.NAME`. A wheel
does not hold this folder: gigpo_mega/commands has what its users need.
"""
