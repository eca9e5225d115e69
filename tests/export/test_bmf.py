"""Bencher Metric Format."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quantbench import load
from quantbench.export import export
from quantbench.results.schema import table_columns

if TYPE_CHECKING:
    import pandas as pd

LONGEST_BENCHMARK = 1024  # bytes
LONGEST_MEASURE = 64


def test_a_benchmark_is_a_scenario_and_a_measure_a_metric(frame: pd.DataFrame, parsed: Callable[..., Any]) -> None:
    found = parsed("bmf", frame)
    assert found["canary/bitsandbytes-nf4/ten"] == {
        "ln_ppl_ratio": {"value": -0.001},
        "kld_mean": {"value": 0.0625},  # one end of an interval is no interval
        "decode_tps": {"value": 100.5, "lower_value": 99.0, "upper_value": 102.25},
        "weight_bytes": {"value": 2**40 + 1},
    }
    assert sorted(found) == [
        "canary/bitsandbytes-nf4/ten", "canary/gguf-q2_k/ten", "canary/gguf-q8_0/ten",
        "canary/torch-fp32-control/ten", "canary/torch-fp32/ten",
    ]  # fmt: skip


def test_repeats_are_one_metric(frame: pd.DataFrame, parsed: Callable[..., Any]) -> None:
    assert parsed("bmf", frame)["canary/gguf-q8_0/ten"] == {
        "decode_tps": {"value": 200.0, "lower_value": 98.0, "upper_value": 301.0},
        "weight_bytes": {"value": 10},
    }, "the median, from the lowest to the highest end; ttft_s is missing in one of them"


def test_direction_is_a_choice(frame: pd.DataFrame, parsed: Callable[..., Any]) -> None:
    lower, higher = (parsed("bmf", frame, better=better)["canary/gguf-q8_0/ten"] for better in ("lower", "higher"))
    assert (list(lower), list(higher)) == (["weight_bytes"], ["decode_tps"])


def test_names_are_as_short_as_bencher_wants_them(
    store: Callable[..., str], make: Callable[..., Any], parsed: Callable[..., Any]
) -> None:
    fits, first, second = "m" * 1000, "\u00e4" * 700 + "1", "\u00e4" * 700 + "2"
    frame = load(store([make("gguf/q8_0", model=model, decode_tps=1.0) for model in (fits, first, second)]))
    names = list(parsed("bmf", frame))
    assert names[0] == f"{fits}/gguf-q8_0/ten"
    assert len(set(names)) == 3
    assert all(len(name.encode()) <= LONGEST_BENCHMARK for name in names)
    assert all(name.startswith("\u00e4" * 400) for name in names[1:])
    assert all(len(column.name) <= LONGEST_MEASURE for column in table_columns("scenarios"))


def test_without_figures_there_is_no_report(frame: pd.DataFrame) -> None:
    assert list(export("bmf", frame[frame["status"] != "ok"])) == []
