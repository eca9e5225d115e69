"""GGUF files of llama.cpp: converted, quantized and run by llama.cpp itself through llama-cpp-python."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from quantbench.errors import UnsupportedError
from quantbench.methods import Artifact, LoadedModel, Settings, method
from quantbench.scenario import Precision, Scenario

F16 = Precision(name="f16", bits=16, title="F16")
Q2_K = Precision(name="q2_k", bits=2, title="Q2_K")
Q3_K_M = Precision(name="q3_k_m", bits=3, title="Q3_K_M")
Q4_K_M = Precision(name="q4_k_m", bits=4, title="Q4_K_M")
Q5_K_M = Precision(name="q5_k_m", bits=5, title="Q5_K_M")
Q6_K = Precision(name="q6_k", bits=6, title="Q6_K")
Q8_0 = Precision(name="q8_0", bits=8, title="Q8_0")


@method(
    "gguf",
    precisions=[F16, Q2_K, Q3_K_M, Q4_K_M, Q5_K_M, Q6_K, Q8_0],
    requires=["llama_cpp", "gguf"],
    anchor="gguf/f16",
    kinds=("hf", "gguf"),
)
@contextmanager
def open_gguf(scenario: Scenario, settings: Settings) -> Iterator[LoadedModel]:
    """Quantized beforehand to a GGUF file, run by llama.cpp"""
    from quantbench.methods._llama_cpp import open_gguf_file
    from quantbench.methods._llama_cpp_probe import extra_buffers_work

    with open_gguf_file(
        prepare_gguf(scenario, settings).path,
        threads=settings.threads,
        context=settings.context,
        device=scenario.conditions.device,
        extra_buffers=extra_buffers_work(),
    ) as model:
        yield model


@open_gguf.prepares
@cache  # a ready file's header is read once, and not again while loading is timed
def prepare_gguf(scenario: Scenario, settings: Settings) -> Artifact:
    """The scenario's GGUF file; a ready ``.gguf`` model is used as it is when it already has the precision asked for."""
    from quantbench.methods import _gguf_files as files
    from quantbench.methods._llama_cpp_probe import extra_buffers_work

    extra_buffers_work()
    precision = scenario.variant.precision
    if settings.checkpoint.kind == "gguf":
        files.tensor_bytes(settings.checkpoint.path)
        own = files.file_precision(settings.checkpoint.path)
        if own == precision:
            return Artifact(path=settings.checkpoint.path, file_bytes=settings.checkpoint.path.stat().st_size, quantize_s=None)
        if own not in ("f16", "bf16", "f32"):
            raise UnsupportedError(f"{settings.checkpoint.path} is {own}; ask for gguf/{own}, or give an F16 file")
    return files.quantized_file(settings.checkpoint, precision)


@open_gguf.saves
def save_gguf(scenario: Scenario, settings: Settings, out: Path) -> None:
    """Copy the quantized file."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(prepare_gguf(scenario, settings).path, out / f"model-{scenario.variant.precision}.gguf")
