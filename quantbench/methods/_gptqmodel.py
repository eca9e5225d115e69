"""GPTQ and AWQ checkpoints: quantized by gptqmodel in a process of its own, loaded by transformers.

gptqmodel patches other libraries when it is imported and starts a pool of threads, each of which would run torch with as many
threads again; so quantization is a subprocess with one torch thread a worker.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantbench.cache import artifact
from quantbench.errors import ModelError, UnsupportedError
from quantbench.job import Checkpoint
from quantbench.methods import Artifact, Settings
from quantbench.methods._calibration import calibration_identity, calibration_ids
from quantbench.methods._transformers import TransformersModel, load_pretrained
from quantbench.models._checkpoint import read_config, safetensors_header, weight_files
from quantbench.scenario import Scenario

CALIBRATION_SEQUENCES = 64
"""Sequences that gptqmodel sees: more change little, and its time grows with them."""

CHECKPOINT = "checkpoint"
_REQUEST = "request.json"
_SECONDS = "quantize.json"
_WORKERS = "2"
_THREADS = {"gptq": "1", "awq": "2"}
"""Torch threads of each: GPTQ works on several layers at once, AWQ searches one layer with large tensors."""

_FORMAT = {"gptq": 1, "awq": 2}
"""Counts changes in how each is made; older artifacts are then made again."""


def recipe(scenario: Scenario) -> dict[str, str]:
    """What stands in the scenario's key besides: the calibration and the kernel asked for."""
    return {"calibration": calibration_identity(scenario.conditions), "kernel": "auto", "quantizer": "gptqmodel"}


def prepared(scenario: Scenario, settings: Settings, *, bits: int, group_size: int, method: str) -> Artifact:
    """The quantized checkpoint, made once; a checkpoint that was quantized elsewhere is used as it is.

    Raises UnsupportedError when the group size does not divide a row, or when the checkpoint was quantized differently.
    """
    checkpoint = settings.checkpoint
    if checkpoint.quantized:
        _check_agrees(checkpoint, bits=bits, group_size=group_size)
        return Artifact(path=checkpoint.path, file_bytes=_bytes(checkpoint.path), quantize_s=None)
    _check_rows(checkpoint, group_size)
    conditions = scenario.conditions
    asked = {
        "content": checkpoint.content_hash, "method": method, "bits": bits, "group_size": group_size, "seed": conditions.seed,
        "calibration": calibration_identity(conditions), "sequences": CALIBRATION_SEQUENCES,
        "gptqmodel": version("gptqmodel"), "format": _FORMAT[method],
    }  # fmt: skip

    def make(folder: Path) -> None:
        ids = calibration_ids(scenario, settings)
        request = {
            "source": str(checkpoint.path), "bits": bits, "group_size": group_size, "method": method,
            "device": conditions.device, "trust_remote_code": checkpoint.trust_remote_code, "seed": conditions.seed,
            "ids": ids[:: max(1, len(ids) // CALIBRATION_SEQUENCES)][:CALIBRATION_SEQUENCES],
        }  # fmt: skip
        (folder / _REQUEST).write_text(json.dumps(request))
        _run(folder, method, bits)

    folder = artifact("gptqmodel", asked, make)
    path = folder / CHECKPOINT
    quantize_s = json.loads((folder / _SECONDS).read_text())["quantize_s"]
    return Artifact(path=path, file_bytes=_bytes(path), quantize_s=quantize_s)


def loaded(made: Artifact, settings: Settings, device: str) -> TransformersModel:
    """The quantized checkpoint through transformers, which lets gptqmodel choose the kernel for the device."""
    checkpoint = replace(settings.checkpoint, path=made.path)
    model = load_pretrained(replace(settings, checkpoint=checkpoint), device, dtype="float16")
    return TransformersModel(model, kernel=kernel_class(model))


def kernel_class(model: Any) -> str:
    """The class names of the quantized layers, as found; ModelError when there are none."""
    found = Counter(type(module).__name__ for module in model.modules() if hasattr(module, "qweight"))
    if not found:
        raise ModelError("transformers loaded the checkpoint without one quantized layer; its quantization_config is damaged")
    return "+".join(f"gptqmodel-{name}" for name in sorted(found))


def saved(made: Artifact, settings: Settings, out: Path) -> None:
    """Copy the quantized checkpoint with the tokenizer that belongs to it."""
    out.mkdir(parents=True, exist_ok=True)
    for source in (settings.checkpoint.path, made.path):
        for path in source.iterdir():
            if path.is_file() and path.suffix in (".json", ".model", ".txt", ".jinja"):
                shutil.copyfile(path, out / path.name)
    for path in weight_files(made.path):
        shutil.copyfile(path, out / path.name)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))


