"""The parts of tools/gpu_check.py that exercise a run's own code; `python -m tools.gpu PART` runs one."""
