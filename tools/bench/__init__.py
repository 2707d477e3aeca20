"""Logic of the benchmarks; tools/bench_*.py parse the options and print."""
