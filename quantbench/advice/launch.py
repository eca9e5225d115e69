"""The commands that run a variant: what to type once it is picked."""

from __future__ import annotations

import shlex
from pathlib import Path

from quantbench.core.scenario import Variant
from quantbench.methods import METHODS
from quantbench.models import MODELS, is_hub_id
from quantbench.models.gguf import part_names

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_SERVED = ("gptq", "awq")
"""Methods whose checkpoints vLLM serves, as made here."""

_ALL_LAYERS = 99
_PROMPT = 'print(answer("Once upon a time")[0]["generated_text"])'


def of_file(path: str, device: str, gpu_layers: int | None = None) -> list[str]:
    """Commands for a ready GGUF file, or the first part of one: llama-server, and Ollama, which reads files in one part.

    llama-server gets as many layers on the GPU as were measured; Ollama decides that by itself.
    """
    file = Path(path)
    offload = f" -ngl {gpu_layers or _ALL_LAYERS}" if device.startswith("cuda") else ""
    lines = [f"llama-server -m {shlex.quote(path)}{offload}"]
    if part_names(file.name) != [file.name]:
        return lines
    here = path if file.is_absolute() or path.startswith("./") else f"./{path}"  # else Ollama takes it for a model's name
    name = shlex.quote(file.stem.lower())
    modelfile = f"echo {shlex.quote(f'FROM {here}')} > Modelfile"
    return [*lines, modelfile, f"ollama create {name} -f Modelfile && ollama run {name}"]


def of_variant(model: str, variant: Variant, device: str, gpu_layers: int | None = None) -> list[str]:
    """Commands for a variant of a model: what makes its files where it needs any, then what runs them.

    llama-server for GGUF, vLLM on a GPU where it reads what was made, else transformers in three lines of Python. Empty where
    nothing is known that runs it.
    """
    place = str(MODELS[model].folder()) if model in MODELS else model
    if variant.method == "torch":
        return _served(place, device, _DTYPES[variant.precision])
    if variant.method == "torch-dynamic":
        quantized = "torch.ao.quantization.quantize_dynamic(answer.model, {torch.nn.Linear}, dtype=torch.qint8)"
        first, second, last = _python(place, "cpu", "float32")
        return [f"import torch; {first}", f"{second}; answer.model = {quantized}", last]
    if METHODS[variant.method].saver is None:
        return []
    folder = f"{Path(model.partition('@')[0]).name.removesuffix('.gguf')}-{variant.label}"
    named = f"--method {variant.method} --precision {variant.precision}"
    make = f"quantbench quantize {shlex.quote(model)} {named} -o {shlex.quote(folder)}"
    if variant.method == "gguf":
        return [make, *of_file(f"{folder}/model-{variant.precision}.gguf", device, gpu_layers)]
    return [make, *(_served(folder, device) if variant.method in _SERVED else _python(folder, device))]


def _served(place: str, device: str, dtype: str = "") -> list[str]:
    """A checkpoint by vLLM on a GPU, else by transformers."""
    if not device.startswith("cuda"):
        return _python(place, device, dtype)
    name, _, revision = place.partition("@") if is_hub_id(place) else (place, "", "")
    return [f"vllm serve {shlex.quote(name)}" + f" --revision {revision}" * bool(revision) + f" --dtype {dtype}" * bool(dtype)]


def _python(place: str, device: str, dtype: str = "") -> list[str]:
    name, _, revision = place.partition("@") if is_hub_id(place) else (place, "", "")
    options = {"revision": revision, "dtype": dtype, "device_map": device}
    given = "".join(f", {key}={value!r}" for key, value in options.items() if value)
    return ["from transformers import pipeline", f'answer = pipeline("text-generation", {name!r}{given})', _PROMPT]
