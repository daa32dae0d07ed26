"""Decisions of the benchmark harness, each for itself."""
