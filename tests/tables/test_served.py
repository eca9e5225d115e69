"""The table of servers, made of stored rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quantbench import tables
from quantbench.results.rows import groups
from quantbench.tables.kinds import served

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from quantbench.core.record import Missing, Record

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]

FIGURES = {
    "concurrency": 4, "concurrent_tps": 410.0, "concurrent_ttft_s": 0.25,
    "concurrency_tps": '{"1": 120.0, "2": 230.5, "4": 410.0}',
    "chrf": 97.25, "top1_served": 0.9, "topk_logprob_error": 0.02,
}  # fmt: skip


def served_record(record: Make, **changes: object) -> Record:
    return record("server/as-served", **{**FIGURES, **changes}, facts={"elsewhere": "hardware is not known", "threads": "0"})


def test_concurrency_and_chrf_are_shown(write: Write, record: Make) -> None:
    [table] = served.table(groups(write([record("torch/fp32"), served_record(record)])))
    shown = {heading.title: texts[0] for heading, texts in table.shown_columns()}
    assert len(table.rows) == 1
    assert (shown["Requests at once"], shown["Together, tokens/s"], shown["TTFT together"]) == ("4", "410", "250 ms")
    assert (shown["By requests at once"], shown["chrF"], shown["Top-1"]) == ("1: 120, 2: 230, 4: 410", "97.2", "90.0%")


def test_concurrency_that_broke_is_a_dash_with_the_reason(
    write: Write, record: Make, missing: Callable[[str], Missing]
) -> None:
    why = "with 2 requests at once: server dropped the stream"
    broke = {name: missing(why) for name in ("concurrency", "concurrent_tps", "concurrent_ttft_s")}
    [table] = served.table(groups(write([served_record(record, **broke, concurrency_tps='{"1": 120.0}')])))
    shown = {heading.title: texts[0] for heading, texts in table.shown_columns()}
    assert (shown["Together, tokens/s"], shown["By requests at once"], shown["Status"]) == ("–", "1: 120", "ok")
    assert any(why in note for note in table.notes)


def test_a_server_of_unknown_hardware_leaves_no_gap_in_the_caption(write: Write, record: Make) -> None:
    [table] = served.table(groups(write([served_record(record)])))
    assert "; ;" not in table.caption
    assert "against torch/fp32; run run-1" in table.caption


def test_the_same_file_without_a_server_stands_beside_it(write: Write, record: Make) -> None:
    local = record("gguf/q8_0", decode_tps=200.0, facts={"threads": "2"})
    mine = record(
        "server/as-served", **FIGURES, decode_tps=150.0, facts={"threads": "2", "served_model": "gguf/q8_0"}
    )
    other = record("gguf/q4_k_m", decode_tps=300.0, facts={"threads": "2"})
    [table] = served.table(groups(write([record("torch/fp32"), other, local, mine])))
    shown = {heading.title: texts[0] for heading, texts in table.shown_columns()}
    assert (shown["Alone, tokens/s"], shown["Here, tokens/s"], shown["Alone, x here"]) == ("150", "200", "0.750")
    assert not any("is not divided" in note for note in table.notes)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"threads": "2"}, "threads 2 and 1"),
        ({"threads": "1", "server_flags": "-fa on"}, "the server was started with -fa on"),
    ],
)
def test_speeds_under_unlike_conditions_are_not_divided(
    write: Write, record: Make, facts: dict[str, str], why: str
) -> None:
    local = record("gguf/q8_0", decode_tps=200.0, facts={"threads": "1"})
    mine = record("server/as-served", **FIGURES, decode_tps=150.0, facts={**facts, "served_model": "gguf/q8_0"})
    [table] = served.table(groups(write([local, mine])))
    shown = {heading.title: texts[0] for heading, texts in table.shown_columns()}
    assert (shown["Here, tokens/s"], shown["Alone, x here"]) == ("200", "–")
    assert any(note.startswith(f"server/as-served is not divided by gguf/q8_0: {why}") for note in table.notes)


def test_without_servers_there_is_no_table(write: Write, record: Make) -> None:
    frame = write([record("torch/fp32")])
    assert served.table(groups(frame)) == []
    assert tables.served(frame).empty
