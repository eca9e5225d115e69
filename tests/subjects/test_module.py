"""A module from the job to the row: what the worker saw, and what a run of the shipped benchmarks stores."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from quantbench.core.job import TRACE_FILE, Job, Task
from quantbench.core.other_work import OtherWorkWatch
from quantbench.core.record import Missing
from quantbench.core.scenario import SEEDED_INPUTS, Conditions, Effort, Variant
from quantbench.core.trace import Trace
from quantbench.measuring.subjects import module
from quantbench.metrics import evaluate
from quantbench.models.checkpoint import resolve
from quantbench.planning.prompts import load

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

INT8 = Variant(method="torch-dynamic", precision="int8")
FP32 = Variant(method="torch", precision="fp32")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Trace]]:
    """Measure ``lstm`` in this process; what was measured once is not measured again."""
    quiet = pytest.MonkeyPatch()  # what is tested is what is measured, not the machine that tests run on
    quiet.setattr(OtherWorkWatch, "crowded", lambda _: False)

    @cache
    def measure(variant: Variant, **conditions: object) -> Trace:
        folder = tmp_path_factory.mktemp("job")
        job = Job(
            kind="measure",
            checkpoint=resolve("lstm"),
            variant=variant,
            conditions=replace(Conditions(threads=1), **conditions),
            effort=Effort(min_rounds=3, max_rounds=3, budget_s=0.0),
            tasks=(Task(prompts_name=SEEDED_INPUTS, prompts=load(SEEDED_INPUTS).prompts, reference=None),),
        )
        module.measure(job, folder)
        return Trace.load(folder / TRACE_FILE.format(0))

    yield measure
    quiet.undo()


def test_a_quantized_module_is_timed_beside_its_reference_and_compared_with_it(measured: Callable[..., Trace]) -> None:
    trace = measured(INT8)
    assert trace.anchor == "torch/fp32"
    assert len(trace.calls) == 3
    assert {len(each.variant) % 10 for each in trace.calls} == {0}
    assert trace.calls[0].anchor
    assert trace.distance
    assert trace.distance.inputs == 64
    assert 0.999 < trace.distance.cosine < 1
    assert 0 < trace.distance.max_abs_error < 0.01
    assert trace.facts["kernel"].startswith("DynamicQuantizedLSTM+DynamicQuantizedLinear-")
    assert trace.facts["threads"] == "1"


def test_its_memory_is_known_and_its_parameters_are_the_references(measured: Callable[..., Trace]) -> None:
    trace = measured(INT8)
    assert trace.parameters == 6025
    assert trace.weights
    assert trace.weights.weight_bytes == trace.weight_bytes_running == 5700 + 5 * 8 + 4 * 325
    assert trace.weights.state_dict_bytes
    assert trace.peak
    assert trace.peak.peak_rss_bytes >= trace.peak.rss_anon_bytes > 0
    assert trace.load_s is not None
    assert trace.measured_s > trace.load_s > 0


def test_where_nothing_is_to_be_timed_it_is_compared_and_not_called_by_the_clock(tmp_path: Path) -> None:
    why = "other tests run at the same time"
    job = Job(
        kind="measure", checkpoint=resolve("lstm"), variant=INT8, conditions=Conditions(threads=1), effort=Effort(untimed=why),
        tasks=(Task(prompts_name=SEEDED_INPUTS, prompts=load(SEEDED_INPUTS).prompts, reference=None),),
    )  # fmt: skip
    module.measure(job, tmp_path)
    values = evaluate(Trace.load(tmp_path / TRACE_FILE.format(0)), None)
    for name in ("call_s", "call_ratio", "load_s", "import_s"):
        assert values[name] == Missing(why)
    assert 0.999 < values["output_cosine"] < 1  # type: ignore[operator]  # a float
    assert values["weight_bytes"] == 5700 + 5 * 8 + 4 * 325


def test_it_pretends_to_no_tokens(measured: Callable[..., Trace]) -> None:
    trace = measured(INT8)
    assert (trace.rounds, trace.answers, trace.columns) == ((), (), None)
    assert {"rounds", "answers", "columns"} <= set(trace.absent)
    assert "without tokens" in trace.absent["rounds"]


@pytest.mark.parametrize("variant", [FP32, replace(FP32, control=True)], ids=lambda variant: variant.label)
def test_the_reference_and_its_control_are_exactly_themselves(variant: Variant, measured: Callable[..., Trace]) -> None:
    trace = measured(variant)
    assert trace.distance
    assert trace.distance.max_abs_error == 0
    assert trace.distance.cosine == pytest.approx(1, rel=1e-12)
    assert trace.anchor == "torch/fp32"


def test_another_reference_is_what_the_outputs_are_compared_with(measured: Callable[..., Trace]) -> None:
    trace = measured(FP32, reference="torch-dynamic/int8")
    assert trace.distance == measured(INT8).distance


def test_a_reference_that_cannot_open_it_is_no_comparison(measured: Callable[..., Trace]) -> None:
    trace = measured(INT8, reference="gguf/f16")
    assert trace.distance is None
    assert "the reference gguf/f16 cannot open this module" in trace.absent["distance"]
    assert trace.calls[0].anchor


def test_another_seed_gives_other_inputs(measured: Callable[..., Trace]) -> None:
    assert measured(INT8).distance != measured(INT8, seed=1).distance


@pytest.fixture
def run(
    pytester: pytest.Pytester, warm: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., pytest.RunResult]:
    """Run the shipped benchmarks, and one of a user's own, on a matrix of the given models."""
    pytester.makepyfile(
        test_call="from quantbench.suite.test_call import test_call",
        test_latency="from quantbench.suite.test_latency import test_decode, test_prefill",
        test_load="from quantbench.suite.test_load import test_load",
        test_own="def test_own(quantbench_scenario): pass",
    )

    def run_on(models: list[str], *arguments: str) -> pytest.RunResult:
        pytester.path.joinpath("matrix.toml").write_text(
            f'models = {models!r}\nprompts = ["two"]\ncontrol = false\n[methods]\ntorch = ["fp32"]\ntorch-dynamic = ["int8"]\n'
            'gguf = ["q8_0"]\n'
        )
        options = ("--quantbench-matrix=matrix.toml", "--quantbench-profile=quick", "--quantbench-engine=inline")
        cheap = ("--quantbench-threads=1", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
        strict = ("-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning")  # what was imported
        command = [sys.executable, "-m", "pytest", *options, *cheap, *strict, *arguments]
        done = warm(command, env=os.environ, cwd=pytester.path)
        return pytest.RunResult(done.returncode, done.stdout.splitlines(), [], 0.0)

    return run_on


def test_each_benchmark_gets_the_scenarios_that_it_is_for(run: Callable[..., pytest.RunResult]) -> None:
    out = run(["canary", "lstm"], "--collect-only", "-q").outlines
    text = {f"canary/{variant}/two" for variant in ("torch-fp32", "torch-dynamic-int8", "gguf-q8_0")}
    modules = {f"lstm/{variant}/seeded" for variant in ("torch-fp32", "torch-dynamic-int8")}
    found: dict[str, set[str]] = {}
    for line in out:
        if "::" in line:
            test, _, identifier = line.rpartition("::")[2].rstrip("]").partition("[")
            found.setdefault(test, set()).add(identifier)
    assert found == {
        "test_call": modules, "test_decode": text, "test_prefill": text,
        "test_load": text | modules, "test_own": text | modules,
    }  # fmt: skip


def test_a_run_of_a_module_has_rows_samples_and_a_summary_without_noise(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = run(["lstm"])
    result.assert_outcomes(passed=6)  # two variants: call, load, and the user's own
    result.stdout.no_fnmatch_line("*empty parameter set*")
    result.stdout.no_fnmatch_line("Ship *")
    result.stdout.fnmatch_lines(["Measured: lstm, prompts seeded", "*Call*Speed, x torch/fp32*Cosine*Largest error*"])

    rows = pd.read_parquet(pytester.path / "results" / "scenarios").set_index("scenario_id")
    assert set(rows.index) == {"lstm/torch-fp32/seeded", "lstm/torch-dynamic-int8/seeded"}
    assert set(rows.status) == {"ok"}
    row = rows.loc["lstm/torch-dynamic-int8/seeded"]
    assert row.output_cosine > 0.999
    assert row.call_s > 0
    assert row.instrument_check
    assert pd.isna(row.decode_tps)
    assert pd.isna(row.kld_mean)
    samples = pd.read_parquet(pytester.path / "results" / "samples")
    own = samples[samples.scenario_id == row.name]
    assert set(own.phase) == {"call", "anchor_call"}
    assert own[own.phase == "call"].value_s.median() == row.call_s


def test_a_benchmark_for_modules_has_nothing_to_do_for_text(run: Callable[..., pytest.RunResult]) -> None:
    result = run(["canary"], "test_call.py")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.no_fnmatch_line("*skipped*")
