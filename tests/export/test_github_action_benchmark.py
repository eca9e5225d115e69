"""The two lists of github-action-benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import UsageError
from quantbench.export import export
from quantbench.results.schema import table_columns

if TYPE_CHECKING:
    import pandas as pd

Parsed = Callable[..., Any]
FORMAT = "github-action-benchmark"
EXTRA = "run_id: run-1\ndevice_found: cpu\nkernel: a-kernel"


def test_bigger_is_better(frame: pd.DataFrame, parsed: Parsed) -> None:
    def entry(variant: str, value: float, **more: str) -> dict[str, Any]:
        return {"name": f"canary/{variant}/ten decode_tps", "value": value, "unit": "tokens/s", "extra": EXTRA, **more}

    assert parsed(FORMAT, frame, better="higher") == [
        entry("torch-fp32", 50.0),
        entry("torch-fp32-control", 51.0),
        entry("bitsandbytes-nf4", 100.5, range="99 to 102.25"),
        entry("gguf-q8_0", 200.0, range="98 to 301"),
        entry("gguf-q2_k", 70.0),
    ]


def test_smaller_is_better(frame: pd.DataFrame, parsed: Parsed) -> None:
    found = {
        each["name"].removeprefix("canary/"): (each["value"], each["unit"]) for each in parsed(FORMAT, frame, better="lower")
    }
    assert found == {
        "torch-fp32/ten kld_mean": (0.0, "nats"),
        "torch-fp32/ten weight_bytes": (40, "bytes"),
        "torch-fp32-control/ten kld_mean": (0.0, "nats"),
        "torch-fp32-control/ten weight_bytes": (40, "bytes"),
        "bitsandbytes-nf4/ten kld_mean": (0.0625, "nats"),
        "bitsandbytes-nf4/ten weight_bytes": (2**40 + 1, "bytes"),
        "gguf-q8_0/ten weight_bytes": (10, "bytes"),
    }, "no NaN, no infinity, nothing negative, nothing that a repeat lacks, and nothing of what failed"


def test_a_figure_is_in_the_list_of_its_direction(frame: pd.DataFrame, parsed: Parsed) -> None:
    directions = {column.name: column.better for column in table_columns("scenarios")}
    for better in ("lower", "higher"):
        assert {directions[each["name"].split()[-1]] for each in parsed(FORMAT, frame, better=better)} == {better}


def test_the_action_finds_a_figure_by_its_name(frame: pd.DataFrame, parsed: Parsed) -> None:
    counts = Counter(each["name"] for better in ("lower", "higher") for each in parsed(FORMAT, frame, better=better))
    assert set(counts.values()) == {1}


def test_a_file_has_one_direction(frame: pd.DataFrame, parsed: Parsed) -> None:
    with pytest.raises(UsageError, match="write two, one with --better lower and one with --better higher"):
        export(FORMAT, frame)
    with pytest.raises(UsageError, match="one direction per file"):
        export(FORMAT, frame, metrics=["kld_mean", "decode_tps"])
    assert len(parsed(FORMAT, frame, metrics=["kld_mean"])) == 3


def test_an_empty_list_is_not_written(frame: pd.DataFrame) -> None:
    """The action stops on one."""
    failed = frame[frame["status"] != "ok"]
    assert list(export(FORMAT, failed, better="lower")) == []
