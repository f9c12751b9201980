"""Timings: `python -m benchmarks` compares all contestants, each binary here answers a question."""
