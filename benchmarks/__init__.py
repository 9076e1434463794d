"""Side-by-side measurements against peers: `python -m benchmarks run NAME [--json]`, `python -m benchmarks check`.

Every benchmark is a module `benchmarks/NAME.py` with a function `benchmark(scale) -> Benchmark`. Sides run interleaved
in one process tree, at least five rounds; medians with spread, ratios against the peer, and the limit beside them.
"""
