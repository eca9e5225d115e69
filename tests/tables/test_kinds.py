"""The precision and the GGUF table, made of stored rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from quantbench import tables
from quantbench.core.errors import UsageError
from quantbench.methods import METHODS
from quantbench.planning.planner import forecast, read_architecture
from quantbench.results.rows import groups
from quantbench.tables.kinds import gguf, precision

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from quantbench.core.record import Missing, Record
    from quantbench.tables.table import Cell, Table

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]


def _cells(table: Table, name: str) -> dict[str, Cell]:
    keys = [heading.key for heading in table.headings]
    row = next(row for row in table.rows if row[0].value == name)
    return dict(zip(keys, row, strict=True))


def _column(table: Table, key: str) -> list[Any]:
    index = [heading.key for heading in table.headings].index(key)
    return [row[index].value for row in table.rows]


def test_precision_rows_are_the_tutorials_then_the_rest(write: Write, full: list[Record]) -> None:
    [table] = precision.table(groups(write(full)))

    assert _column(table, "name") == ["FP32", "FP16", "INT8", "INT4", "FP32 (control)", "BF16"]
    assert _column(table, "claimed_size_70b") == ["280GB", "140GB", "70GB", "35GB", None, None]
    assert _column(table, "quality_loss") == ["None", "Nearly none", "Minimal", "Slight", "None", "Minimal"]
    assert _column(table, "weight_bytes") == [4_000_000, 2_000_000, 1_187_500, 800_000, 4_000_000, 2_000_000]
    assert _column(table, "weight_bytes_ratio") == pytest.approx([1, 0.5, 0.296875, 0.2, 1, 0.5])


def test_gguf_rows_are_the_tutorials_then_the_rest(write: Write, full: list[Record]) -> None:
    [table] = gguf.table(groups(write(full)))

    assert _column(table, "name") == ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16"]
    assert _column(table, "claimed_quality") == [*_column(table, "quality")[:-1], None]
    assert _column(table, "claimed_recommended") == [*_column(table, "recommended")[:-1], None]
    assert _column(table, "bits_per_weight") == [3.3, 4.1, 4.9, 5.7, 6.6, 8.5, 16.0]


def test_every_heading_of_the_tutorial_is_shown_as_claimed_and_as_measured(write: Write, full: list[Record]) -> None:
    frame = write(full)
    [levels], [files] = precision.table(groups(frame)), gguf.table(groups(frame))

    def titles(table: Table, source: str) -> set[str]:
        return {heading.title for heading in table.headings if heading.shown and heading.source == source}

    assert titles(levels, "claimed") == {"Bits/value", "7B size", "13B size", "70B size", "Quality loss", "Inference speed"}
    assert {"Bits/value", "Size", "Quality loss", "Inference speed"} <= titles(levels, "measured")
    assert titles(files, "claimed") == {"Bits", "7B size", "Quality", "Recommended"}
    assert {"Bits", "Size", "Quality", "Recommended"} <= titles(files, "measured")


def test_speed_comes_from_alternating_rounds_where_the_anchor_is_the_reference(write: Write, record: Make) -> None:
    frame = write(
        [
            record("torch/fp32", decode_tps=100.0),
            record("torch/fp16", decode_tps=300.0, decode_ratio=1.5),
            record("gguf/q4_k_m", decode_tps=400.0, decode_ratio=0.9),
        ]
    )
    half = _cells(precision.table(groups(frame))[0], "FP16")
    [table] = gguf.table(groups(frame))
    quarter = _cells(table, "Q4_K_M")

    assert (half["decode_speed_ratio"].shown, half["inference_speed"].shown) == ("1.50", "Fast")
    assert quarter["decode_speed_ratio"].shown == "4.00†"
    assert [half["decode_speed_alternated"].value, quarter["decode_speed_alternated"].value] == [True, False]
    assert any(note.startswith("† between processes") for note in table.notes)


def test_without_a_measured_reference_only_alternating_rows_have_a_speed(write: Write, record: Make) -> None:
    frame = write([record("torch/fp32", status="oom", reason="killed"), record("torch/fp16"), record("gguf/q8_0")])

    assert _cells(precision.table(groups(frame))[0], "FP16")["decode_speed_ratio"].shown == "2.00"
    assert _cells(gguf.table(groups(frame))[0], "Q8_0")["decode_speed_ratio"].shown == "–"


def test_a_published_artifact_has_its_row_by_its_name(write: Write, record: Make) -> None:
    """No plan knows it: only what was measured stands there."""
    rows = write([record("torch/fp32"), record("gguf/q4_k_m"), record("gguf/q8_0", bits_per_weight=8.5)])
    rows.loc[rows["precision"] == "q8_0", "artifact"] = "theirs"
    [table] = gguf.table(groups(rows))
    assert "theirs" in str([cell.shown for row in table.rows for cell in row])
    assert precision.table(groups(rows))


def test_what_failed_stays_with_status_and_reason(write: Write, record: Make) -> None:
    rows = write([record("torch/fp32"), record("bitsandbytes/int8", status="skipped", reason="needs it")])
    [table] = precision.table(groups(rows))
    row = _cells(table, "INT8")

    assert (row["status"].shown, row["reason"].shown, row["kld_mean"].shown) == ("skipped", "needs it", "–")
    assert row["claimed_quality_loss"].shown == "Minimal"
    assert "INT8: skipped, needs it" in table.notes
    assert _cells(table, "FP16")["status"].shown == "not run"
    assert next(heading for heading in table.headings if heading.key == "status").shown


def test_status_is_hidden_from_people_when_all_is_well(write: Write, full: list[Record]) -> None:
    [table] = gguf.table(groups(write(full)))

    assert "Status" not in [heading.title for heading, _ in table.shown_columns()]


def test_a_null_figure_is_a_dash_and_its_reason_a_note(write: Write, record: Make, missing: Callable[[str], Missing]) -> None:
    none = missing("no reference to compare with")
    [table] = gguf.table(groups(write([record("gguf/q4_k_m", kld_mean=none, kld_mean_se=none)])))
    row = _cells(table, "Q4_K_M")

    assert [row[key].shown for key in ("kld_mean", "quality", "recommended")] == ["–", "–", "–"]
    assert "no KLD ± s.e., nats: no reference to compare with" in table.notes


def test_a_word_near_an_edge_is_marked(write: Write, record: Make) -> None:
    [table] = gguf.table(groups(write([record("gguf/q4_k_m", kld_mean=0.056, kld_mean_low=0.048, kld_mean_high=0.064)])))

    assert _cells(table, "Q4_K_M")["quality"].shown == "Good ≈"
    assert "≈ the 95 % interval of the KLD reaches another word" in table.notes


def test_two_words_with_one_recommendation_do_not_mark_it(write: Write, record: Make) -> None:
    [table] = gguf.table(groups(write([record("gguf/q6_k", kld_mean=0.0077, kld_mean_low=0.0057, kld_mean_high=0.0097)])))
    row = _cells(table, "Q6_K")

    assert (row["quality"].shown, row["recommended"].shown) == ("Very good ≈", "High quality")


def test_every_table_says_what_it_was_measured_on(write: Write, full: list[Record]) -> None:
    made = [table for table in tables.build("all", write(full)) if table.facts.get("run_id")]
    assert len(made) > 2
    for table in made:
        assert table.title.endswith(": canary, prompts ten")
        for part in ("canary (an instrument check)", "torch/fp32", "Example CPU", "2 threads", "run-1", "2026-01-01"):
            assert part in table.caption
        assert any("canary is an instrument check" in note for note in table.notes)
        assert table.name in ("measured", "methods") or any("published 7-8B figures" in note for note in table.notes)
    assert any("llama-cpp-python 0.3.36" in note for table in made for note in table.notes)


def test_a_real_model_is_not_called_an_instrument_check(write: Write, record: Make) -> None:
    [table] = gguf.table(groups(write([record(model="example/model-7b")], instrument_check=False)))

    assert "instrument" not in " ".join([table.caption, *table.notes])


def test_one_table_per_model_and_prompt_set(write: Write, record: Make) -> None:
    pairs = [(model, prompts) for model in ("canary", "/models/big") for prompts in ("ten", "./mine.txt")]
    frame = write([record(model=model, prompts=prompts) for model, prompts in pairs])

    assert sorted(table.title for table in gguf.table(groups(frame))) == [
        f"GGUF quantization levels: {model}, prompts {prompts}" for model in ("big", "canary") for prompts in ("mine", "ten")
    ]


def test_repeats_are_one_row_of_medians(write: Write, record: Make) -> None:
    rows = [record(repeat=repeat, decode_tps=rate) for repeat, rate in enumerate((100.0, 130.0, 110.0))]
    [table] = gguf.table(groups(write(rows)))

    assert [name for name in _column(table, "name") if str(name).startswith("Q4")] == ["Q4_K_M (median of 3)"]
    assert [rate for rate in _column(table, "decode_tps") if rate is not None] == [110.0]


def test_failed_repeats_are_counted_and_told(write: Write, record: Make, missing: Callable[[str], Missing]) -> None:
    rows = [record(), record(repeat=1, decode_tps_low=missing("few")), record(repeat=2, status="oom", reason="memory ran out")]
    [table] = gguf.table(groups(write(rows)))

    assert [name for name in _column(table, "name") if str(name).startswith("Q4")] == ["Q4_K_M (median of 2 of 3)"]
    assert [low for low in _column(table, "decode_tps_low") if low is not None] == []
    assert "Q4_K_M (median of 2 of 3): otherwise oom, memory ran out" in table.notes


def test_latest_run_drops_earlier_rows(write: Write, record: Make) -> None:
    write([record()], run_id="zz-old", day=1)
    frame = write([record()], run_id="aa-new", day=2)

    assert set(tables.latest_run(frame)["run_id"]) == {"aa-new"}
    assert tables.latest_run(frame[:0]).empty


def test_of_a_kind_without_rows_the_plan_is_left(write: Write, record: Make) -> None:
    frame = write([record("gguf/q8_0")])

    assert precision.table(groups(frame)) == []
    made = {table.name: table for table in tables.build("all", frame)}
    assert [name for name, table in made.items() if table.facts.get("run_id")] == ["measured", "gguf", "methods"]
    assert made["precision"] == precision.unmeasured()[0]
    assert [table.name for table in tables.build("methods", frame[:0])] == []


def test_without_results_there_are_the_formats_the_plans_and_the_claims() -> None:
    made = tables.build("all", None)

    assert list(dict.fromkeys(table.name for table in made)) == ["formats", "precision", "gguf", "claims"]
    assert tables.build("methods", None) == []
    for table in made[2:4]:
        assert table.caption.startswith("Nothing was measured here; quantbench run")
        measured = [heading.key for heading in table.headings if heading.source == "measured"]
        assert len(measured) > 4
        assert {value for key in measured for value in _column(table, key)} == {None}
        assert {heading.title for heading, _ in table.shown_columns() if heading.source == "measured"} == {
            heading.title for heading in table.headings if heading.source == "claimed"
        } - {"7B size", "13B size", "70B size"}


def test_planned_sizes_are_those_of_the_planner() -> None:
    [levels], [files] = precision.unmeasured(), gguf.unmeasured()

    for table, key, model in [
        (levels, "size_7b", "llama-2-7b"), (levels, "size_13b", "llama-2-13b"), (levels, "size_70b", "llama-2-70b"),
        (files, "size_7b", "llama-2-7b"),
    ]:  # fmt: skip
        architecture = read_architecture(model)
        bits = [METHODS[method].precision(name).bits or 0 for method, name in map(_split, _column(table, "variant"))]
        planned = [
            forecast(architecture, method, [name])[name].weight_bytes for method, name in map(_split, _column(table, "variant"))
        ]
        assert None not in planned
        assert _column(table, f"planned_{key}") == planned
        assert _column(table, f"idealised_{key}") == [architecture.parameters * each / 8 for each in bits]
        if key == "size_7b":
            exact = [8 * (count or 0) / architecture.parameters for count in planned]
            assert _column(table, "planned_bits") == pytest.approx(exact)
    assert [_cells(levels, name)["planned_size_7b"].shown for name in ("FP32", "INT4")] == ["26.95 GB", "3.87 GB"]
    assert {heading.title for heading, _ in levels.shown_columns() if heading.source == "planned"} == {
        "Bits/value, 7B", "7B size", "13B size", "70B size",
    }  # fmt: skip


def test_measured_rows_without_a_claim_are_planned_too_and_strange_ones_are_dashes(write: Write, record: Make) -> None:
    frame = write([record("torch/fp32"), record("torch/bf16"), record("server/as-served"), record("gptq/int3")])
    [table] = precision.table(groups(frame.replace({"method": {"gptq": "gone"}})))

    assert _cells(table, "BF16")["planned_size_7b"].value == _cells(table, "FP16")["planned_size_7b"].value
    for name in ("AS-SERVED", "INT3"):
        row = _cells(table, name)
        assert (row["planned_size_7b"].shown, row["idealised_size_7b"].value, row["planned_bits"].value) == ("–", None, None)
    assert any(note.startswith("planned INT3: no method has such a precision") for note in table.notes)


def _split(variant: str) -> tuple[str, str]:
    method, _, precision_name = variant.partition("/")
    return method, precision_name


def test_all_kinds_come_in_the_tutorials_order(write: Write, full: list[Record]) -> None:
    names = [table.name for table in tables.build("all", write(full))]

    assert list(dict.fromkeys(names)) == ["measured", "formats", "precision", "gguf", "methods", "claims"]


def test_an_unknown_kind_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="unknown table 'precison'; did you mean 'precision'"):
        tables.build("precison", None)


def test_columns_that_an_older_frame_lacks_are_dashes(write: Write, full: list[Record]) -> None:
    frame = write(full)[["run_id", "model", "method", "precision", "prompts", "status", "reference"]]

    made = {table.name: table for table in tables.build("all", frame)}
    for name in ("precision", "gguf"):
        assert _column(made[name], "kld_mean") == [None] * len(made[name].rows)
    assert set(_column(made["methods"], "finetuning")) <= {"not run", "not tried (no reason kept)"}


def test_broken_json_columns_do_no_harm(write: Write, record: Make) -> None:
    frame = write([record()])
    frame["null_reasons"], frame["versions"] = "{", json.dumps([1])

    assert gguf.table(groups(frame))[0].rows
