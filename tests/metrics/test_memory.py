"""Bytes and bits per weight, and reasons where this device or runtime has no such figure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from quantbench.core.record import Missing
from quantbench.core.trace import WeightMemory
from quantbench.metrics.memory import EQUAL, memory

if TYPE_CHECKING:
    from quantbench.core.trace import Trace

DEVICE = (
    "peak_device_allocated_bytes", "peak_device_reserved_bytes", "load_peak_device_allocated_bytes",
    "peak_device_process_bytes", "peak_device_used_bytes", "device_context_bytes",
)  # fmt: skip


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


SHARED = "tensors that share storage are counted more than once"
DENSE = "tensor subclasses report the size of the dense tensors that they stand for"
LARGER = "storage is larger than the tensors in it"


@pytest.mark.parametrize(
    ("by_kind", "footprint", "note"),
    [
        ({"parameters": 500, "buffers": 20}, 520, EQUAL),
        ({"parameters": 500, "buffers": 20, "quantization_state": 0}, 520, EQUAL),
        ({"parameters": 500, "absmax": 62}, 500, "neither parameters nor buffers: absmax"),
        ({"parameters": 0, "packed_weights": 99}, 0, "neither parameters nor buffers: packed weights"),
        ({"parameters": 8, "absmax": 1, "code_book": 2}, 8, "neither parameters nor buffers: absmax, code book"),
        ({"parameters": 100, "tensor_subclasses": 400}, 900, DENSE),
        ({"parameters": 100, "tensor_subclasses": 400}, 500, EQUAL),
        ({"parameters": 100, "buffers": 10}, 142, SHARED),
        ({"parameters": 100}, 90, LARGER),
        ({"parameters": 8, "absmax": 3}, 10, f"-3 bytes: neither parameters nor buffers: absmax; +2 bytes: {SHARED}"),
        ({"parameters": 8, "absmax": 3}, 11, f"-3 bytes: neither parameters nor buffers: absmax; +3 bytes: {SHARED}"),
    ],
)
def test_the_footprints_note_says_what_sets_it_apart(
    by_kind: dict[str, int], footprint: int, note: str, trace: Trace
) -> None:
    """The last case cancels out to equal figures, and is not passed off as equal."""
    weights = WeightMemory(by_kind=by_kind, footprint_bytes=footprint)
    values = memory.compute(replace(trace, weights=weights), None)
    assert values["footprint_note"] == note


def test_the_kinds_are_the_parts_of_the_whole(trace: Trace) -> None:
    weights = WeightMemory(by_kind={"parameters": 500, "buffers": 0, "absmax": 62})
    values = memory.compute(replace(trace, weights=weights), None)
    kinds = json.loads(str(values["weight_kinds"]))
    assert kinds == {"parameters": 500, "absmax": 62}
    assert sum(kinds.values()) == values["weight_bytes"]


def test_without_weights_every_figure_of_them_has_their_reason(trace: Trace) -> None:
    values = memory.compute(replace(trace, weights=None, absent={"weights": "in another process"}), None)
    for name in ("weight_bytes", "weight_kinds", "footprint_bytes", "footprint_note", "bits_per_weight"):
        assert values[name] == Missing("in another process")


def test_on_the_cpu_the_devices_figures_have_a_reason(trace: Trace) -> None:
    values = memory.compute(trace, None)
    for name in DEVICE:
        assert values[name] == Missing("the model ran on the CPU")


def test_on_a_gpu_they_are_figures(trace: Trace) -> None:
    peak = replace(
        trace.peak, device_allocated_bytes=5, device_reserved_bytes=7, load_device_allocated_bytes=11,
        device_process_bytes=13, device_used_bytes=17, device_context_bytes=19,
    )  # fmt: skip
    values = memory.compute(replace(trace, peak=peak), None)
    assert [values[name] for name in DEVICE] == [5, 7, 11, 13, 17, 19]


def test_a_runtime_that_takes_device_memory_by_itself_has_no_zero_for_it(trace: Trace) -> None:
    peak = replace(
        trace.peak, device_allocated_bytes=0, device_reserved_bytes=0, load_device_allocated_bytes=0, device_used_bytes=9,
        absent={"device_process_bytes": "not listed"},
    )  # fmt: skip
    values = memory.compute(replace(trace, peak=peak), None)
    assert values["peak_device_used_bytes"] == 9
    assert values["peak_device_process_bytes"] == Missing("not listed")
    for name in DEVICE[:3]:
        found = values[name]
        assert isinstance(found, Missing)
        assert "unseen by torch" in found.reason


def test_what_the_kernel_does_not_report_has_its_reason_and_costs_that_figure_alone(trace: Trace) -> None:
    """As in gVisor, whose status has VmRSS alone; and where clear_refs cannot be written."""
    lacks, unreset = "lacks VmHWM", "clear_refs cannot be written"
    peak = replace(
        trace.peak, peak_rss_bytes=None, load_peak_rss_bytes=None, rss_anon_bytes=None, device_allocated_bytes=5,
        absent={"peak_rss_bytes": unreset, "load_peak_rss_bytes": unreset, "rss_anon_bytes": lacks},
    )  # fmt: skip
    values = memory.compute(replace(trace, peak=peak), None)
    for name in ("peak_rss_bytes", "peak_rss_growth_bytes", "load_peak_rss_bytes"):
        assert values[name] == Missing(unreset)
    assert values["rss_anon_bytes"] == Missing(lacks)
    assert (values["rss_file_bytes"], values["peak_device_allocated_bytes"]) == (3000, 5)
    peak = replace(trace.peak, start_rss_bytes=None, absent={"start_rss_bytes": lacks})
    values = memory.compute(replace(trace, peak=peak), None)
    assert (values["peak_rss_bytes"], values["peak_rss_growth_bytes"]) == (9000, Missing(lacks))


def test_what_the_runtime_does_not_say_has_a_reason(trace: Trace) -> None:
    values = memory.compute(replace(trace, weights=WeightMemory(by_kind={"tensors": 8}), artifact_bytes=None), None)
    for name in ("footprint_bytes", "footprint_note", "artifact_bytes"):
        found = values[name]
        assert isinstance(found, Missing)
        assert found.reason
