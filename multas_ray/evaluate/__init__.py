"""Distributed evaluator of networks."""
