"""Comparisons of rows made here: what is told apart, what is not, and what cannot be compared."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from quantbench.core.errors import UsageError
from quantbench.judge.compare import Change, Comparison, Entry, compare, parse_threshold, show

SCENARIOS = ("canary/torch-bf16/ten", "canary/gguf-q8_0/ten", "canary/gguf-q4_k_m/ten", "canary/bitsandbytes-nf4/ten")
ITL_S = 0.004


def row(scenario: str, process: int, **changes: Any) -> dict[str, Any]:
    """A row whose speeds spread by about 1 % from process to process, seeded."""
    noise = np.random.default_rng([process, *f"{scenario} {changes.get('run_id', 'a')}".encode()])
    itl_s = changes.pop("itl_s", ITL_S) * (1 + noise.normal(0, 0.01))
    return {
        "run_id": "a", "started_at": f"2026-01-01T00:{process:02d}", "repeat": process, "scenario_id": scenario,
        "scenario_key": "k", "schema_version": 1, "machine": "m", "cpu": "a CPU", "kernel": "aten", "status": "ok",
        "reason": None, "versions": json.dumps({"torch": "2.13"}), "threads": 2, "seed": 0,
        "itl_s": itl_s, "itl_ratio": 0.008 * (1 + noise.normal(0, 0.005)) / itl_s,
        "prefill_tps": 3000 * (1 + noise.normal(0, 0.01)), "prefill_ratio": 1.5 * (1 + noise.normal(0, 0.005)),
        "weight_bytes": 4000, "kld_mean": 0.02, "ppl": 12.0, "peak_rss_bytes": 500,
        **changes,
    }  # fmt: skip


def side(processes: int = 5, *, run_id: str = "a", of: Sequence[str] = SCENARIOS, **changes: Any) -> pd.DataFrame:
    """So many processes of every scenario; a change given by scenario is a mapping."""
    rows = []
    for scenario in of:
        own = {name: value.get(scenario) for name, value in changes.items() if isinstance(value, Mapping) and scenario in value}
        same = {name: value for name, value in changes.items() if not isinstance(value, Mapping)}
        rows += [row(scenario, process, run_id=run_id, **same, **own) for process in range(processes)]
    return pd.DataFrame(rows)


def entry(found: Comparison, scenario: str, metric: str) -> Entry:
    (one,) = [each for each in found.entries if (each.scenario_id, each.metric) == (scenario, metric)]
    return one


def test_equal_sides_are_the_same_with_the_effect_that_would_have_shown() -> None:
    found = compare(side(), side(run_id="b"))
    assert {each.verdict for each in found.entries} == {Change.SAME}
    assert len(found.entries) == len(SCENARIOS) * 5  # decode, prefill, bytes, KLD, perplexity
    decode = entry(found, SCENARIOS[0], "decode")
    assert decode.mde is not None
    assert 0.0 < decode.mde < 0.1
    assert decode.processes == (5, 5)
    assert found.conclusive
    assert show.sentence(found).startswith("No regression; 20 same; among the same speeds a change of ")


def test_a_slowdown_that_is_found_again_is_worse_and_named() -> None:
    slow = {SCENARIOS[1]: ITL_S * 1.2}
    found = compare(side(), side(run_id="b", itl_s=slow), again=side(run_id="c", itl_s=slow))
    (worse,) = found.of(Change.WORSE)
    assert (worse.scenario_id, worse.metric, worse.gate) == (SCENARIOS[1], "decode", "ratio")
    assert worse.change == pytest.approx(1 / 1.2 - 1, abs=0.02)
    assert worse.candidate == pytest.approx(ITL_S * 1.2, rel=0.02)
    assert show.sentence(found).startswith(f"Regression: {SCENARIOS[1]} decode -1")


def test_a_speed_up_is_better() -> None:
    fast = {SCENARIOS[2]: ITL_S / 1.3}
    found = compare(side(), side(10, run_id="b", itl_s=fast))
    assert [(each.scenario_id, each.metric) for each in found.of(Change.BETTER)] == [(SCENARIOS[2], "decode")]
    assert not found.of(Change.WORSE)


def test_twice_the_processes_are_their_own_second_measurement() -> None:
    slow = {SCENARIOS[1]: ITL_S * 1.2}
    found = compare(side(), side(10, run_id="b", itl_s=slow))
    assert entry(found, SCENARIOS[1], "decode").verdict is Change.WORSE
    assert entry(found, SCENARIOS[1], "decode").processes == (5, 5)


def test_what_was_flagged_once_only_is_not_believed() -> None:
    slow = {SCENARIOS[1]: ITL_S * 1.2}
    once = compare(side(), side(run_id="b", itl_s=slow))
    flagged = entry(once, SCENARIOS[1], "decode")
    assert flagged.verdict is Change.INSUFFICIENT
    assert flagged.reason == "flagged, and believed only if found again: measure 5 more processes of the candidate"
    twice = compare(side(), side(run_id="b", itl_s=slow), again=side(run_id="c"))
    assert entry(twice, SCENARIOS[1], "decode").verdict is Change.SAME


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [(1, 1, "4 more of the baseline and 4 more of the candidate"), (5, 3, "2 more of the candidate")],
)
def test_too_few_processes_say_how_many_more(first: int, second: int, says: str) -> None:
    found = compare(side(first), side(second, run_id="b"))
    decode = entry(found, SCENARIOS[0], "decode")
    assert (decode.verdict, decode.mde, decode.change) == (Change.INSUFFICIENT, None, None)
    assert decode.reason == f"the rule needs 5 processes per side: {says}"
    assert entry(found, SCENARIOS[0], "weight_bytes").verdict is Change.SAME
    assert not found.conclusive
    assert show.sentence(found).startswith(f"Not enough data: 8 figures: {decode.reason}")


def test_deterministic_figures_go_by_threshold_alone() -> None:
    worse_kld = {SCENARIOS[2]: 0.03}
    found = compare(side(1), side(1, run_id="b", kld_mean=worse_kld, weight_bytes={SCENARIOS[0]: 3000}))
    assert [(each.scenario_id, each.metric) for each in found.of(Change.WORSE)] == [(SCENARIOS[2], "kld_mean")]
    assert [(each.scenario_id, each.metric) for each in found.of(Change.BETTER)] == [(SCENARIOS[0], "weight_bytes")]
    assert entry(found, SCENARIOS[2], "kld_mean").change == pytest.approx(0.5)


def test_rounding_of_a_tiny_divergence_is_no_change() -> None:
    found = compare(side(1, kld_mean=2e-7), side(1, run_id="b", kld_mean=6e-7))
    assert not found.of(Change.WORSE)


def test_thresholds_widen_what_counts_and_add_columns() -> None:
    slow = {SCENARIOS[1]: ITL_S * 1.2}
    before, after = side(), side(10, run_id="b", itl_s=slow, kld_mean=0.022, peak_rss_bytes=600)
    wide = compare(before, after, thresholds={"decode": 0.5, "kld_mean": 0.2, "peak_rss_bytes": 0.1})
    assert {each.metric for each in wide.of(Change.WORSE)} == {"peak_rss_bytes"}
    assert {each.metric for each in compare(before, after).of(Change.WORSE)} == {"decode", "kld_mean"}
    with pytest.raises(UsageError, match="unknown figure or column with a direction 'kld_men'; did you mean 'kld_mean'"):
        compare(before, after, thresholds={"kld_men": 0.1})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"machine": "n", "cpu": "another CPU"}, "measured on another machine: a CPU became another CPU"),
        ({"machine": "n"}, "measured on another machine: m became n"),
        ({"kernel": "gemm"}, "run by another kernel: aten became gemm"),
        ({"schema_version": 2}, "stored under another schema version: 1 became 2"),
        ({"scenario_key": "l", "threads": 4}, "asked differently: threads 2 became 4"),
        ({"scenario_key": "l"}, "asked differently: the files of the model, the prompts or the calibration"),
    ],
)
def test_incomparable_says_why(changes: dict[str, Any], says: str) -> None:
    found = compare(side(), side(run_id="b", **{name: {SCENARIOS[0]: value} for name, value in changes.items()}))
    (one,) = found.of(Change.INCOMPARABLE)
    assert (one.scenario_id, one.reason) == (SCENARIOS[0], says)
    assert found.conclusive


def test_a_scenario_that_is_gone_is_worse_and_one_that_is_new_is_named() -> None:
    found = compare(side(of=SCENARIOS[:3]), side(run_id="b", of=SCENARIOS[1:]))
    assert [(each.scenario_id, each.reason) for each in found.of(Change.INCOMPARABLE)] == [
        (SCENARIOS[3], "missing from the baseline")
    ]
    (worse,) = found.of(Change.WORSE)
    assert (worse.scenario_id, worse.metric, worse.reason) == (SCENARIOS[0], "status", "missing from the candidate")
    assert show.sentence(found).startswith(f"Regression: {SCENARIOS[0]} status missing from the candidate; 1 worse")


def test_what_was_left_out_of_the_selection_is_named_and_no_regression() -> None:
    found = compare(side(), side(run_id="b", of=SCENARIOS[2:]), whole=True)
    assert not found.of(Change.WORSE)
    assert found.conclusive
    assert found.left_out == SCENARIOS[:2]
    assert show.sentence(found).endswith(
        f"; 2 scenarios of the baseline not selected for the candidate: {SCENARIOS[0]}, {SCENARIOS[1]}"
    )
    assert show.as_data(found)["left_out"] == list(SCENARIOS[:2])


def test_a_scenario_that_is_skipped_now_is_worse() -> None:
    skipped = {"status": {SCENARIOS[0]: "skipped"}, "reason": {SCENARIOS[0]: "it needs torch"}}
    (worse,) = compare(side(), side(run_id="b", **skipped)).of(Change.WORSE)
    assert (worse.scenario_id, worse.reason) == (SCENARIOS[0], "was ok, now skipped, it needs torch")


@pytest.mark.parametrize(
    ("value", "why"),
    [(None, "the reference failed"), (float("inf"), "it is inf"), (float("nan"), "null"), (-np.inf, "it is -inf")],
)
def test_a_deterministic_figure_that_is_null_or_not_finite_now_is_worse(value: float | None, why: str) -> None:
    reasons = json.dumps({"kld_mean": "the reference failed"}) if value is None else "{}"
    after = side(2, run_id="b").assign(null_reasons=reasons)
    after["kld_mean"] = after["kld_mean"].astype(object)
    after.loc[after["scenario_id"] == SCENARIOS[1], "kld_mean"] = value
    found = compare(side(2), after)
    (worse,) = found.of(Change.WORSE)
    assert (worse.scenario_id, worse.metric) == (SCENARIOS[1], "kld_mean")
    assert worse.reason == f"the candidate has none, where the baseline has it: {why}"
    back = compare(after.assign(run_id="a"), side(2, run_id="b"))
    assert not back.of(Change.WORSE)
    assert {(each.metric, each.reason) for each in back.of(Change.INCOMPARABLE)} == {("kld_mean", "the baseline has none")}
    both = compare(after.assign(run_id="a"), after)
    assert not both.of(Change.WORSE)


def test_a_figure_that_some_processes_lack_now_is_worse() -> None:
    after = side(2, run_id="b", of=SCENARIOS[:1])
    after.loc[1, "kld_mean"] = np.inf
    (worse,) = compare(side(2, of=SCENARIOS[:1]), after).of(Change.WORSE)
    assert worse.reason == "1 of 2 processes have none, where the baseline has it: it is inf"


def test_speeds_beside_other_work_are_insufficient_and_say_so() -> None:
    slow, disturbed = {SCENARIOS[1]: ITL_S * 2}, {SCENARIOS[1]: True}
    found = compare(side(), side(10, run_id="b", itl_s=slow, disturbed=disturbed, disturbance="a compiler"))
    entries = [entry(found, SCENARIOS[1], metric) for metric in ("decode", "prefill")]
    assert {each.verdict for each in entries} == {Change.INSUFFICIENT}
    assert entries[0].reason == (
        "measured beside other work: 5 of 5 of the candidate (a compiler); measure again on a quiet machine"
    )
    assert not found.of(Change.WORSE)
    assert entry(found, SCENARIOS[1], "kld_mean").verdict is Change.SAME
    assert not found.conclusive


def test_processes_that_were_quiet_are_judged_where_they_are_enough() -> None:
    after = side(6, run_id="b")
    after["disturbed"] = after["repeat"] == 5
    after.loc[after["disturbed"], "itl_s"] *= 20
    decode = entry(compare(side(), after), SCENARIOS[0], "decode")
    assert (decode.verdict, decode.processes) == (Change.SAME, (5, 5))
    few = entry(compare(side(), after[after["repeat"] > 0]), SCENARIOS[0], "decode")
    assert (few.verdict, few.processes) == (Change.INSUFFICIENT, (5, 4))
    assert few.reason.startswith("the rule needs 5 processes per side: 1 more of the candidate; measured beside other work: ")


def test_how_forward_passes_are_sliced_is_the_floor_of_what_they_score() -> None:
    before, after = side(1, top1_agreement=0.95), side(1, run_id="b", kld_mean=0.024, top1_agreement=0.93)
    assert {each.metric for each in compare(before, after).of(Change.WORSE)} == {"kld_mean", "top1_agreement"}
    sliced = after.assign(kld_slicing=0.005, top1_slicing=0.03)
    assert not compare(before, sliced).of(Change.WORSE)
    assert {each.metric for each in compare(before, sliced.assign(kld_slicing=0.001)).of(Change.WORSE)} == {"kld_mean"}


def test_nothing_in_common_is_not_enough() -> None:
    found = compare(side(of=SCENARIOS[:1]), side(run_id="b", of=SCENARIOS[1:2]))
    assert not found.conclusive
    assert show.sentence(found).startswith("Not enough data: nothing can be compared, for example missing from the baseline")


def test_a_window_takes_only_what_is_comparable() -> None:
    window = pd.concat([side(5, run_id="old", machine="n"), side(5, run_id="a")])
    found = compare(window, side(run_id="b"))
    assert entry(found, SCENARIOS[0], "decode").processes == (5, 5)


def test_a_scenario_that_fails_now_is_worse_and_one_that_works_now_better() -> None:
    broken = {"status": {SCENARIOS[0]: "oom"}, "reason": {SCENARIOS[0]: "killed: out of memory"}}
    found = compare(side(), side(run_id="b", **broken))
    assert entry(found, SCENARIOS[0], "status").verdict is Change.WORSE
    assert entry(found, SCENARIOS[0], "status").reason == "was ok, now oom, killed: out of memory"
    assert entry(compare(side(**broken), side(run_id="b")), SCENARIOS[0], "status").verdict is Change.BETTER


def test_processes_that_fail_where_none_did_are_worse_beside_the_figures_of_the_others() -> None:
    mixed = side(10, run_id="b")
    broken = (mixed["scenario_id"] == SCENARIOS[0]) & (mixed["repeat"] >= 6)
    mixed.loc[broken, ["status", "reason"]] = ["crashed", "killed by signal 11"]
    found = compare(side(), mixed)
    assert [(each.scenario_id, each.metric) for each in found.of(Change.WORSE)] == [(SCENARIOS[0], "status")]
    assert entry(found, SCENARIOS[0], "status").reason == (
        "4 of 10 processes failed, where none did before: crashed, killed by signal 11"
    )
    assert entry(found, SCENARIOS[0], "decode").processes == (5, 6)
    assert not compare(mixed, mixed.assign(run_id="c")).of(Change.WORSE)


def test_how_a_side_ended_is_said_of_that_side() -> None:
    before = side(2, of=SCENARIOS[:1], status="skipped", reason="no CUDA")
    after = side(2, run_id="b", of=SCENARIOS[:1])
    after.loc[after["repeat"] == 1, ["status", "reason"]] = ["crashed", "killed by signal 11"]
    (one,) = compare(before, after).entries
    assert (one.verdict, one.reason) == (Change.INCOMPARABLE, "baseline skipped, no CUDA")
    before.loc[before["repeat"] == 1, ["status", "reason"]] = ["oom", "no room"]
    (one,) = compare(before, after).entries
    assert (one.verdict, one.reason) == (Change.BETTER, "was oom, no room; now ok")


@pytest.mark.parametrize("changes", [{"machine": "n"}, {"scenario_key": "l"}, {"kernel": "gemm"}])
def test_a_second_measurement_of_something_else_confirms_nothing(changes: dict[str, Any]) -> None:
    slow = {SCENARIOS[1]: ITL_S * 1.2}
    found = compare(side(), side(run_id="b", itl_s=slow), again=side(run_id="c", itl_s=slow, **changes))
    assert entry(found, SCENARIOS[1], "decode").verdict is Change.INSUFFICIENT


def test_of_a_candidate_of_several_machines_the_last_one_counts() -> None:
    found = compare(side(), pd.concat([side(5, run_id="b", machine="n", itl_s=1.0), side(5, run_id="c")]))
    decode = entry(found, SCENARIOS[0], "decode")
    assert (decode.verdict, decode.processes) == (Change.SAME, (5, 5))
    assert decode.candidate == pytest.approx(ITL_S, rel=0.02)


@pytest.mark.parametrize("lost", [None, float("nan"), 0.0, -1.0])
def test_a_speed_that_is_gone_is_worse_and_one_that_is_new_incomparable(lost: float | None) -> None:
    found = compare(side(), side(run_id="b").assign(itl_s=lost))
    assert {each.metric for each in found.of(Change.WORSE)} == {"decode"}
    assert len(found.of(Change.WORSE)) == len(SCENARIOS)
    assert all(each.reason.startswith("the candidate has none, where the") for each in found.of(Change.WORSE))
    back = compare(side().assign(itl_s=lost), side(run_id="b"))
    assert {each.reason for each in back.of(Change.INCOMPARABLE)} == {"the baseline has none"}


def test_the_least_effect_is_no_less_than_the_threshold_that_was_asked_for() -> None:
    found = compare(side(), side(run_id="b"), thresholds={"decode": 0.5})
    assert entry(found, SCENARIOS[0], "decode").mde == 0.5
    assert 0 < (entry(found, SCENARIOS[0], "prefill").mde or 0) < 0.1


def test_a_reason_neither_breaks_the_sentence_nor_commands_a_terminal_nor_fills_a_job_page() -> None:
    hostile = "\x1b[31mred\nline " + "x" * 2_000_000
    found = compare(side(1), side(1, run_id="b", status="oom", reason=hostile))
    sentence = show.sentence(found)
    assert sentence.isprintable()
    assert len(sentence) < 4000
    assert len(show.as_markdown(found, everything=True).encode()) <= show.MARKDOWN_LIMIT


def test_changed_versions_are_noted() -> None:
    found = compare(side(), side(run_id="b", versions=json.dumps({"torch": "2.14", "gguf": "1"})))
    assert found.notes == ("torch 2.13 became 2.14",)


def test_a_side_that_was_slowed_is_noted_with_its_reasons() -> None:
    """Empty where nothing held the clocks back, null where there are none."""
    slowed = {"gpu_throttle_reasons": {SCENARIOS[1]: "sw_power_cap,hw_thermal", SCENARIOS[2]: "hw_thermal", SCENARIOS[3]: ""}}
    found = compare(side(), side(run_id="b", **slowed))
    note = f"the GPU throttled its clocks (hw_thermal, sw_power_cap) in 2 scenarios of the candidate, such as {SCENARIOS[1]}"
    assert found.throttled == (note,)
    assert f"clocks: {note}" in show.table(found, everything=False).notes
    assert show.as_data(found)["throttled"] == [note]
    both = compare(side(of=SCENARIOS[:1], gpu_throttle_reasons="hw_slowdown"), side(run_id="b", of=SCENARIOS[:1]))
    assert both.throttled == (
        f"the GPU throttled its clocks (hw_slowdown) in 1 scenario of the baseline, such as {SCENARIOS[0]}",
    )
    assert compare(side(), side(run_id="b")).throttled == ()


def test_the_table_hides_what_stayed_the_same_and_says_so() -> None:
    found = compare(side(1), side(1, run_id="b", kld_mean=0.03))
    few, many = show.table(found, everything=False), show.table(found, everything=True)
    assert len(few.rows) == 12  # KLD worse, decode and prefill without data, of four scenarios
    assert "8 figures stayed the same and are not shown; --all shows them" in few.notes
    assert len(many.rows) == len(found.entries) == 20
    assert [str(cells[6].value) for cells in few.rows][:4] == ["worse"] * 4


def test_markdown_stays_below_the_limit_of_a_job_page() -> None:
    names = [f"canary/<b>{'x' * 4000}/{number}" for number in range(100)]
    text = show.as_markdown(compare(side(1, of=names), side(1, run_id="b", of=names)), everything=True)
    assert len(text.encode()) <= show.MARKDOWN_LIMIT
    assert "more lines do not fit here" in text
    assert "<b>" not in text


def test_json_has_everything_and_no_nan() -> None:
    body = json.loads(json.dumps(show.as_data(compare(side(1), side(1, run_id="b"))), allow_nan=False))
    assert body["counts"]["insufficient data"] == 8
    assert {each["metric"] for each in body["entries"]} == {"decode", "prefill", "weight_bytes", "kld_mean", "ppl"}


def test_junit_has_a_case_a_figure_with_its_values() -> None:
    broken = compare(side(1), side(1, run_id="b", kld_mean={SCENARIOS[0]: 0.03}, reason="\x00"))
    suite = ET.fromstring(show.as_junit(broken))  # noqa: S314 - we wrote it
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("20", "1", "8")
    (failed,) = [case for case in suite if case.find("failure") is not None]
    assert (failed.get("classname"), failed.get("name")) == (SCENARIOS[0], "kld_mean")
    values = {each.get("name"): each.get("value") for each in failed.iter("property")}
    assert (values["verdict"], values["baseline"], values["candidate"]) == ("worse", "0.02", "0.03")


@pytest.mark.parametrize("text", ["decode", "decode=", "decode=x", "=5", "decode=-1", "decode=inf", "decode=nan", ""])
def test_a_threshold_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not METRIC=PCT; write for example decode=5"):
        parse_threshold(text)


def test_thresholds_are_percents() -> None:
    assert parse_threshold("decode=5") == ("decode", 0.05)
    assert parse_threshold(" kld_mean = 12.5% ") == ("kld_mean", 0.125)
