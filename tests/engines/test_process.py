"""The process engine: how an end becomes a status, and that nothing is left running."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from quantbench.core.errors import QuantbenchError
from quantbench.core.job import Job, JobKind, Task
from quantbench.core.record import Status
from quantbench.core.scenario import PROFILES, Conditions, Variant
from quantbench.models.checkpoint import resolve
from quantbench.running.engines import collected_trace, process
from quantbench.running.engines.process import ProcessRunner, open_process
from quantbench.runtimes import open_tokenizer


@pytest.fixture(scope="module")
def runner(stub_path: Path, shared_cache: Path) -> Iterator[ProcessRunner]:
    """An open engine whose workers know the stub methods; its server imports for seconds, so the tests share it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(stub_path))
        patch.setenv("QUANTBENCH_CACHE", str(shared_cache))
        patch.setenv("STUB_UNWATCHED", "1")  # else what runs beside the tests decides how threads wait
        patch.delenv("GOMP_SPINCOUNT", raising=False)
        patch.delenv("OMP_WAIT_POLICY", raising=False)
        for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
            patch.delenv(name, raising=False)
        with open_process("cpu") as opened:
            assert isinstance(opened, ProcessRunner)
            yield opened


def job(folder: Path, precision: str) -> Path:
    """A job folder for a stub, without a reference."""
    folder.mkdir()
    Job(
        kind="measure",
        checkpoint=resolve("canary"),
        variant=Variant(method="stub", precision=precision),
        conditions=Conditions(output_tokens=2, answer_tokens=2, continuation_tokens=2),
        effort=PROFILES["quick"],
        tasks=(Task(prompts_name="two", prompts=("one", "two"), reference=None),),
    ).save(folder)
    return folder


def test_endings_become_statuses_and_the_server_goes_on(runner: ProcessRunner, tmp_path: Path) -> None:
    assert runner.run(job(tmp_path / "a", "exact"), 60) is None
    assert collected_trace(tmp_path / "a", 0) is not None
    crashed = runner.run(job(tmp_path / "b", "killed"), 60)
    assert crashed is not None
    assert (crashed.status, "SIGKILL" in crashed.reason) == (Status.CRASHED, True)
    late = runner.run(job(tmp_path / "c", "stuck"), 1)
    assert late is not None
    assert late.status == Status.TIMEOUT
    assert runner.run(job(tmp_path / "d", "exact"), 60) is None


