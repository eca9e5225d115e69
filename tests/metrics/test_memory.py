"""Bytes and bits per weight, and reasons where this device or runtime has no such figure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from quantbench.metrics.memory import memory
from quantbench.record import Missing
from quantbench.trace import WeightMemory

if TYPE_CHECKING:
    from quantbench.trace import Trace


def test_bytes_are_the_traces_and_bits_follow(trace: Trace) -> None:
    values = memory.compute(trace, None)
    assert values["weight_bytes"] == 500 + 62
    assert values["bits_per_weight"] == pytest.approx(8 * 562 / 1000)
    assert (values["footprint_bytes"], values["artifact_bytes"], values["weight_bytes_running"]) == (500, 600, 562)
    assert (values["peak_rss_bytes"], values["load_peak_rss_bytes"]) == (9000, 9500)
    assert values["peak_rss_growth_bytes"] == 9000 - 4000
    assert (values["rss_anon_bytes"], values["rss_file_bytes"]) == (5000, 3000)


def test_quantization_state_counts_as_weight(trace: Trace) -> None:
    """NF4 in blocks of 64 with float32 absmax: 4.5 bits a weight, of which transformers' footprint sees 4."""
    weights = WeightMemory(by_kind={"parameters": 64_000 // 2, "absmax": 64_000 // 64 * 4}, footprint_bytes=64_000 // 2)
    values = memory.compute(replace(trace, weights=weights, parameters=64_000), None)
    assert values["bits_per_weight"] == pytest.approx(4.5)
    assert values["footprint_bytes"] < values["weight_bytes"]


def test_on_the_cpu_the_devices_figures_have_a_reason(trace: Trace) -> None:
    values = memory.compute(trace, None)
    for name in ("peak_device_allocated_bytes", "peak_device_reserved_bytes"):
        assert values[name] == Missing("the model ran on the CPU")


def test_on_a_gpu_they_are_figures(trace: Trace) -> None:
    peak = replace(trace.peak, device_allocated_bytes=0, device_reserved_bytes=7)
    values = memory.compute(replace(trace, peak=peak), None)
    assert (values["peak_device_allocated_bytes"], values["peak_device_reserved_bytes"]) == (0, 7)


def test_what_the_runtime_does_not_say_has_a_reason(trace: Trace) -> None:
    values = memory.compute(replace(trace, weights=WeightMemory(by_kind={"tensors": 8}), artifact_bytes=None), None)
    for name in ("footprint_bytes", "artifact_bytes"):
        found = values[name]
        assert isinstance(found, Missing)
        assert found.reason
