"""The probes on the canary: sound methods, and methods with one thing broken, all in one process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantbench.core.job import Job, Task
from quantbench.core.scenario import Conditions, Effort, Precision, Spec, Variant
from quantbench.core.trace import Probe, Probes
from quantbench.core.wire import read
from quantbench.measuring.passes import probes as probing
from quantbench.measuring.passes.probes import NAMES, PROBES_FILE
from quantbench.measuring.passes.similarity import log_softmax
from quantbench.methods import METHODS, Sampling, Settings, method
from quantbench.models.checkpoint import resolve

SOUND = ("torch/fp32", "bitsandbytes/nf4-dq", "bitsandbytes/int8", "odd/sound")
ODD = ("deaf", "first-layer-dead", "gradients-not-finite", "random", "untrainable", "lossy", "pickle")
VARIANTS = (*SOUND, "gguf/q8_0", *(f"odd/{name}" for name in ODD))
RUN_ALL = """
import pathlib, sys
sys.modules |= {"gptqmodel": None, "torchao": None}  # where they are, peft imports them for seconds, for variants not here
from quantbench.measuring.worker import run_job
list(map(run_job, map(pathlib.Path, sys.argv[1:])))
"""

Found = dict[str, Probes]


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, stub_path: Path, users_cache: Path,
    warm: Callable[..., subprocess.CompletedProcess[str]],
) -> Found:  # fmt: skip
    """Probes by variant. One process for all: peft takes seconds to import, and patches what this process uses."""
    folders = {}
    for index, name in enumerate(VARIANTS):
        folders[name] = tmp_path_factory.mktemp(f"job-{index}")
        method, _, precision = name.partition("/")
        Job(
            kind="probe", checkpoint=resolve("canary"), variant=Variant(method=method, precision=precision),
            conditions=Conditions(threads=1), effort=Effort(),
            tasks=(Task(prompts_name="two", prompts=(), reference=None),),
        ).save(folders[name])  # fmt: skip
    environment = {**os.environ, "QUANTBENCH_CACHE": str(users_cache), "PYTHONPATH": str(stub_path)}
    command = [sys.executable, "-c", RUN_ALL, *map(str, folders.values())]
    done = warm(command, env=environment)
    assert done.returncode == 0, done.stdout[-2000:]
    return {name: read(folder / PROBES_FILE, Probes) for name, folder in folders.items()}


@pytest.mark.parametrize("name", SOUND)
def test_what_works_is_found_to_work(found: Found, name: str) -> None:
    probes = found[name]

    assert set(probes) == set(NAMES)
    assert probes["cpu"] == Probe(found=True)
    assert probes["save_reload"].found is True
    assert probes["save_reload"].figures["logit_difference"] == 0
    assert probes["finetune"].found is True
    figures = probes["finetune"].figures
    assert 0 < figures["loss_last"] < figures["loss_first"]
    assert figures["gradient_norm"] > 0
    assert figures["adapter_lost"] < 1e-3


def test_the_first_loss_is_that_of_the_untrained_variant(found: Found) -> None:
    """Adapters start as nothing: the loss equals the negative log-likelihood that scoring gives for the sampled text."""
    spec = Spec(model="canary", variant=Variant(method="torch", precision="fp32"))
    with METHODS["torch"].open(spec, Settings(checkpoint=resolve("canary"), threads=1, context=64)) as model:
        ids = [1, *model.generate([1], 32, Sampling(seed=0))]
        logprobs = log_softmax(np.concatenate([chunk.copy() for chunk in model.score(ids)]))

    nll = -logprobs[np.arange(32), ids[1:]].mean()
    assert found["torch/fp32"]["finetune"].figures["loss_first"] == pytest.approx(nll, rel=1e-4)


def test_a_gguf_file_reloads_and_takes_no_adapter(found: Found) -> None:
    probes = found["gguf/q8_0"]

    assert (probes["cpu"].found, probes["save_reload"].found) == (True, True)
    assert probes["finetune"] == Probe(found=False, note="it is not a torch module, and peft trains nothing else")


@pytest.mark.parametrize(
    ("name", "probe", "words"),
    [
        ("deaf", "finetune", "the kernel passes no gradient"),
        ("first-layer-dead", "finetune", "no gradient reaches lora_B of the first layer"),
        ("gradients-not-finite", "finetune", "the gradient of lora_B of the first layer is not finite"),
        ("random", "finetune", "of what it learned when it is reloaded"),
        ("random", "save_reload", "the reloaded model's logits differ by"),
        ("lossy", "save_reload", "the reloaded model's logits differ by 0.1"),
        ("pickle", "save_reload", "OSError: Error no file named model.safetensors"),
    ],
)
def test_what_is_broken_is_found_out_alone(found: Found, name: str, probe: str, words: str) -> None:
    probes = found[f"odd/{name}"]

    assert probes[probe].found is False
    assert words in probes[probe].note
    broken = {"finetune", "save_reload"} if name == "random" else {probe}
    assert {each for each in ("cpu", "save_reload", "finetune") if not probes[each].found} == broken


def test_a_kernel_that_takes_no_training_is_named_with_the_way_out(found: Found) -> None:
    note = found["odd/untrainable"]["finetune"].note

    assert note.startswith("NotImplementedError: this layer takes no training; LlamaDecoderLayer cannot be trained through; ")
    assert "auto_trainable" in note


@pytest.mark.parametrize(("place", "able"), [("cuda:0", True), ("cuda:0+cuda:1", True), ("cpu", False), ("cpu+cuda:0", False)])
def test_a_variant_that_stays_elsewhere_does_not_run_on_the_device(
    place: str, able: bool, monkeypatch: pytest.MonkeyPatch, plug_in: Callable[..., None]
) -> None:
    """It may answer all the same; then it is not the GPU that answered."""

    class Placed:
        facts: Mapping[str, str] = {"device": place}

        def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
            return iter(range(limit))

        def synchronize(self) -> None:
            """Nothing to wait for."""

    @method("placed", precisions=[Precision(name="w8", bits=8)], requires=[])
    @contextmanager
    def open_placed(spec: Spec, settings: Settings) -> Iterator[Any]:
        assert spec.conditions.device == "cuda"
        yield Placed()

    plug_in(METHODS, open_placed)
    monkeypatch.setattr(probing, "describe", lambda: SimpleNamespace(gpus=("a GPU",)))
    variant = Variant(method="placed", precision="w8")
    subject = probing.ProbedVariant(
        spec=Spec(model="canary", variant=variant), start=[0],
        settings=Settings(checkpoint=resolve("canary"), threads=1, context=64),
    )  # fmt: skip
    found = probing._elsewhere(subject, "cuda")
    assert found.found is able
    there = "cpu" if place == "cpu" else "cpu and cuda"
    assert found.note == ("" if able else f"opened for cuda, but its weights are on {there}")


def test_a_device_that_is_not_there_is_not_tried(found: Found) -> None:
    """Machines with a CUDA device have a finding instead."""
    from quantbench.core.machine import describe

    for probes in found.values():
        if describe().gpus:
            assert probes["cuda"].found is not None
        else:
            assert probes["cuda"] == Probe(found=None, note="no CUDA device here")
