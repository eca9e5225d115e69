"""Calls of every module without tokens of the matrix."""

from quantbench.suite.test_call import test_call

__all__ = ["test_call"]
