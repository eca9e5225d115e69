"""Records of the PyTorch HUD's benchmark database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from quantbench import load

if TYPE_CHECKING:
    import pandas as pd

Parsed = Callable[..., Any]
FAILURE = "FAILURE_REPORT"


@pytest.fixture
def found(frame: pd.DataFrame, parsed: Parsed) -> dict[tuple[str, str], dict[str, Any]]:
    """Records by scenario and metric."""
    listed = parsed("pytorch-hud", frame)
    by_name = {(each["benchmark"]["extra_info"]["scenario_id"], each["metric"]["name"]): each for each in listed}
    assert len(by_name) == len(listed), "one record per scenario and metric"
    return by_name


def test_a_record(found: dict[tuple[str, str], dict[str, Any]]) -> None:
    record = found["canary/bitsandbytes-nf4/ten", "decode_tps"]
    assert record["benchmark"] == {
        "name": "quantbench ten",
        "mode": "inference",
        "dtype": "nf4",
        "extra_info": {
            "scenario_id": "canary/bitsandbytes-nf4/ten", "scenario_key": "ab" * 32, "reference": "torch/fp32",
            "instrument_check": "True", "kernel": "a-kernel", "threads": "2", "context": "512",
        },
    }  # fmt: skip
    assert record["model"] == {"name": "canary", "backend": "bitsandbytes"}
    assert record["metric"] == {
        "name": "decode_tps",
        "benchmark_values": [100.5],
        "extra_info": {
            "run_id": "run-1", "started_at": "2026-01-02T03:04:05.000006+00:00", "status": "ok",
            "unit": "tokens/s", "better": "higher", "low": "99.0", "high": "102.25",
        },
    }  # fmt: skip
    (runner,) = record["runners"]
    assert (runner["name"], runner["type"], runner["extra_info"]["isa"]) == ("cpu", "Example CPU", "avx2")
    assert record["dependencies"] == {"torch": {"version": "2.13.0"}, "quantbench": {"version": "0.1.0"}}


def test_a_value_per_process(found: dict[tuple[str, str], dict[str, Any]]) -> None:
    metric = found["canary/gguf-q8_0/ten", "decode_tps"]["metric"]
    assert metric["benchmark_values"] == [100.0, 300.0, 200.0]
    assert (metric["extra_info"]["low"], metric["extra_info"]["high"]) == ("98.0", "301.0")
    assert ("canary/gguf-q8_0/ten", "ttft_s") not in found


def test_what_failed_keeps_its_reason_and_has_no_number(found: dict[tuple[str, str], dict[str, Any]]) -> None:
    failures = {name: each["metric"] for (name, metric), each in found.items() if metric == FAILURE}
    told = {
        name: (
            each["extra_info"]["status"],
            each["extra_info"]["reason"],
            each["extra_info"]["processes"],
            each["benchmark_values"],
        )
        for name, each in failures.items()
    }
    assert told == {
        "canary/torch-fp16/ten": ("oom", "=cmd|'/c calc'!A1", "1 of 1", []),
        "canary/gguf-q2_k/ten": ("crashed", "signal 11", "1 of 2", []),
    }
    assert [metric for name, metric in found if name == "canary/torch-fp16/ten"] == [FAILURE]
    assert not any("torchao" in name for name, _ in found), "what is skipped did not fail"


def test_the_reference_and_its_control_are_two(found: dict[tuple[str, str], dict[str, Any]]) -> None:
    names = ("canary/torch-fp32/ten", "canary/torch-fp32-control/ten")
    assert [found[name, "decode_tps"]["benchmark"]["dtype"] for name in names] == ["fp32", "fp32 (control)"]


def test_a_run_in_which_all_failed_is_told(frame: pd.DataFrame, parsed: Parsed) -> None:
    failed = parsed("pytorch-hud", frame[frame["status"] == "oom"])
    assert [each["metric"]["name"] for each in failed] == [FAILURE]


def test_elsewhere_is_not_this_machine(store: Callable[..., str], make: Callable[..., Any], parsed: Parsed) -> None:
    from dataclasses import replace

    served = make("gguf/q8_0", decode_tps=1.0)
    where = {**served.facts, "device": "", "elsewhere": "the server does not say"}
    (record,) = parsed("pytorch-hud", load(store([replace(served, facts=where)])))
    assert record["runners"] == []
    assert record["benchmark"]["extra_info"]["device"] == "elsewhere"


def test_a_gpu_is_named(frame: pd.DataFrame, parsed: Parsed) -> None:
    on_gpu = frame[frame["method"] == "bitsandbytes"].assign(device_found="cuda:0", gpus="Example GPU")
    record = parsed("pytorch-hud", on_gpu)[0]
    (runner,) = record["runners"]
    assert (runner["name"], runner["type"], runner["gpu_info"]) == ("cuda", "Example GPU", "Example GPU")
