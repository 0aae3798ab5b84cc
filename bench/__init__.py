"""Benchmarks: Herald beside its peers, and Herald under load. They don't travel to Lambda.

`make bench` runs them all, `make bench QUICK=1` only shows that they work. Each module says what it
measures, which command runs it alone, and how to read its figures. Results are in `bench/results`.
"""
