"""Comparisons of configurations over seeds, and searches for one."""
