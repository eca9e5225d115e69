"""How long a run takes, by arithmetic: fixed inputs, and a clock that is told the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quantbench.core.scenario import Conditions, Effort, Scenario, Variant
from quantbench.running.estimate import (
    Load,
    MachineSpeed,
    announced,
    expected,
    job_s,
    reading_s,
    reference_s,
    remember_pace,
    step_s,
    this_machine,
)
from quantbench.running.progress import Expected, Moment, Progress

MACHINE = MachineSpeed(bandwidth_bps=1e10, cores=2)
LOAD = Load(
    weight_bytes=1e9, anchor_bytes=1e9, parameters=250_000_000, layers=10, answers=10, answer_tokens=32, scored=1000
)  # fmt: skip


def scenario(precision: str, method: str = "torch") -> Scenario:
    return Scenario(model="canary", variant=Variant(method=method, precision=precision), prompts="two")


def test_the_arithmetic_of_a_job() -> None:
    assert step_s(1e9, 10, MACHINE) == pytest.approx(0.1 + 0.002)
    assert reading_s(250_000_000, 1000, MACHINE) == pytest.approx(2 * 0.25e9 * 1000 / 8e10)
    answer = 32 * 0.102
    assert job_s(LOAD, Effort(), MACHINE) == pytest.approx(2 + 2e9 / 5e8 + 4 * answer + 10 * answer * 4 / 3 + 6.25)
    sampling = 2 * 128 * 0.102 * 1.8
    assert reference_s(LOAD, 30, 128, MACHINE) == pytest.approx(2 + 2 + sampling + 10 * answer + 6.25)


def test_a_small_model_takes_its_budget() -> None:
    tiny = replace(LOAD, weight_bytes=1e5, anchor_bytes=1e5, parameters=25_000, layers=1, scored=0)
    assert job_s(tiny, Effort(budget_s=2.0), MACHINE) == pytest.approx(2 + 2 * 4 / 3, abs=0.1)


def test_the_reference_is_counted_once_and_a_conversion_where_there_is_one() -> None:
    jobs = [scenario("fp32"), scenario("bf16"), scenario("q8_0", "gguf")]
    found = expected(jobs, Effort(), MACHINE)
    assert [found[each.job].reference_s > 0 for each in jobs] == [True, False, False]
    assert [found[each.job].prepare_s > 0 for each in jobs] == [False, False, True]
    slower = expected(jobs, Effort(), replace(MACHINE, pace=3.0))
    assert slower[jobs[0].job].measure_s == pytest.approx(3 * found[jobs[0].job].measure_s)


def test_a_run_says_its_length_and_a_reference_that_takes_too_long() -> None:
    jobs = [scenario("fp32"), scenario("bf16")]
    forecast = {jobs[0].job: Expected(measure_s=100, reference_s=1000), jobs[1].job: Expected(measure_s=60, prepare_s=40)}
    first, second = announced(jobs, forecast, 900.0, "a guess")
    assert "2 scenarios in 2 jobs: about 20 min" in first
    assert "(17 min for references and 40 s for converting, unless cached)" in first
    assert first.endswith("estimated from a guess")
    assert "the reference may take 17 min, but only 15 min is allowed" in second
    assert len(announced(jobs, forecast, 2000.0, "a guess")) == 1
    assert announced(jobs, {}, 900.0, "a guess") == []


def test_what_was_measured_here_corrects_the_next_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path))
    machine, origin = this_machine("cpu", 2)
    assert machine.pace == 1.0
    assert "assumed" in origin
    remember_pace("cpu", 1.0, 2.5)
    assert this_machine("cpu", 2)[0].pace == 2.5
    assert this_machine("cuda", 2)[0].pace == 1.0


class Seen:
    """A display that keeps what it is shown last of each variant."""

    def __init__(self) -> None:
        self.left: list[float | None] = []

    def show(self, moment: Moment) -> None:
        """Not looked at."""

    def done(self, moment: Moment) -> None:
        self.left.append(moment.left_s)

    def clear(self) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Nothing is open."""


def test_after_the_first_variant_the_rest_follows_from_the_estimate_without_what_is_made_once() -> None:
    """The first took 50 s for the reference and 20 s where 10 were estimated: of 40 s left there will be 80."""
    now = [0.0]
    jobs = [
        Scenario(model="canary", variant=Variant(method="torch", precision=name), prompts="two", conditions=Conditions())
        for name in ("fp32", "bf16", "fp16")
    ]
    forecast = {
        jobs[0].job: Expected(measure_s=10, reference_s=30), jobs[1].job: Expected(measure_s=10),
        jobs[2].job: Expected(measure_s=30),
    }  # fmt: skip
    seen = Seen()
    progress = Progress(seen, jobs=3, polls=False, clock=lambda: now[0], expected=forecast)
    with progress.job([jobs[0]]):
        progress.working("reference", Path())
        now[0] += 50
        progress.working("measure", Path())
        now[0] += 20
    with progress.job([jobs[1]]):
        progress.working("measure", Path())
        now[0] += 20
    assert seen.left == [pytest.approx(80), pytest.approx(60)]
    assert progress.pace == pytest.approx(2)


def test_small_models_without_an_estimate_say_nothing_about_the_variants_that_have_one() -> None:
    """Two jobs of unknown shapes took 1 s each; of 100 s estimated for another 100 are left, and 1 s for the last of them."""
    now = [0.0]
    small = [
        Scenario(model="lstm", variant=Variant(method="torch", precision=name), prompts="seeded", conditions=Conditions())
        for name in ("fp32", "bf16", "fp16")
    ]
    large = replace(small[0], model="canary", prompts="two")
    seen = Seen()
    progress = Progress(seen, jobs=4, polls=False, clock=lambda: now[0], expected={large.job: Expected(measure_s=100)})
    for each in small[:2]:
        with progress.job([each]):
            progress.working("measure", Path())
            now[0] += 1
    with progress.job([large]):
        progress.working("measure", Path())
        now[0] += 100
    assert seen.left[:2] == [pytest.approx(102), pytest.approx(101)]
    assert seen.left[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("took_s", "left_s"),
    [
        pytest.param(100, (10 + 100) + (10 + 5) + (10 + 5), id="slow-as-calibrating-is"),
        pytest.param(0, 10 + 10 + 10, id="kept-from-before"),
    ],
)
def test_what_one_methods_artifact_took_says_how_long_its_next_takes_and_slows_no_other_method(
    took_s: float, left_s: float
) -> None:
    """Of two methods with two variants each, estimated at 10 s and 5 s for the artifact; the first one's is made or kept."""
    now = [0.0]
    jobs = [
        Scenario(model="canary", variant=Variant(method=method, precision=name), prompts="two", conditions=Conditions())
        for method in ("gptq", "gguf") for name in ("int4-g128", "int8")
    ]  # fmt: skip
    seen = Seen()
    forecast = {each.job: Expected(measure_s=10, prepare_s=5) for each in jobs}
    progress = Progress(seen, jobs=4, polls=False, clock=lambda: now[0], expected=forecast)
    with progress.job([jobs[0]]):
        progress.working("prepare", Path())
        now[0] += took_s
        progress.working("measure", Path())
        now[0] += 10
    assert seen.left == [pytest.approx(left_s)]
