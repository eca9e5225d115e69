"""What only a real GPU can show: that figures come from it, that memory runs out and comes back, that clocks wait for it.

Elsewhere these are skipped. Jobs run as they do in a session: in workers of the process engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest

from quantbench.core.job import REFERENCE_FOLDER, Job, Task
from quantbench.core.machine import gpu_memory
from quantbench.core.protocols import Batched, Decodes
from quantbench.core.record import Status
from quantbench.core.scenario import PROFILES, SEEDED_INPUTS, Conditions, Spec, Variant
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.planning.planner import forecast, read_architecture
from quantbench.running.engines import collected_trace
from quantbench.running.engines.process import ProcessRunner, open_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from quantbench.core.job import JobKind
    from quantbench.core.trace import Trace

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

DEVICE = "cuda"
PROMPTS = ("The function returns", "A list is")
GREEDY = '''
from contextlib import contextmanager
from quantbench.methods import method
from quantbench.core.scenario import Precision

@method("greedy", precisions=[Precision(name="absurd", bits=8), Precision(name="all", bits=8)], requires=["torch"])
@contextmanager
def open_greedy(spec, settings):
    """Takes more memory of the GPU than there is"""
    import torch
    if spec.variant.precision == "absurd":
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    kept = []
    while True:
        kept.append(torch.ones(2**28, dtype=torch.uint8, device="cuda"))
    yield kept
'''


@pytest.fixture(scope="module")
def plug_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on the import path, is an installed distribution with the greedy method."""
    folder = tmp_path_factory.mktemp("greedy")
    (folder / "greedy_method.py").write_text(GREEDY)
    info = folder / "greedy_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quantbench.methods]\ngreedy = greedy_method\n")
    return folder


@pytest.fixture(scope="module")
def runner(plug_in: Path, shared_cache: Path) -> Iterator[ProcessRunner]:
    """An open engine for the GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(plug_in))
        patch.setenv("QUANTBENCH_CACHE", str(shared_cache))
        with open_process(DEVICE) as opened:
            assert isinstance(opened, ProcessRunner)
            yield opened


@pytest.fixture(scope="module")
def reference(runner: ProcessRunner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch/fp32 on the CPU says."""
    folder = tmp_path_factory.mktemp("reference")
    failure = runner.run(_job(folder, "torch/fp32", kind="reference", device="cpu"), 300)
    assert failure is None, failure
    return folder / REFERENCE_FOLDER.format(0)


def _job(
    folder: Path, variant: str, *, kind: JobKind = "measure", device: str = DEVICE, model: str = "canary",
    reference: Path | None = None, n_gpu_layers: str = "",
) -> Path:  # fmt: skip
    """A job folder."""
    folder.mkdir(exist_ok=True)
    method, _, precision = variant.partition("/")
    task = Task(prompts_name="two", prompts=PROMPTS, reference=reference)
    if model == "lstm":
        task = Task(prompts_name=SEEDED_INPUTS, prompts=("",), reference=None)
    Job(
        kind=kind, checkpoint=resolve(model), variant=Variant(method=method, precision=precision),
        conditions=Conditions(
            device=device, threads=1, output_tokens=8, answer_tokens=8, continuation_tokens=32, n_gpu_layers=n_gpu_layers
        ),
        effort=PROFILES["quick"], tasks=(task,),
    ).save(folder)  # fmt: skip
    return folder


def _ran(runner: ProcessRunner, folder: Path) -> Trace:
    failure = runner.run(folder, 300)
    assert failure is None, failure
    trace = collected_trace(folder, 0)
    assert trace is not None
    return trace


def _is_on_gpus(trace: Trace) -> bool:
    return all(place.startswith(DEVICE) for place in trace.facts["device"].split("+"))


