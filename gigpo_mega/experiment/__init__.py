"""Experiments: a grid of variants and seeds, run to the end and compared seed by seed."""
