"""Fallbacks are what the file's maker was told; without them the reason is the runtime's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quantbench.core.record import Missing
from quantbench.metrics.fallback import fallback

if TYPE_CHECKING:
    from quantbench.core.trace import Trace


def test_counts_are_taken_from_the_facts(trace: Trace) -> None:
    facts = {"kernel": "llama.cpp-cpu", "fallback_tensors": "180", "fallback_bytes": "98000000"}
    assert dict(fallback.compute(replace(trace, facts=facts), None)) == {"fallback_tensors": 180, "fallback_bytes": 98000000}


def test_others_have_a_reason(trace: Trace) -> None:
    for kernel, reason in (("llama.cpp-cpu", "does not say which"), ("torch", "not a GGUF file")):
        (found,) = set(fallback.compute(replace(trace, facts={"kernel": kernel}), None).values())
        assert isinstance(found, Missing)
        assert reason in found.reason
