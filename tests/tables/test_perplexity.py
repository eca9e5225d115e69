"""The perplexity table: rows of a scored text, which the other tables leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from quantbench import tables
from quantbench.advice.decision import decide
from quantbench.results.rows import groups
from quantbench.tables.kinds import perplexity
from quantbench.tables.kinds.measured import overview

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.core.record import Record

Write = Callable[..., "pd.DataFrame"]
Make = Callable[..., "Record"]
FIGURES = {"ppl": 25.53, "ppl_se": 0.41, "ppl_ratio": 1.011, "ppl_ratio_se": 0.003, "delta_p_rms": 0.0245, "kld_p99": 0.073}


def test_a_text_has_its_perplexity_with_errors_and_no_speed(write: Write, record: Make) -> None:
    frame = write([record(prompts="text:/somewhere/wiki.txt", **FIGURES), record(prompts="ten")])
    [table] = perplexity.table(groups(frame))

    shown = {heading.title: texts[0] for heading, texts in table.shown_columns()}
    assert shown["PPL"] == "25.53 ± 0.41"
    assert shown["PPL, x reference"] == "1.0110 ± 0.0030"
    assert shown["RMS Δp"] == "2.45%"
    assert shown["99 %"] == "0.073"
    assert table.title.endswith("canary, prompts text:wiki")
    other = next(each for each in overview(groups(frame)) if "text:wiki" in each.title)
    assert [heading.title for heading in other.headings if "Decode" in heading.title] == []


def test_a_text_alone_decides_nothing_and_fills_no_table_of_answers(write: Write, record: Make) -> None:
    frame = write([record(prompts="text:wiki.txt", **FIGURES)])
    assert decide(frame) == []
    assert not [table for table in tables.build("gguf", frame) if table.facts["run_id"]]
