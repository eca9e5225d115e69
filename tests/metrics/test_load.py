"""Import, load and quantization times are the trace's own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quantbench.core.record import Missing
from quantbench.metrics.load import load

if TYPE_CHECKING:
    from quantbench.core.trace import Trace


def test_times_are_taken_as_they_are(trace: Trace) -> None:
    assert dict(load.compute(trace, None)) == {"import_s": 1.5, "load_s": 0.25, "quantize_s": 0.75}


def test_a_method_that_quantizes_while_loading_says_so(trace: Trace) -> None:
    missing = load.compute(replace(trace, quantize_s=None), None)["quantize_s"]
    assert isinstance(missing, Missing)
    assert "load_s" in missing.reason


def test_a_quantization_that_took_no_time_is_a_figure(trace: Trace) -> None:
    assert load.compute(replace(trace, quantize_s=0.0), None)["quantize_s"] == 0.0
