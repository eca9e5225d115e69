"""GGUF files: llama.cpp's own converter and quantizer, each result made once and kept in the cache."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantbench.cache import artifact
from quantbench.errors import ModelError, QuantbenchError, UnsupportedError
from quantbench.job import Checkpoint
from quantbench.methods import Artifact
from quantbench.methods._llama_cpp import library

CHECKOUT_VARIABLE = "QUANTBENCH_LLAMA_CPP"
MODEL_FILE = "model.gguf"
SUPER_BLOCK = 256
"""Weights of one K-quant super-block (QK_K in ggml): row sizes must be multiples of it."""

_SOURCE_SHA256 = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
"""Source distributions of llama-cpp-python that were looked at; of any other version the package index vouches for the hash."""

_UNTRUSTED = (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CONVERTER_PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")


def f16_file(checkpoint: Checkpoint) -> Path:
    """The checkpoint as an F16 GGUF file, made by llama.cpp's ``convert_hf_to_gguf.py`` on first use."""
    if checkpoint.kind == "gguf":
        return checkpoint.path
    asked = {"content": checkpoint.content_hash, "outtype": "f16", **_maker()}

    def make(folder: Path) -> None:
        source = _without_code(checkpoint, folder / "source")
        command = [sys.executable, str(converter()), str(source), "--outtype", "f16", "--outfile", str(folder / MODEL_FILE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if source != checkpoint.path:
            shutil.rmtree(source)
        if done.returncode == -signal.SIGKILL:
            raise MemoryError(f"llama.cpp's converter was killed while it converted {checkpoint.path}: out of memory")
        if done.returncode or not (folder / MODEL_FILE).is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelError(f"llama.cpp's converter cannot convert {checkpoint.path} to GGUF: {last}")

    return artifact("gguf", asked, make) / MODEL_FILE


def _without_code(checkpoint: Checkpoint, view: Path) -> Path:
    """A view of the checkpoint without Python files and pickles, which the converter would trust; itself if we do too."""
    if checkpoint.trust_remote_code:
        return checkpoint.path
    view.mkdir()
    for path in checkpoint.path.iterdir():
        if path.is_file() and path.suffix not in _UNTRUSTED:
            (view / path.name).symlink_to(path.resolve())
    return view


def quantized_file(checkpoint: Checkpoint, precision: str) -> Artifact:
    """The checkpoint as a GGUF file of llama.cpp's type ``precision``, quantized by llama.cpp itself on first use.

    Raises UnsupportedError when a K-quant is asked of rows that are no multiple of 256 (llama.cpp would silently use
    other types there), ModelError when llama.cpp refuses.
    """
    source = f16_file(checkpoint)
    asked = {"content": checkpoint.content_hash, "precision": precision, **_maker()}

    def make(folder: Path) -> None:
        if "_k" in precision or precision.startswith("iq"):
            _check_rows(source, precision)
        lib = library()
        params = lib.llama_model_quantize_default_params()
        params.ftype = file_type(precision)
        started = time.perf_counter()
        if lib.llama_model_quantize(str(source).encode(), str(folder / MODEL_FILE).encode(), params):
            raise ModelError(f"llama.cpp refused to quantize {source} to {precision}; see the worker's stderr")
        (folder / "quantize.json").write_text(json.dumps({"quantize_s": time.perf_counter() - started}))

    folder = artifact("gguf", asked, make)
    path = folder / MODEL_FILE
    quantize_s = json.loads((folder / "quantize.json").read_text())["quantize_s"]
    return Artifact(path=path, file_bytes=path.stat().st_size, quantize_s=quantize_s)


def file_type(precision: str) -> int:
    """llama.cpp's number for a precision such as ``q4_k_m``, from its own enumeration."""
    lib = library()
    prefix = "LLAMA_FTYPE_ALL_" if precision == "f32" else "LLAMA_FTYPE_MOSTLY_"
    return int(getattr(lib, prefix + precision.upper()))


def file_precision(path: Path) -> str:
    """The precision that a GGUF file's header names, for example ``q4_k_m``."""
    field = _read(path).get_field("general.file_type")
    number = int(field.contents()) if field else -1
    names = (name for name in dir(library()) if name.startswith("LLAMA_FTYPE_") and getattr(library(), name) == number)
    return next(names, "unknown").removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_").lower()


def tensor_bytes(path: Path) -> int:
    """Bytes of all tensors in a GGUF file, from its header; ModelError if the file is cut short or damaged."""
    return sum(int(tensor.n_bytes) for tensor in _read(path).tensors)


def converter() -> Path:
    """llama.cpp's conversion script, version-matched to the installed llama-cpp-python.

    From the checkout that ``QUANTBENCH_LLAMA_CPP`` names, else unpacked once from the source distribution.
    """
    if checkout := os.environ.get(CHECKOUT_VARIABLE):
        script = Path(checkout) / _CONVERTER_PARTS[0]
        if not script.is_file():
            raise QuantbenchError(f"{CHECKOUT_VARIABLE}={checkout} holds no {_CONVERTER_PARTS[0]}; give a llama.cpp checkout")
        return script
    installed = version("llama_cpp_python")
    asked = {"converter": installed, "sha256": _SOURCE_SHA256.get(installed, "")}
    return artifact("converter", asked, lambda folder: _fetch_converter(folder, installed)) / _CONVERTER_PARTS[0]


def _maker() -> dict[str, str]:
    """What makes GGUF files here: the runtime's version, and the checkout if one was named."""
    return {"llama_cpp_python": version("llama_cpp_python"), "checkout": os.environ.get(CHECKOUT_VARIABLE, "")}


def _fetch_converter(folder: Path, installed: str) -> None:
    pin = f"llama-cpp-python=={installed}"
    if digest := _SOURCE_SHA256.get(installed):
        pin += f" --hash=sha256:{digest}"
    requirement = folder / "requirement.txt"
    requirement.write_text(pin + "\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
        "--dest", str(folder), "--requirement", str(requirement),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("llama_cpp_python-*.tar.gz"))
    if done.returncode or not archives:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise QuantbenchError(
            f"the source distribution of llama-cpp-python {installed}, which holds the GGUF converter, could not be "
            f"downloaded ({last}); or set {CHECKOUT_VARIABLE} to a llama.cpp checkout"
        )
    with tarfile.open(archives[0]) as archive:
        for member in archive.getmembers():
            _, _, inside = member.name.partition("/vendor/llama.cpp/")
            if inside.startswith(_CONVERTER_PARTS):
                member.name = inside
                archive.extract(member, folder, filter="data")
    archives[0].unlink()
    requirement.unlink()


def _check_rows(source: Path, precision: str) -> None:
    for tensor in _read(source).tensors:
        row = int(tensor.shape[0])
        if len(tensor.shape) > 1 and row % SUPER_BLOCK:
            raise UnsupportedError(
                f"{precision} needs row sizes that are multiples of {SUPER_BLOCK} and tensor {tensor.name} has rows of {row}; "
                "use q8_0 or f16 for this model"
            )


def _read(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{path} is cut short or damaged; make or download it again") from error
