"""The benchmark: routed beside BIRD and FRR on one machine, in one run (docs/benchmarks.md).

One daemon under test in a network namespace on one core, synthetic peers (load.c) in another on a second core. `scenarios`
does one run and measures it, `contenders` configures each daemon for the same work, `__main__` repeats and prints.
"""
