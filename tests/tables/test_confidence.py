"""The table of KLD by confidence: deciles, EAR, and the control's rounding floor as a note and a ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from quantbench.results.rows import groups
from quantbench.tables.kinds import confidence

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.core.record import Record
    from quantbench.tables.table import Table

Write = Callable[..., "pd.DataFrame"]
Make = Callable[..., "Record"]
FIGURES = {
    "ear": 0.9321, "kld_confident": 0.0042, "confidence_median": 0.61,
    **{f"kld_confidence_d{number}": 0.1 / number for number in range(1, 11)},
}  # fmt: skip
FLOOR = {"kld_floor": 2e-5, "kld_floor_se": 1e-6, "top1_floor": 0.996, "ear_floor": 0.9975}


def _shown(table: Table) -> dict[str, list[str]]:
    return {heading.title: texts for heading, texts in table.shown_columns()}


def test_every_decile_stands_beside_the_mean(write: Write, record: Make) -> None:
    [table] = confidence.table(groups(write([record("gguf/q4_k_m", kld_mean=0.042, **FIGURES)])))
    shown = _shown(table)
    assert list(shown)[:4] == ["Variant", "KLD, nats", "EAR", "KLD where sure"]
    assert [shown[name] for name in ("KLD, nats", "EAR", "KLD where sure")] == [["0.042"], ["93.21%"], ["0.0042"]]
    assert [shown[f"Decile {number}"] for number in (1, 4, 10)] == [["0.1"], ["0.025"], ["0.01"]]
    assert any("its most likely token has a median probability of 0.61" in note for note in table.notes)
    assert not any("rounding" in note for note in table.notes)


def test_the_controls_floor_says_what_is_tied_with_the_original(write: Write, record: Make) -> None:
    known = {"facts": {"checkpoint_dtype": "bf16"}}
    control = record("torch/fp32", control=True, kld_mean=0.0, **{**FIGURES, "ear": 1.0, **FLOOR}, **known)
    [table] = confidence.table(groups(write([control, record("gguf/q8_0", kld_mean=5e-4, **FIGURES)])))
    assert _shown(table)["x rounding"] == ["0", "25"]
    (note,) = (note for note in table.notes if note.startswith("rounding alone"))
    assert note == (
        "rounding alone, to bf16 after every layer of the reference: KLD 2.0e-05, EAR 99.75%, top-1 99.6%; "
        "what is no farther off is tied with the original"
    )


@pytest.mark.parametrize("others", [[], ["torch/fp32"]])
def test_rows_of_an_earlier_version_are_dashes_and_alone_no_table(write: Write, record: Make, others: list[str]) -> None:
    old = record("gguf/q8_0")
    made = confidence.table(groups(write([old, *(record(name, **FIGURES) for name in others)])))
    assert [_shown(table)["EAR"] for table in made] == [["93.21%", "–"]] * len(others)
