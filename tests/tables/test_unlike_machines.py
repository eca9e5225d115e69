"""Rows of one run that machines of several kinds measured: their speeds are not compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantbench.results.rows import groups

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd


def test_no_ratio_of_speeds_is_made_between_machines(
    write: Callable[..., pd.DataFrame], record: Callable[..., Any]
) -> None:
    """Nor where rounds alternated with an anchor: on the other machine that was another anchor."""
    frame = write([record("torch/fp32"), record("torch/bf16"), record("gguf/q8_0")])
    frame.loc[frame.method == "gguf", "machine"] = "another"
    (group,) = groups(frame)
    _, bf16, q8_0 = sorted(group.rows, key=lambda row: row.text("method") != "torch")
    assert group.speed_ratio(bf16) == 2
    assert group.speed_ratio(q8_0) is None
    assert group.speed_doubt(q8_0) == "gguf/q8_0 was measured on another machine than torch/fp32"


def test_the_median_of_repeats_on_several_machines_is_no_speed(
    write: Callable[..., pd.DataFrame], record: Callable[..., Any]
) -> None:
    frame = write([record("torch/fp32"), *(record("torch/bf16", repeat=number) for number in range(2))])
    (alike,) = groups(frame)
    assert alike.speed_ratio(alike.rows[1]) == 2
    frame.loc[frame.repeat == 1, "machine"] = "another"
    (group,) = groups(frame)
    assert group.speed_ratio(group.rows[1]) is None
    assert group.speed_doubt(group.rows[1]) == "torch/bf16 was measured on several machines that are not alike"
