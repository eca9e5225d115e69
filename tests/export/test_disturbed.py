"""What was measured beside other work: marked in every format, and left out where a format has no place for a mark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

NAME = "canary/bitsandbytes-nf4/ten"
WHY = "other processes took 50% of the CPU time"


@pytest.fixture
def beside(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with one variant that was disturbed."""
    import pandas as pd

    chosen = frame["scenario_id"] == NAME
    return frame.assign(disturbed=pd.array(chosen, dtype="boolean"), disturbance=chosen.map({True: WHY, False: ""}))


def test_a_list_of_github_action_benchmark_says_so_of_its_speed(beside: pd.DataFrame, parsed: Callable[..., Any]) -> None:
    lists = [parsed("github-action-benchmark", beside, better=better) for better in ("higher", "lower")]
    said = {each["name"]: each["extra"] for entries in lists for each in entries}
    assert {name for name, extra in said.items() if f"disturbed: {WHY}" in extra} == {f"{NAME} decode_tps"}


def test_bencher_gets_no_speed_of_it(beside: pd.DataFrame, frame: pd.DataFrame, parsed: Callable[..., Any]) -> None:
    before, after = parsed("bmf", frame), parsed("bmf", beside)
    assert set(before[NAME]) - set(after[NAME]) == {"decode_tps"}
    assert "kld_mean" in after[NAME]
    assert {name: found for name, found in after.items() if name != NAME} == {n: f for n, f in before.items() if n != NAME}


def test_a_record_of_the_hud_says_so_of_its_speed(beside: pd.DataFrame, parsed: Callable[..., Any]) -> None:
    said = [
        (each["model"]["backend"], each["metric"]["name"])
        for each in parsed("pytorch-hud", beside)
        if each["metric"]["extra_info"].get("disturbed") == WHY
    ]
    assert said == [("bitsandbytes", "decode_tps")]
