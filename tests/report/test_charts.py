"""Charts: what their data say, checked against the rows and against plain arithmetic."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quantbench.advice.decision import DEFAULT_WORD
from quantbench.advice.words import words
from quantbench.report.charts import history, latency, load
from quantbench.report.charts.bars import bars
from quantbench.report.charts.figures import courses, latencies, loads, sizes, speeds
from quantbench.report.charts.look import DARK, LIGHT, Look, log_ticks, on_page, on_paper, series, subject
from quantbench.report.charts.pareto import pareto
from quantbench.report.charts.points import on_front, points
from quantbench.report.sections.decisions import decisions, heads
from quantbench.report.sections.rows import listing

if TYPE_CHECKING:
    from quantbench.report import Results

LOOK = Look(width="container", ink=on_page)


def _data(chart: Any) -> Iterator[dict[str, Any]]:
    for part in (*chart["layer"], chart):
        yield from part.get("data", {}).get("values", [])


def _named(chart: Any, key: str) -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in _data(chart) if key in row}


@pytest.fixture
def found(everything_results: Results) -> list[Any]:
    """Points of the canary."""
    group = everything_results.groups[0]
    return points(group, everything_results.choice(group))


def test_the_front_is_what_no_other_beats_in_both(found: list[Any]) -> None:
    expected = {
        each.name for each in found
        if not any(o.weight_bytes <= each.weight_bytes and o.kld <= each.kld and o is not each for o in found)
    }  # fmt: skip
    assert on_front(found) == expected
    assert {"torch/fp32", "gguf/q2_k", "gguf/q4_k_m"} <= expected
    assert "bitsandbytes/nf4" not in expected


def test_one_point_is_the_pick_and_the_control_is_none(found: list[Any], everything_results: Results) -> None:
    choice = everything_results.choice(everything_results.groups[0])
    assert choice is not None
    assert choice.pick is not None
    assert [each.name for each in found if each.role == "pick"] == [choice.pick.name]
    assert [each.name for each in found if each.role == "reference"] == ["torch/fp32"]
    assert len(found) == 12


def test_size_against_kld_leaves_out_what_a_log_scale_cannot_show(found: list[Any]) -> None:
    rows = _named(pareto(found, 0.05, LOOK), "name")
    assert set(rows) == {each.name for each in found} - {"torch/fp32"}
    row = rows["gguf/q4_k_m"]
    assert row["x"] == pytest.approx(4.9 / 8)
    assert (row["y"], row["low"], row["high"]) == pytest.approx((0.042, 0.0378, 0.0462))
    assert row["front"]


def test_a_page_says_what_is_not_drawn_and_where_the_limit_is(everything_results: Results) -> None:
    (figure,) = sizes(everything_results)
    assert "above 0: torch/fp32." in figure.caption
    limit = words().quality.upper_edge(DEFAULT_WORD)
    assert f"limit of {limit:.3f} nats" in figure.caption
    assert "(an instrument check)" in figure.title
    drawn = json.loads(str(figure.spec).encode().decode("unicode_escape"))
    assert limit in [row["y"] for row in _data(drawn) if set(row) == {"y", "text"}]


def test_bars_fall_and_reach_over_their_intervals(found: list[Any]) -> None:
    chart = bars(found, LOOK)
    rows = list(_named(chart, "label").values())
    assert [row["tps"] for row in rows] == sorted((each.tps for each in found), reverse=True)
    assert all(row["low"] < row["tps"] < row["high"] for row in rows)
    assert rows[0]["label"] == "gguf/q2_k"


def test_a_rate_without_an_interval_is_named(write: Any, record: Callable[..., Any]) -> None:
    bare = record("gguf/q8_0", decode_tps_low=math.nan, decode_tps_high=math.nan)
    (figure,) = speeds(write([record("torch/fp32"), bare]))
    assert figure.caption.endswith("Too few rounds for an interval: gguf/q8_0.")


def test_a_speed_measured_beside_other_work_is_marked_wherever_it_is_shown(write: Any, record: Callable[..., Any]) -> None:
    names = ("torch/fp32", "gguf/q8_0")
    results = write([record(name, disturbed=name == "gguf/q8_0", disturbance="others") for name in names])
    (group,) = results.groups
    bar = _named(bars(points(group, None), LOOK), "label")["gguf/q8_0"]
    assert bar["value"] == "300~"
    assert bar["decode"].endswith("~")
    assert results.samples is not None
    labels = [each.name for each in latency.distributions(group, results.samples, "gap", 10)]
    assert sorted(labels) == ["gguf/q8_0~", "torch/fp32"]
    listed = listing(results.every_row, 10)
    cells = {line.entries[0].text: zip(listed.titles, line.entries, strict=True) for line in listed.lines}
    marked = {name: [title.text for title, entry in row if "~" in entry.text] for name, row in cells.items()}
    assert marked == {"torch/fp32": [], "gguf/q8_0": ["Decode, tokens/s", "TTFT", "Decode, x anchor"]}


def test_a_speed_measured_beside_other_work_is_marked_beside_the_decision(write: Any, record: Callable[..., Any]) -> None:
    (decision,) = decisions(write([record("torch/fp32", disturbed=True, disturbance="others"), record("gguf/q8_0")]))
    reference = next(each for each in decision.columns if each.name == "torch/fp32")
    assert [head for head, figure in zip(heads(), reference.figures, strict=True) if "~" in figure] == ["Decode, tokens/s"]


def test_no_chart_without_figures(write: Any, record: Callable[..., Any], everything_results: Results) -> None:
    results = write([record("torch/fp32", decode_tps=math.nan)])
    assert (sizes(results), speeds(results)) == ([], [])
    assert pareto([], 0.05, LOOK) is None


def test_quantiles_are_of_all_samples_and_dots_of_even_ranks(everything_results: Results) -> None:
    assert everything_results.samples is not None
    group = everything_results.groups[0]
    by_name = {each.name: each for each in latency.distributions(group, everything_results.samples, "prefill", 5)}
    assert len(by_name) == 13
    each = by_name["gguf/q8_0"]
    values = [(index + 1) / 300.0 for index in range(12)]
    assert each.count == 12
    assert each.median == pytest.approx(statistics.median(values))
    assert each.quantiles == pytest.approx(np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]))
    assert len(each.shown) == 5
    assert all(min(abs(value - shown) for value in values) < 1e-12 for shown in each.shown)
    assert (each.shown[0], each.shown[-1]) == pytest.approx((min(values), max(values)))


@pytest.mark.parametrize(("most", "said"), [(5, "Dots: 5 samples"), (12, "Dots: every sample"), (0, "not drawn")])
def test_how_many_samples_are_drawn_is_said(everything_results: Results, most: int, said: str) -> None:
    figures = latencies(everything_results, most)
    titles = ["Prefill (the first token)", "Gaps between tokens", "One call"]
    assert [figure.title.partition(":")[0] for figure in figures] == titles
    assert all(said in figure.caption for figure in figures)
    assert all("from 12 samples per variant" in figure.caption for figure in figures)


def test_what_took_no_time_at_all_is_drawn_at_the_edge_of_the_scale(write: Any, record: Callable[..., Any]) -> None:
    """A server may send several pieces at once."""

    def at_once(name: str, first: int) -> Any:
        made = record(name)
        samples = (replace(each, value_s=each.value_s * (each.round >= first)) for each in made.samples)
        return replace(made, samples=tuple(samples))

    results = write([at_once("gguf/q8_0", 3), at_once("gguf/q4_k_m", 12)])
    assert [figure.title.partition(":")[0] for figure in latencies(results, 40)] == list(latency.PHASES.values())[:2]
    (found,) = latency.distributions(results.groups[0], results.samples, "gap", 40)
    assert (found.name, found.count, found.quantiles[0]) == ("gguf/q8_0", 12, 0.0)
    scale = latency.chart([found], "Gaps", LOOK)["layer"][0]["encoding"]["x"]["scale"]
    assert scale["clamp"]
    assert scale["domain"] == pytest.approx([3 / 3000 * 1e3 / 1.1, 12 / 3000 * 1e3 * 1.1])


def test_a_server_under_load_has_a_point_for_each_number_of_requests(everything_results: Results) -> None:
    group = next(each for each in everything_results.groups if each.model == "some/served")
    rows = list(_data(load.chart(load.served(group), LOOK)))
    assert [(row["requests"], row["tps"]) for row in rows] == [(1, 120.0), (2, 230.5), (4, 410.0)]
    assert {row["name"] for row in rows} == {"server/as-served"}
    (figure,) = loads(everything_results)
    assert figure.title == "Requests at once: some/served (an instrument check), prompts ten"


def test_without_a_server_under_load_there_is_no_chart(write: Any, record: Callable[..., Any]) -> None:
    results = write([record("torch/fp32")])
    assert loads(results) == []


def test_the_anchors_rounds_are_not_the_variants(everything_results: Results) -> None:
    assert set(latency.PHASES) == {"prefill", "gap", "call"}
    assert latencies(everything_results, 5)[0].title.endswith(subject(everything_results.groups[0]))


def test_a_history_takes_two_runs_and_follows_each_scenario(everything_results: Results) -> None:
    (found,) = history.histories(everything_results.subjects, 10_000)
    assert (found.runs, found.left_out) == (3, 0)
    assert [name for name, _ in found.metrics] == ["decode_ratio", "kld_mean", "weight_bytes"]
    klds = [(row["run"], row["kld_mean"]) for row in found.rows if row["name"] == "gguf/q8_0"]
    assert [run for run, _ in klds] == ["run-1", "run-2", "run-3"]
    assert [kld for _, kld in klds] == pytest.approx([0.001 * math.pi, 0.002 * math.pi, 7.6e-4])
    assert {row["weight_bytes"] for row in found.rows if row["name"] == "gguf/q8_0"} == {8.5 / 8}


def test_the_charts_of_a_history_share_their_points(everything_results: Results) -> None:
    (found,) = history.histories(everything_results.subjects, 10_000)
    (course,) = courses(everything_results, 10_000)
    packed = json.loads(course.points)
    rows = [dict(zip(packed["fields"], row, strict=True)) for row in packed["rows"]]
    for row in rows:
        row.update({name: packed["texts"][row[name]] for name in packed["fields"][: packed["named"]]})
    assert [{name: value for name, value in row.items() if value is not None} for row in rows] == list(found.rows)
    for figure, (metric, title) in zip(course.figures, found.metrics, strict=True):
        drawn = json.loads(str(figure.spec).encode().decode("unicode_escape"))
        assert (drawn["data"], drawn["description"]) == ({"name": "points"}, f"{title} over the runs")
        assert {layer["encoding"]["y"]["field"] for layer in drawn["layer"]} == {metric, f"{metric}_low"}


def test_a_history_leaves_out_the_earliest_runs_and_says_so(everything_results: Results) -> None:
    (course,) = courses(everything_results, 4)
    assert (course.runs, course.left_out) == (2, 1)


def test_one_run_has_no_history(write: Any, record: Callable[..., Any]) -> None:
    assert courses(write([record("torch/fp32")]), 100) == []


@pytest.mark.parametrize(
    ("ends", "ticks"),
    [
        ((1e-6, 2.0), [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]),
        ((0.2, 30), [0.2, 0.5, 1, 2, 5, 10, 20]),
        ((2.1, 24), [3, 4, 6, 8, 10, 15, 20]),
        ((9, 21), [10, 15, 20]),
    ],
)
def test_log_scales_have_round_ticks(ends: tuple[float, float], ticks: list[float]) -> None:
    assert log_ticks(*ends) == pytest.approx(ticks)


def test_every_colour_is_there_in_both_schemes() -> None:
    assert LIGHT.keys() == DARK.keys()
    names = [f"method-{number}" for number in range(12)]
    for ink in (on_page, on_paper):
        colours, shapes = series(names, ink)
        assert len(set(zip(colours, shapes, strict=True))) == 10
        assert colours[0] == colours[10]


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_have_enough_contrast(scheme: dict[str, str]) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    for on in ("page", "panel", "soft"):
        for name in ("ink", "muted", "accent"):
            assert _contrast(scheme[name], scheme[on]) >= 4.5
    assert min(_contrast(scheme[name], scheme["page"]) for name in ("warn", "bad")) >= 4.5
    for name in ("added", "removed"):
        assert _contrast(scheme[f"{name}-ink"], scheme[name]) >= 4.5
    assert _contrast(scheme["warn"], scheme["warn-soft"]) >= 4.5


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
