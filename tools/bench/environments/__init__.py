"""Benchmarks of the environments: each module has `bench(options)` and `lines(result)`."""
