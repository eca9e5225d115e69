"""GPTQ and AWQ checkpoints: quantized by gptqmodel in a process of its own, loaded by transformers.

gptqmodel patches other libraries when it is imported and starts a pool of threads, each of which would run torch with as many
threads again; so quantization is a subprocess with one torch thread a worker.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantbench.core.cache import artifact, made_by
from quantbench.core.children import answer, call
from quantbench.core.errors import ChildError, ModelError, UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.protocols import Artifact, Settings
from quantbench.core.scenario import Spec, Variant
from quantbench.models.checkpoint import quantization_config, watched
from quantbench.models.safetensors import safetensors_header, weight_files
from quantbench.runtimes.gptqmodel.checkpoint import BELONGS, grouping, ready
from quantbench.runtimes.gptqmodel.dummy import dummy_folder
from quantbench.runtimes.gptqmodel.forecast import BLOCKS, misfit
from quantbench.runtimes.gptqmodel.kernels import compile_for_quantizing, compile_kernels
from quantbench.runtimes.transformers.calibration import calibration_identity, calibration_ids, device_family

CALIBRATION_SEQUENCES = {"gptq": 64, "awq": 16}
"""Sequences that gptqmodel sees: more change little (on the canary AWQ's KLD is 0.0181 with 16 and 0.0183 with 64)."""

CHECKPOINT = "checkpoint"
_SECONDS = "quantize.json"
_WORKERS = "2"
_THREADS = {"gptq": "1", "awq": "2"}
"""Torch threads of each: GPTQ works on several layers at once, AWQ searches one layer with large tensors."""

_MAKERS = (
    "quantbench.runtimes.gptqmodel.quantize", "quantbench.runtimes.transformers.calibration",
    "quantbench.runtimes.transformers.model",
)  # fmt: skip


def recipe(spec: Spec) -> dict[str, str]:
    """What else is part of the scenario's key: the calibration and the requested kernel."""
    return {"calibration": calibration_identity(spec.conditions), "kernel": "auto", "quantizer": "gptqmodel"}


def prepared(spec: Spec, settings: Settings) -> Artifact:
    """The quantized checkpoint, made once; one that was quantized elsewhere is used as it is, a dummy's is written at random.

    On a GPU the kernel that will run it is compiled too, as that must not be timed with loading.
    Raises UnsupportedError when the group size does not divide a row, or when the checkpoint was quantized differently.
    """
    made = _made(spec, settings)
    if spec.conditions.device != "cpu":
        compile_kernels(spec.variant.method, quantization_config(made.path, packed=True))
    return made


def _made(spec: Spec, settings: Settings) -> Artifact:
    checkpoint = settings.checkpoint
    if checkpoint.random_weights:
        path = dummy_folder(checkpoint, spec.variant)
        return Artifact(path=path, file_bytes=_bytes(path), quantize_s=None)
    if checkpoint.quantized:
        path = ready(checkpoint, spec.variant)
        return Artifact(path=path, file_bytes=_bytes(path), quantize_s=None)
    method = spec.variant.method
    bits, group_size = grouping(spec.variant.precision)
    _check_shapes(checkpoint, spec.variant)
    conditions = spec.conditions
    asked = {
        "content": checkpoint.content_hash, "method": method, "bits": bits, "group_size": group_size, "seed": conditions.seed,
        "calibration": calibration_identity(conditions), "sequences": CALIBRATION_SEQUENCES[method],
        "gptqmodel": version("gptqmodel"), "device": device_family(conditions.device), "made_by": made_by(*_MAKERS),
    }  # fmt: skip

    def make(folder: Path) -> None:
        ids = calibration_ids(spec, settings)
        count = min(CALIBRATION_SEQUENCES[method], len(ids))
        request = {
            "source": str(checkpoint.path), "bits": bits, "group_size": group_size, "method": method,
            "device": conditions.device, "trust_remote_code": checkpoint.trust_remote_code, "seed": conditions.seed,
            "ids": [ids[number * len(ids) // count] for number in range(count)], "target": str(folder / CHECKPOINT),
        }  # fmt: skip
        (folder / _SECONDS).write_text(json.dumps(_run(folder, request)))

    folder = artifact("gptqmodel", asked, watched(checkpoint, make))
    path = folder / CHECKPOINT
    made = json.loads((folder / _SECONDS).read_text())
    here = made.get("device", "cpu").partition(":")[0] == conditions.device.partition(":")[0]
    return Artifact(path=path, file_bytes=_bytes(path), quantize_s=made["quantize_s"] if here else None)


def saved(made: Artifact, out: Path) -> None:
    """Copy the quantized checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    for path in made.path.iterdir():
        if path.is_file() and path.suffix in BELONGS:
            shutil.copyfile(path, out / path.name)
    for path in weight_files(made.path):
        shutil.copyfile(path, out / path.name)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))


def _check_shapes(checkpoint: Checkpoint, variant: Variant) -> None:
    """Raise UnsupportedError where a weight's shape does not fit the groups, or the quantizer."""
    layers = {
        name: entry["shape"]
        for path in weight_files(checkpoint.path)
        for name, entry in safetensors_header(path).items()
        if len(entry["shape"]) == 2 and any(part in name for part in BLOCKS)
    }
    why = misfit(variant.method, variant.precision, layers)
    if why:
        raise UnsupportedError(why)


def _run(folder: Path, request: Mapping[str, Any]) -> Any:
    what, method = f"{request['method']} at {request['bits']} bits", request["method"]
    temporary = folder / "temporary"  # for its logs, and the layers that it moves out of memory
    temporary.mkdir()
    environment = {
        "OMP_NUM_THREADS": _THREADS[method], "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0",
        "GPTQMODEL_CPU_WORKERS": _WORKERS,
        "TMPDIR": str(temporary), "THP_MEM_ALLOC_ENABLE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    try:
        made = call(__name__, request, f"gptqmodel's quantization ({what})", env=environment, cwd=temporary)
    except ChildError as error:
        sys.stderr.write(error.said[-4000:])
        raise ModelError(f"gptqmodel could not quantize this checkpoint ({what}): {error.reason}") from error
    shutil.rmtree(temporary)
    for path in (folder / CHECKPOINT).glob("*config.json"):
        body = json.loads(path.read_text())
        body.get("quantization_config", body).get("meta", {}).pop("offload_to_disk_path", None)  # for this process only
        path.write_text(json.dumps(body, indent=2))
    return made


@contextmanager
def wide_products() -> Iterator[None]:
    """Inside this context, Linear layers multiply bfloat16 on a CPU as float32 and round the result to bfloat16.

    That is the arithmetic of torch's own products (terms in float32, one rounding), which a CPU without bfloat16 runs several
    times slower; only the order of the sum differs. It changes torch for all threads: for a process of its own.
    """
    from torch import bfloat16, nn

    plain = nn.Linear.forward

    def forward(self: Any, values: Any) -> Any:
        if values.device.type != "cpu" or values.dtype != bfloat16 or self.weight.dtype != bfloat16:
            return plain(self, values)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(values.float(), self.weight.float(), bias).bfloat16()

    nn.Linear.forward = forward
    try:
        yield
    finally:
        nn.Linear.forward = plain


def quantize(request: Mapping[str, Any]) -> dict[str, Any]:
    """Quantize and save the requested checkpoint; returns the seconds it took."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    torch.manual_seed(request["seed"])
    awq = request["method"] == "awq"
    backend = BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH  # what packs; its own choice for AWQ on a GPU must be compiled
    config = QuantizeConfig(
        bits=request["bits"],
        group_size=request["group_size"],
        method=METHOD.AWQ if awq else METHOD.GPTQ,
        format=FORMAT.GEMM if awq else FORMAT.GPTQ,
        sym=not awq,  # as AutoAWQ has it: a zero point for each group
    )
    model = GPTQModel.load(
        request["source"], config, backend=backend, device=request["device"], trust_remote_code=request["trust_remote_code"]
    )
    compile_for_quantizing(request["method"], request["bits"], request["device"])
    started = time.perf_counter()
    examples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in request["ids"]]
    with wide_products():
        model.quantize(examples, batch_size=1, backend=backend)
    seconds = time.perf_counter() - started
    model.save(request["target"])
    return {"quantize_s": seconds, "device": request["device"]}


if __name__ == "__main__":
    answer(quantize)