def test_a_forked_worker_opens_cuda(runner: ProcessRunner, tmp_path: Path) -> None:
    """The server has imported torch and transformers, and must not have touched CUDA."""
    folder = _job(tmp_path / "a", "torch/fp16")
    server = runner._server(Job.load(folder))
    assert server._greeting()["forks_may_use_gpus"] is True
    assert {"torch", "transformers"} <= set(server.preloaded)
    assert server._may_fork()
    assert _is_on_gpus(_ran(runner, folder))


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-6), ("fp16", 1e-3), ("bf16", 5e-3)])
def test_a_model_says_on_the_gpu_what_it_says_on_the_cpu(
    precision: str, most: float, reference: Path, runner: ProcessRunner, tmp_path: Path
) -> None:
    """Mean KLD in nats against torch/fp32 on the CPU; memory of the device is seen, and the anchor is there too."""
    trace = _ran(runner, _job(tmp_path / "a", f"torch/{precision}", reference=reference))
    assert _is_on_gpus(trace)
    assert trace.columns is not None
    kld = np.load(trace.columns)["kld"]
    assert len(kld) == 32 * len(PROMPTS)
    assert abs(kld.mean()) < most
    peak = trace.peak
    assert peak.device_allocated_bytes is not None
    assert peak.device_reserved_bytes is not None
    assert trace.weights.weight_bytes <= peak.device_allocated_bytes <= peak.device_reserved_bytes
    assert peak.device_used_bytes is not None, peak.absent
    assert peak.device_used_bytes > 0
    assert trace.anchor == "torch/fp32"
    assert all(answer.e2e_s > answer.prefill_s > 0 for each in trace.rounds for answer in each.variant)


@pytest.mark.parametrize("precision", ["nf4", "nf4-dq", "int8"])
def test_weights_on_the_gpu_are_as_planned(precision: str, runner: ProcessRunner, tmp_path: Path) -> None:
    trace = _ran(runner, _job(tmp_path / "a", f"bitsandbytes/{precision}"))
    planned = forecast(read_architecture("canary"), "bitsandbytes", [precision])[precision].weight_bytes
    assert _is_on_gpus(trace)
    assert trace.weights.weight_bytes == pytest.approx(planned, rel=0.01)


@pytest.mark.parametrize(("asked", "places"), [("2", ["cpu", "cuda"]), ("auto", ["cuda"])])
def test_some_layers_of_a_gguf_model_may_stay_on_the_host(
    asked: str, places: list[str], reference: Path, runner: ProcessRunner, tmp_path: Path
) -> None:
    """Of the canary all fit; split or not, it says the same."""
    trace = _ran(runner, _job(tmp_path / "a", "gguf/f16", reference=reference, n_gpu_layers=asked))
    assert [place.partition(":")[0] for place in trace.facts["device"].split("+")][: len(places)] == places
    assert asked in ("auto", trace.facts["n_gpu_layers"])
    assert trace.columns is not None
    assert abs(np.load(trace.columns)["kld"].mean()) < 1e-3


@pytest.mark.parametrize("how", ["absurd", "all"])
def test_memory_that_runs_out_is_oom_and_the_next_variant_is_unharmed(how: str, runner: ProcessRunner, tmp_path: Path) -> None:
    failure = runner.run(_job(tmp_path / "a", f"greedy/{how}"), 300)
    assert failure is not None
    assert (failure.status, "out of memory" in failure.reason) == (Status.OOM, True)
    assert _is_on_gpus(_ran(runner, _job(tmp_path / "b", "torch/fp32")))