def test_a_kill_that_the_kernel_counts_as_out_of_memory_is_oom(
    runner: ProcessRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter((3, 4))
    monkeypatch.setattr(process, "oom_kills", lambda: next(counts))

    failure = runner.run(job(tmp_path / "a", "killed"), 60)

    assert failure is not None
    assert failure.status == Status.OOM
    assert "memory ran out" in failure.reason


def test_a_gpu_whose_memory_ran_out_is_oom_however_the_worker_ends_and_the_next_is_unharmed(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    raised = runner.run(job(tmp_path / "a", "gpu-memory"), 60)
    aborted = runner.run(job(tmp_path / "b", "aborted"), 60)

    assert runner.run(job(tmp_path / "c", "exact"), 60) is None
    assert raised is not None
    assert aborted is not None
    assert (raised.status, aborted.status) == (Status.OOM, Status.OOM)
    assert raised.reason.startswith("OutOfMemoryError: CUDA out of memory. Tried to allocate 9.00 GiB")
    assert aborted.reason == "the worker was ended by SIGABRT: CUDA error: out of memory; use a smaller model or precision"


def test_what_a_worker_said_long_before_it_died_is_not_taken_for_its_end(tmp_path: Path) -> None:
    said = ["warning: out of memory for a cache, going on without", *(f"line {number}" for number in range(100)), "the end"]
    (tmp_path / "stderr.log").write_text("\n".join(said))
    failure = process.ending(tmp_path, -signal.SIGSEGV, False)

    assert failure is not None
    assert (failure.status, failure.reason) == (
        Status.CRASHED, "the worker was ended by SIGSEGV; its last line was: the end",
    )  # fmt: skip


def test_a_worker_is_the_first_to_go_when_memory_runs_out(runner: ProcessRunner, tmp_path: Path) -> None:
    """The score is set in the worker, not in this process."""
    own = Path("/proc/self/oom_score_adj").read_text()

    runner.run(job(tmp_path / "a", "exact"), 60)

    trace = collected_trace(tmp_path / "a", 0)
    assert trace is not None
    assert trace.facts["oom_score_adj"] == "1000"
    assert trace.facts["waiting"] == "spin 30000"  # libgomp's default would stall for milliseconds beside other work
    assert trace.facts["allocator"] == "expandable_segments:False"  # set, or gptqmodel would choose another
    assert Path("/proc/self/oom_score_adj").read_text() == own


def test_a_server_that_dies_is_one_sentence(stub_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(stub_path))
    monkeypatch.setattr(process, "SHARED", ("numpy",))
    with open_process("cpu") as opened:
        assert isinstance(opened, ProcessRunner)
        folder = job(tmp_path / "a", "exact")
        before = set(psutil.Process().children())
        opened.preloaded(Job.load(folder))
        (server,) = set(psutil.Process().children()) - before
        os.killpg(server.pid, signal.SIGKILL)

        with pytest.raises(QuantbenchError, match="the fork server ended unexpectedly"):
            opened.run(folder, 60)


def test_what_needs_no_torch_is_measured_in_a_process_of_its_own_without_it(
    stub_path: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some 320 MB of torch counted as peak memory of each, and transformers, whose tokenizer reads the prompts all the same."""
    monkeypatch.setenv("PYTHONPATH", str(stub_path))
    monkeypatch.setenv("QUANTBENCH_CACHE", str(shared_cache))
    monkeypatch.setattr(process, "needs_torch", lambda _: False)
    folder = job(tmp_path / "a", "exact")
    with open_process("cpu") as opened:
        assert opened.preloaded(Job.load(folder)) == {}
        assert opened.run(folder, 60) is None

    trace = collected_trace(folder, 0)
    assert trace is not None
    assert trace.peak is not None
    assert trace.peak.peak_rss_bytes < 150e6  # torch alone takes more
    assert trace.facts["opened_beside"] == ""
    tokenizer = open_tokenizer(resolve("canary"))
    assert [list(each.prompt_tokens) for each in trace.answers] == [tokenizer.encode("one"), tokenizer.encode("two")]


def test_what_is_wrong_with_a_prompt_is_one_sentence_where_another_process_reads_it(
    stub_path: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(stub_path))
    monkeypatch.setenv("QUANTBENCH_CACHE", str(shared_cache))
    monkeypatch.setattr(process, "needs_torch", lambda _: False)
    asked = Job.load(job(tmp_path / "a", "exact"))
    replace(asked, tasks=(replace(asked.tasks[0], prompts=("word " * 10_000,)),)).save(tmp_path / "a")
    with open_process("cpu") as opened:
        failed = opened.run(tmp_path / "a", 60)

    assert failed is not None
    assert failed.status == Status.ERROR
    assert "prompt 1 of 'two' has" in failed.reason


@pytest.mark.parametrize(
    ("variant", "kind", "needed"),
    [
        ("gguf/q4_k_m", "measure", False), ("gguf/q4_k_m", "prepare", True), ("gguf/q4_k_m", "probe", True),
        ("gguf/q4_k_m", "reference", True), ("torch/fp32", "measure", True), ("server/as-served", "measure", True),
        ("of-a-plug-in/int8", "measure", True),
    ],
)  # fmt: skip
def test_torch_is_kept_from_what_llama_cpp_measures_alone(tmp_path: Path, variant: str, kind: JobKind, needed: bool) -> None:
    method, _, precision = variant.partition("/")
    asked = Job.load(job(tmp_path / "a", "exact"))

    assert process.needs_torch(replace(asked, kind=kind, variant=Variant(method=method, precision=precision))) is needed
    own_code = replace(asked.checkpoint, trust_remote_code=True)
    assert process.needs_torch(replace(asked, variant=Variant(method="gguf", precision="f16"), checkpoint=own_code))


def test_what_lies_in_the_current_folder_is_not_imported(
    stub_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the server, nor by a worker, nor by what a worker starts to measure the bandwidth."""
    for name in ("torch", "numpy", "transformers", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\nraise SystemExit\n")
    monkeypatch.setenv("PYTHONPATH", str(stub_path))
    monkeypatch.chdir(tmp_path)
    with open_process("cpu") as opened:
        failure = opened.run(job(tmp_path / "a", "exact"), 60)

    assert failure is None
    assert not (tmp_path / "imported").exists()
    trace = collected_trace(tmp_path / "a", 0)
    assert trace is not None
    assert trace.memory_bandwidth_bps


@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (40, "signal 40"), (64, "SIGRTMAX")])
def test_a_signal_without_a_name_is_a_number(number: int, name: str, tmp_path: Path) -> None:
    ended = process.ending(tmp_path, -number, oom_killed=False)
    assert ended is not None
    assert (ended.status, ended.reason) == (Status.CRASHED, f"the worker was ended by {name}")
