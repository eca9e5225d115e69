"""llama.cpp's own conversion script, of the version that llama-cpp-python was built from, kept in the cache."""

from __future__ import annotations

import os
import tarfile
from importlib.metadata import version
from pathlib import Path

from quantbench.core.cache import artifact
from quantbench.core.children import python_module, run
from quantbench.core.errors import ChildError, QuantbenchError

CHECKOUT_VARIABLE = "QUANTBENCH_LLAMA_CPP"

SOURCE_SHA256 = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
"""Hashes of reviewed source distributions of llama-cpp-python; any other version is trusted as the package index serves it."""

_CONVERTER_PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")


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
    asked = {"converter": installed, "sha256": SOURCE_SHA256.get(installed, "")}
    return artifact("converter", asked, lambda folder: _fetch_converter(folder, installed)) / _CONVERTER_PARTS[0]


def _fetch_converter(folder: Path, installed: str) -> None:
    pin = f"llama-cpp-python=={installed}"
    if digest := SOURCE_SHA256.get(installed):
        pin += f" --hash=sha256:{digest}"
    requirement = folder / "requirement.txt"
    requirement.write_text(pin + "\n")
    command = [
        *python_module("pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"),
        "--dest", str(folder), "--requirement", str(requirement),
    ]  # fmt: skip
    reason = ""
    try:
        run(command, "pip's download of llama-cpp-python")
    except ChildError as error:
        reason = error.reason
    archives = list(folder.glob("llama_cpp_python-*.tar.gz"))
    if reason or not archives:
        raise QuantbenchError(
            f"the source distribution of llama-cpp-python {installed}, which holds the GGUF converter, could not be "
            f"downloaded ({reason or 'no message'}); check the network, or set {CHECKOUT_VARIABLE} to a llama.cpp checkout"
        )
    _unpack(archives[0], folder)
    archives[0].unlink()
    requirement.unlink()


def _unpack(archive: Path, folder: Path) -> None:
    """The converter's files of a source distribution: only plain ones, no link, and none that leaves ``folder``."""
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                _, _, inside = member.name.partition("/vendor/llama.cpp/")
                if member.isfile() and inside.startswith(_CONVERTER_PARTS):
                    member.name = inside
                    opened.extract(member, folder, filter="data")
    except tarfile.TarError as error:
        raise QuantbenchError(
            f"{archive.name} is no source distribution of llama-cpp-python as it should be ({error}); check the package index, "
            f"or set {CHECKOUT_VARIABLE} to a llama.cpp checkout"
        ) from error