def _check_rows(checkpoint: Checkpoint, group_size: int) -> None:
    for path in weight_files(checkpoint.path):
        for name, entry in safetensors_header(path).items():
            shape = entry["shape"]
            quantized = ".layers." in name or ".h." in name or ".blocks." in name
            if len(shape) == 2 and quantized and shape[1] % group_size:
                raise UnsupportedError(
                    f"groups of {group_size} do not divide the rows of {shape[1]} of {name}; use a smaller group size"
                )


def _check_agrees(checkpoint: Checkpoint, *, bits: int, group_size: int) -> None:
    config = read_config(checkpoint.path)["quantization_config"]
    has = int(config.get("bits", config.get("w_bit", 0))), int(config.get("group_size", config.get("q_group_size", 0)))
    if has != (bits, group_size):
        raise UnsupportedError(
            f"{checkpoint.name} is quantized to {has[0]} bits in groups of {has[1]} and {bits} bits in groups of {group_size} "
            "were asked for; ask for what it is"
        )


def _run(folder: Path, method: str, bits: int) -> None:
    what = f"{method} at {bits} bits"
    environment = {
        **os.environ, "OMP_NUM_THREADS": _THREADS[method], "OMP_WAIT_POLICY": "passive", "GPTQMODEL_CPU_WORKERS": _WORKERS,
        "THP_MEM_ALLOC_ENABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "quantbench.methods._gptqmodel", str(folder)],
        capture_output=True, text=True, check=False, env=environment, cwd=folder,  # it leaves a folder of logs where it runs
    )  # fmt: skip
    sys.stderr.write(done.stderr[-4000:])
    if done.returncode == -signal.SIGKILL:
        raise MemoryError(f"gptqmodel was killed while it quantized ({what}): out of memory")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"gptqmodel could not quantize this checkpoint ({what}): {last}")
    (folder / _REQUEST).unlink()


def main() -> None:
    """Do what ``request.json`` in the folder on the command line asks; leave the checkpoint and its seconds there."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    folder = Path(sys.argv[1])
    request = json.loads((folder / _REQUEST).read_text())
    torch.manual_seed(request["seed"])
    awq = request["method"] == "awq"
    on_cpu = BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH
    config = QuantizeConfig(
        bits=request["bits"],
        group_size=request["group_size"],
        method=METHOD.AWQ if awq else METHOD.GPTQ,
        format=FORMAT.GEMM if awq else FORMAT.GPTQ,
        sym=not awq,  # as AutoAWQ has it: a zero point for each group
    )
    backend = on_cpu if request["device"] == "cpu" else BACKEND.AUTO
    model = GPTQModel.load(
        request["source"], config, backend=backend, device=request["device"], trust_remote_code=request["trust_remote_code"]
    )
    started = time.perf_counter()
    examples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in request["ids"]]
    model.quantize(examples, batch_size=1, backend=backend)
    seconds = time.perf_counter() - started
    model.save(str(folder / CHECKPOINT))
    (folder / _SECONDS).write_text(json.dumps({"quantize_s": seconds}))


if __name__ == "__main__":
    main()
