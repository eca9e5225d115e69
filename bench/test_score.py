"""Scoring of every text of the matrix."""

from quantbench.suite.test_score import test_score

__all__ = ["test_score"]
