"""Benchmarks that compare: every ratio comes from alternating rounds in one process."""
