"""Prefill and decode of every scenario of the matrix."""

from quantbench.suite.test_latency import test_decode, test_prefill

__all__ = ["test_decode", "test_prefill"]
