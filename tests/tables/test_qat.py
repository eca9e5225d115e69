"""The table of PTQ against QAT: errors added up by hand, verdicts, and what stands where a side is missing."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench import tables
from quantbench.results.rows import groups
from quantbench.tables.kinds import qat
from quantbench.tables.render import as_text, render

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from quantbench.core.record import Missing, Record
    from quantbench.tables.table import Cell, Table

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]

LOSSES = [0.021, 0.016, 0.0125]
PROMPTS = 10
T_9 = 2.262157
"""t(0.975; 9) of a printed table."""


@pytest.fixture
def pair(record: Make) -> Callable[..., list[Record]]:
    """The rows of both 4-bit sides, with a KLD and its error each."""

    def make(
        ptq: tuple[float, float] = (0.019, 3e-4), qat: tuple[float, float] = (0.013, 4e-4), **changes: Any
    ) -> list[Record]:
        known = {"weight_bytes": 7_264_896, "clusters": PROMPTS, **changes}
        return [
            record("torchao/intx4-wo", kld_mean=ptq[0], kld_mean_se=ptq[1], top1_agreement=0.91, **known),
            record(
                "qat/int4", kld_mean=qat[0], kld_mean_se=qat[1], top1_agreement=0.925, quantize_s=151.5,
                facts={"qat_losses": json.dumps(LOSSES)}, **known,
            ),
        ]  # fmt: skip

    return make


def _cells(table: Table, row: int = 0) -> dict[str, Cell]:
    return dict(zip([heading.key for heading in table.headings], table.rows[row], strict=True))


def test_a_pair_is_one_line_with_the_difference_and_its_error(write: Write, pair: Callable[..., list[Record]]) -> None:
    [table] = qat.table(groups(write(pair())))
    [line] = [{title.title: text for (title, texts) in table.shown_columns() for text in texts}]

    assert line == {
        "QAT": "qat/int4",
        "PTQ": "torchao/intx4-wo",
        "PTQ KLD ± s.e., nats": "0.0190 ± 0.0003",
        "QAT KLD ± s.e., nats": "0.0130 ± 0.0004",
        "QAT - PTQ ± s.e., nats": "-6.00e-03 ± 0.50e-03",
        "Verdict": "QAT closer",
        "PTQ top-1": "91.0%",
        "QAT top-1": "92.5%",
        "Training": "152 s",
        "Loss, first to last, nats": "0.021 to 0.013",
    }


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (-1.1, "QAT closer"), (-0.97, "no difference found (detectable: 0.0016 nats)"),
        (0.0, "no difference found (detectable: 0.0016 nats)"), (0.97, "no difference found (detectable: 0.0016 nats)"),
        (1.1, "PTQ closer"),
    ],
)  # fmt: skip
def test_a_side_is_closer_where_a_t_test_says_so_else_what_would_have_been_found_is_named(
    difference: float, verdict: str, write: Write, pair: Callable[..., list[Record]]
) -> None:
    """The errors 3e-4 and 4e-4 make 5e-4; the difference is given in half-widths of its 95 % interval.

    Of ten pairs an effect of 3.1496 standard errors is found with 80 % power (noncentral t).
    """
    errors = (3e-4, 4e-4)
    after = 0.019 + difference * T_9 * math.sqrt(sum(each**2 for each in errors))
    [table] = qat.table(groups(write(pair((0.019, errors[0]), (after, errors[1])))))
    cells = _cells(table)

    assert cells["verdict"].shown == verdict
    assert cells["kld_difference"].value == pytest.approx(after - 0.019)
    assert cells["kld_difference_se"].value == pytest.approx(5e-4)
    assert cells["kld_difference_detectable"].value == pytest.approx(3.149636 * 5e-4)


def test_the_side_with_fewer_prompts_gives_the_degrees_of_freedom(write: Write, pair: Callable[..., list[Record]]) -> None:
    """Two prompts have one degree of freedom, and t(0.975; 1) = 12.7 errors are not reached by 12."""
    ptq, trained = pair()
    few = replace(ptq, values={**ptq.values, "clusters": 2})
    [table] = qat.table(groups(write([few, trained])))

    assert _cells(table)["verdict"].shown.startswith("no difference found")
    later = tables.latest_run(write(pair(), run_id="run-2", day=2))
    assert _cells(qat.table(groups(later))[0])["verdict"].shown == "QAT closer"


def test_rows_without_a_number_of_prompts_are_not_judged(
    write: Write, pair: Callable[..., list[Record]], missing: Callable[[str], Missing]
) -> None:
    [table] = qat.table(groups(write(pair(clusters=missing("an older version did not count")))))

    assert (_cells(table)["verdict"].shown, _cells(table)["kld_difference_detectable"].value) == ("not judged", None)
    assert "qat/int4: no number of prompts: an older version did not count" in table.notes


def test_where_training_was_no_gain_its_course_stands_in_a_note(write: Write, pair: Callable[..., list[Record]]) -> None:
    course = "qat/int4, {}: the loss went 0.021, 0.016, 0.013 nats"
    worse = qat.table(groups(write(pair(qat=(0.025, 4e-4)), run_id="worse")))[0]
    same = qat.table(groups(tables.latest_run(write(pair(qat=(0.0189, 4e-4)), run_id="same", day=2))))[0]
    better = qat.table(groups(tables.latest_run(write(pair(), run_id="better", day=3))))[0]

    assert course.format("PTQ closer") in worse.notes
    assert course.format("no difference found") in same.notes
    assert not [note for note in better.notes if "the loss went" in note]


def test_it_says_how_it_judges(write: Write, pair: Callable[..., list[Record]]) -> None:
    [table] = qat.table(groups(write(pair())))
    notes = " ".join(table.notes)

    for part in ("root of the sum of squares", "conservative", "same tokens", "t test", "80 % power", "instrument check"):
        assert part in notes


@pytest.mark.parametrize(
    ("side", "missing_cells"),
    [(0, ("qat_kld", "qat_top1", "training", "loss")), (1, ("ptq_kld", "ptq_top1"))],
)
def test_a_side_that_was_not_planned_is_not_run(
    side: int, missing_cells: tuple[str, ...], write: Write, pair: Callable[..., list[Record]], record: Make
) -> None:
    """The other pair is whole, so that QAT was planned at all."""
    whole = [record("torchao/intx8-dyn"), record("qat/int8", facts={"qat_losses": "[1, 2]"})]
    [table] = qat.table(groups(write([*whole, pair()[side]])))
    full, lone = _cells(table), _cells(table, 1)

    assert [full["qat"].shown, lone["qat"].shown] == ["qat/int8", "qat/int4"]
    assert [lone[key].shown for key in missing_cells] == ["not run"] * len(missing_cells)
    assert (lone["difference"].shown, lone["verdict"].shown) == ("not measured", "not judged")
    assert lone["kld_difference"].value is None
    assert "not run" not in [cell.shown for cell in full.values()]


def test_a_side_that_failed_has_its_status_and_reason(write: Write, pair: Callable[..., list[Record]], record: Make) -> None:
    ptq, trained = pair()
    [first] = qat.table(groups(write([ptq, record("qat/int4", status="oom", reason="killed")])))
    frame = write([record("torchao/intx4-wo", status="skipped", reason="needs torchao"), trained], run_id="run-2", day=2)
    [second] = qat.table(groups(tables.latest_run(frame)))

    assert [_cells(first)[key].shown for key in ("qat_kld", "qat_top1", "training", "loss")] == ["oom"] * 4
    assert "qat/int4: oom, killed" in first.notes
    assert [_cells(second)[key].shown for key in ("ptq_kld", "ptq_top1")] == ["skipped"] * 2
    assert "torchao/intx4-wo: skipped, needs torchao" in second.notes
    assert not [note for table in (first, second) for note in table.notes if "None" in note]


def test_a_figure_that_is_null_has_its_reason(
    write: Write, pair: Callable[..., list[Record]], record: Make, missing: Callable[[str], Missing]
) -> None:
    none = missing("one prompt has no spread")
    gone = missing("no reference")
    ptq = record("torchao/intx4-wo", kld_mean_se=none, clusters=1)
    nothing = dict.fromkeys(("kld_mean", "kld_mean_se", "clusters", "top1_agreement"), gone)
    [alone] = qat.table(groups(write([ptq, pair()[1]])))
    rows = tables.latest_run(write([ptq, record("qat/int4", **nothing)], run_id="run-2", day=2))
    [neither] = qat.table(groups(rows))

    assert (_cells(alone)["difference"].shown, _cells(alone)["verdict"].shown) == ("0.003", "not judged")
    assert "torchao/intx4-wo: no standard error: one prompt has no spread" in alone.notes
    assert [_cells(neither)[key].shown for key in ("qat_kld", "qat_top1", "loss")] == ["not measured"] * 3
    assert "qat/int4: no KLD, no standard error, no number of prompts, no top-1: no reference" in neither.notes
    assert "qat/int4: no loss: the row keeps none" in neither.notes


@pytest.mark.parametrize("broken", ["{", "[1]", '{"qat_losses": "x"}', '{"qat_losses": [[1]]}', "null"])
def test_damaged_facts_are_no_curve(broken: str, write: Write, pair: Callable[..., list[Record]]) -> None:
    frame = write(pair())
    frame["facts"] = broken

    assert _cells(qat.table(groups(frame))[0])["loss"].shown == "not measured"


def test_repeats_are_paired_with_repeats(write: Write, pair: Callable[..., list[Record]]) -> None:
    [table] = qat.table(groups(write([*pair(), *pair(qat=(0.015, 4e-4), repeat=1)])))
    [line] = table.rows
    cells = dict(zip([heading.key for heading in table.headings], line, strict=True))

    assert (cells["qat"].shown, cells["ptq"].shown) == ("qat/int4 (median of 2)", "torchao/intx4-wo (median of 2)")
    assert cells["kld_difference"].value == pytest.approx(-0.005)
    assert cells["verdict"].shown == "QAT closer"


def test_a_side_that_lost_a_repeat_stays_in_its_pair(write: Write, pair: Callable[..., list[Record]], record: Make) -> None:
    records = [each for repeat in range(3) for each in pair(repeat=repeat)]
    lost = record("qat/int4", repeat=2, status="oom", reason="no memory")
    [table] = qat.table(groups(write([*records[:-1], lost])))
    assert len(table.rows) == 1
    cells = _cells(table)
    assert (cells["qat"].shown, cells["ptq"].shown) == ("qat/int4 (median of 2 of 3)", "torchao/intx4-wo (median of 3)")
    assert cells["verdict"].shown == qat.QAT_CLOSER



def test_without_qat_there_is_no_such_table(write: Write, pair: Callable[..., list[Record]], record: Make) -> None:
    assert qat.table(groups(write([pair()[0], record("gguf/q8_0")]))) == []


def test_one_table_per_model_after_all_others(write: Write, pair: Callable[..., list[Record]]) -> None:
    frame = write([*pair(), *pair(model="/models/big"), *pair(prompts="two")])
    names = [table.name for table in tables.build(tables.ALL, frame)]

    assert names.count("qat") == 3
    assert names[-3:] == ["qat"] * 3
    assert [table.title for table in qat.table(groups(frame))] == [
        f"Quantization-aware training: {where}" for where in ("canary, prompts ten", "big, prompts ten", "canary, prompts two")
    ]


def test_no_shown_cell_is_empty(write: Write, pair: Callable[..., list[Record]], record: Make) -> None:
    made = qat.table(groups(write([*pair(), record("qat/int8", status="skipped", reason="not here")])))

    assert "–" not in as_text(made, 200)


def test_machines_get_raw_figures(write: Write, pair: Callable[..., list[Record]]) -> None:
    made = qat.table(groups(write(pair())))
    [row] = json.loads(render(made, "json"))[0]["rows"]
    [line] = csv.DictReader(io.StringIO(render(made, "csv")))

    expected = {
        "ptq_kld_mean": 0.019, "ptq_kld_mean_se": 3e-4, "qat_kld_mean": 0.013, "qat_kld_mean_se": 4e-4,
        "ptq_top1_agreement": 0.91, "qat_top1_agreement": 0.925, "kld_difference": -0.006, "kld_difference_se": 5e-4,
        "kld_difference_detectable": 3.149636 * 5e-4,
        "training_s": 151.5, "loss_first": 0.021, "loss_last": 0.0125,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert {name: float(line[name]) for name in expected} == pytest.approx(expected)
    assert json.loads(row["losses"]) == LOSSES
    assert (row["ptq_status"], row["qat_status"]) == ("ok", "ok")


@pytest.mark.parametrize("form", ["text", "md"])
def test_people_can_read_it(form: str, write: Write, pair: Callable[..., list[Record]]) -> None:
    assert "QAT closer" in render(qat.table(groups(write(pair()))), form)
