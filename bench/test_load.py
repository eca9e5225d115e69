"""Loading of every scenario of the matrix."""

from quantbench.suite.test_load import test_load

__all__ = ["test_load"]
