"""The roofline and energy metrics against closed forms, and their reasons where there is no figure."""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import median
from typing import TYPE_CHECKING

import pytest

from quantbench.core.record import Missing
from quantbench.metrics.energy import Energy, energy
from quantbench.metrics.roofline import roofline

if TYPE_CHECKING:
    from quantbench.core.trace import Trace


@pytest.fixture
def known(trace: Trace) -> Trace:
    """A trace whose machine was measured."""
    return replace(trace, memory_bandwidth_bps=20e9, bytes_per_token=5_000_000)


def test_mbu_is_the_share_of_the_bandwidth_that_decoding_reads(known: Trace) -> None:
    values = roofline.compute(known, None)
    rates = [
        sum(len(answer.gaps_s) for answer in each.variant) / sum(sum(answer.gaps_s) for answer in each.variant)
        for each in known.rounds
    ]
    assert values["memory_bandwidth_bps"] == 20e9
    assert values["bytes_per_token"] == 5_000_000
    assert values["mbu"] == pytest.approx(5_000_000 * median(rates) / 20e9)
    assert 0.05 < values["mbu"] < 0.5


@pytest.mark.parametrize(
    ("changes", "words", "lacking"),
    [
        ({"bytes_per_token": None}, "bytes that a step of this model reads", {"bytes_per_token", "mbu"}),
        (
            {"memory_bandwidth_bps": None, "absent": {"memory_bandwidth_bps": "no CUDA"}},
            "no CUDA",
            {"memory_bandwidth_bps", "mbu"},
        ),
        ({"facts": {"device": "cpu+cuda:0"}}, "on a GPU and on the host, whose memories are not equally fast", {"mbu"}),
        (
            {"rounds": (), "bytes_per_token": None, "absent": {"rounds": "a text is scored"}},
            "a text is scored",
            {"bytes_per_token", "mbu"},
        ),
        (
            {"weights": None, "bytes_per_token": None, "absent": {"weights": "a server's memory cannot be seen from here"}},
            "a server's memory",
            {"bytes_per_token", "mbu"},
        ),
    ],
    ids=["uncounted", "no bandwidth", "split", "text", "server"],
)
def test_what_is_not_known_has_its_reason(changes: dict[str, object], words: str, lacking: set[str], known: Trace) -> None:
    values = roofline.compute(replace(known, **changes), None)
    missing = {name: value.reason for name, value in values.items() if isinstance(value, Missing)}
    assert set(missing) == lacking
    assert all(words in reason for reason in missing.values())


def test_an_answer_in_one_piece_has_no_mbu(known: Trace) -> None:
    rounds = tuple(
        replace(each, variant=tuple(replace(answer, gaps_s=(), tokens=1) for answer in each.variant)) for each in known.rounds
    )
    assert roofline.compute(replace(known, rounds=rounds), None)["mbu"] == Missing("no time passed between tokens")


def test_energy_is_joules_a_token(trace: Trace) -> None:
    counted = replace(
        trace, signals={"energy": asdict(Energy(joules=600.0, tokens=400, window_s=5.5, source="RAPL, CPU packages"))}
    )
    assert energy.compute(counted, None) == {
        "energy_per_token_j": 1.5, "energy_window_s": 5.5, "energy_source": "RAPL, CPU packages",
    }  # fmt: skip


def test_energy_that_was_not_counted_says_why(trace: Trace) -> None:
    values = energy.compute(replace(trace, signals={"energy": "no RAPL here"}), None)
    assert set(values.values()) == {Missing("no RAPL here")}
    assert "no model generated any" in energy.compute(trace, None)["energy_source"].reason


@pytest.mark.parametrize("column", [*roofline.columns, *energy.columns], ids=lambda column: column.name)
def test_each_column_says_what_it_is_and_where_that_comes_from(column: object) -> None:
    assert all(getattr(column, name) for name in ("doc", "formula", "source"))
    assert column.unit or column.kind == "string"