def test_so_it_is_where_all_variants_share_a_process(plug_in: Path, shared_cache: Path, tmp_path: Path) -> None:
    """The inline engine, in a process of its own here: it must give back what the failed job had taken."""
    folders = [_job(tmp_path / "a", "greedy/all"), _job(tmp_path / "b", "torch/fp32")]
    code = (
        "import sys\nfrom pathlib import Path\nfrom quantbench.running.engines.inline import open_inline\n"
        "with open_inline('cuda') as runner:\n"
        "    print(*(getattr(runner.run(Path(each), 300), 'status', 'ok') for each in sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(plug_in), "QUANTBENCH_CACHE": str(shared_cache)}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-2:] == ["oom", "ok"], done.stderr[-2000:]


def test_a_gpu_that_is_hidden_is_asked_for_in_vain(tmp_path: Path) -> None:
    """Nothing falls back to the CPU: one sentence, at once."""
    command = [
        sys.executable, "-m", "pytest", "--pyargs", "quantbench.suite", "-p", "no:cacheprovider", "--quantbench-model=canary",
        "--quantbench-method=torch", f"--quantbench-device={DEVICE}", f"--quantbench-results={tmp_path / 'results'}",
    ]  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"quantbench: device {DEVICE!r} was requested, but" in said
    assert "Traceback" not in said
    assert not (tmp_path / "results").exists()


def test_the_clock_waits_until_the_gpu_is_done() -> None:
    """Work that is queued and not finished is finished after ``synchronize``; so it lies between two readings of a clock."""
    import torch

    settings = Settings(checkpoint=resolve("canary"), threads=1, context=64)
    spec = Spec(model="canary", variant=Variant(method="torch", precision="fp16"), conditions=Conditions(device=DEVICE))
    with METHODS["torch"].open(spec, settings) as model:
        model.synchronize()
        matrix = torch.ones((8192, 8192), device="cuda:0", dtype=torch.float32)
        done = torch.cuda.Event()
        for _ in range(40):
            torch.mm(matrix, matrix)
        done.record()
        queued = not done.query()
        model.synchronize()
        assert queued
        assert done.query()


@pytest.mark.parametrize("path", ["graph", "static", "compiled"])
@pytest.mark.parametrize("sequences", [1, 3])
def test_every_decode_path_answers_as_eager_does(path: str, sequences: int) -> None:
    """In fp32, where nothing is so near that another order of additions decides; a graph is what is usual."""
    tried, others = ([[start, 3, 1, 4, 1, 5] for start in range(first, first + sequences)] for first in (5, 50))
    settings = Settings(checkpoint=resolve("canary"), threads=1, context=64, batch=sequences)
    spec = Spec(model="canary", variant=Variant(method="torch", precision="fp32"), conditions=Conditions(device=DEVICE))
    with METHODS["torch"].open(spec, settings) as model:
        assert isinstance(model, Decodes)
        assert isinstance(model, Batched)
        assert model.decode_by("eager", tried, 12, 32).path == "eager"
        expected = list(model.generate_batch(others, 12))
        found = model.decode_by("" if path == "graph" else path, tried, 12, 32)
        assert (found.path, found.reason) == (path, "")
        assert found.device_step_s is None if path == "compiled" else found.device_step_s
        assert (found.compile_s is not None) == (path != "static")
        assert list(model.generate_batch(others, 12)) == expected


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_module_without_tokens_runs_on_one_gpu(precision: str, runner: ProcessRunner, tmp_path: Path) -> None:
    trace = _ran(runner, _job(tmp_path / "a", f"torch/{precision}", model="lstm"))
    assert trace.facts["device"] == f"{DEVICE}:0"
    assert trace.peak.device_allocated_bytes


@pytest.mark.skipif(not find_spec("llama_cpp"), reason="llama-cpp-python is not installed")
@pytest.mark.usefixtures("artifacts")
def test_llama_cpp_has_all_layers_on_the_gpu_or_says_that_it_has_no_cuda(tmp_path: Path) -> None:
    folder = _job(tmp_path / "a", "gguf/q8_0")
    with open_process(DEVICE) as opened:
        failure = opened.run(folder, 300)
    if failure is not None:
        assert (failure.status, "built without CUDA" in failure.reason) == (Status.ERROR, True), failure
        return
    trace = collected_trace(folder, 0)
    assert trace is not None
    assert _is_on_gpus(trace)
    assert trace.facts["kernel"].startswith("llama.cpp-cuda")
    assert "CUDA" in trace.facts["llama_cpp_system"]


def test_several_gpus_share_a_model_and_say_the_same(reference: Path, runner: ProcessRunner, tmp_path: Path) -> None:
    if len(gpu_memory()) < 2:
        pytest.skip("needs two GPUs")
    spread = _ran(runner, _job(tmp_path / "a", "torch/fp32", reference=reference))
    alone = _ran(runner, _job(tmp_path / "b", "torch/fp32", device=f"{DEVICE}:1", reference=reference))
    assert alone.facts["device"] == f"{DEVICE}:1"
    assert spread.facts["device"] != alone.facts["device"]
    assert spread.columns is not None
    assert abs(np.load(spread.columns)["kld"].mean()) < 1e-6
    assert json.dumps([each.tokens for each in spread.answers]) == json.dumps([each.tokens for each in alone.answers])
