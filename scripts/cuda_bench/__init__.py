"""The parts of scripts/bench_cuda.py: how it measures, and what."""
