"""What torch, torchao, bitsandbytes and llama.cpp say about their number types, read once per set of versions.

Importing them takes seconds and prints to the terminal, so a separate process reads them, and the cache keeps the answer.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from quantbench.core.cache import recall, remember
from quantbench.core.children import answer, call
from quantbench.core.errors import ChildError, QuantbenchError
from quantbench.core.wire import made, plain

LLAMA_CPP = "llama-cpp-python"
PACKAGES = ("torch", "torchao", "bitsandbytes", LLAMA_CPP)
_FLOATS = {
    "FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "FP8 E4M3": "float8_e4m3fn", "FP8 E5M2": "float8_e5m2",
}  # fmt: skip
_INTEGERS = {"INT8": "int8", "INT4": "int4"}
_FAR = 1000.0
_BYTE_BITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeFacts:
    """A number type as its library describes it; None where it has no such property, or the library is missing.

    ``bits`` are those of one value. ``minimum``, ``maximum``, ``smallest_normal`` (for codes: the smallest that is not 0) and
    the steps to the next larger value at 1 and at 1000 are multiples of the block's scale if the type is ``scaled``.
    A block of ``block_values`` takes ``block_bytes``, scales included. ``missing`` says why there are no facts.
    """

    name: str
    package: str
    bits: int | None = None
    sign_bits: int | None = None
    exponent_bits: int | None = None
    mantissa_bits: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    smallest_normal: float | None = None
    step_at_1: float | None = None
    step_at_1000: float | None = None
    scaled: bool = False
    block_values: int | None = None
    block_bytes: int | None = None
    missing: str = ""

    @property
    def stored_bits(self) -> float | None:
        """Bits of one value with its share of the block's scales."""
        return _BYTE_BITS * self.block_bytes / self.block_values if self.block_values and self.block_bytes else self.bits


@cache
def type_facts() -> tuple[TypeFacts, ...]:
    """All types: floating-point by falling bits, integers, NF4, then llama.cpp's block types by falling bits per value."""
    identity = {"versions": package_versions(), "reader": Path(__file__).read_text(encoding="utf-8")}
    answers = recall("number-types", identity)
    if not isinstance(answers, list):
        try:
            answers = call("quantbench.claims.type_facts", None, "the reading of number types")
        except ChildError as error:
            raise QuantbenchError(
                f"the installed libraries did not describe their number types ({error.reason}); see quantbench doctor"
            ) from error
        remember("number-types", identity, answers)
    return made(answers, tuple[TypeFacts, ...], "what the libraries say about their number types")


def package_versions() -> dict[str, str]:
    """Versions of the libraries that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_types() -> list[TypeFacts]:
    """Ask the libraries for their types; imports them all."""
    return [
        *_read("torch", _FLOATS, _floats),
        *_read("torch", ["INT8"], _int8),
        *_read("torchao", ["INT4"], _int4),
        *_read("bitsandbytes", ["NF4"], _nf4),
        *_read(LLAMA_CPP, ["GGUF"], _blocks),
    ]


def _read(package: str, names: Sequence[str] | dict[str, str], ask: Callable[[], Iterator[TypeFacts]]) -> list[TypeFacts]:
    """What ``ask`` finds; where the library cannot be used, the bare names with the reason."""
    try:
        return list(ask())
    except (ImportError, AttributeError, KeyError, OSError, RuntimeError) as error:
        installed = package_versions().get(package)
        why = f"{package} {installed} does not describe it: {error}" if installed else f"{package} is not installed"
        return [TypeFacts(name=name, package=package, missing=why) for name in names]


def _floats() -> Iterator[TypeFacts]:
    import torch

    views = {32: torch.int32, 16: torch.int16, 8: torch.uint8}
    for name, dtype_name in _FLOATS.items():
        dtype = getattr(torch, dtype_name)
        info = torch.finfo(dtype)

        def step(at: float, dtype: Any = dtype, bits: int = info.bits) -> float:
            pattern = torch.tensor(at, dtype=dtype).view(views[bits])  # the next larger value has the next larger bit pattern
            below = pattern - int(pattern.view(dtype).to(torch.float64) > at)
            return float((below + 1).view(dtype).to(torch.float64) - below.view(dtype).to(torch.float64))

        sign, mantissa = int(info.min < 0), -round(math.log2(info.eps))
        yield TypeFacts(
            name=name, package="torch", bits=info.bits, sign_bits=sign, mantissa_bits=mantissa,
            exponent_bits=info.bits - sign - mantissa, minimum=info.min, maximum=info.max, smallest_normal=info.smallest_normal,
            step_at_1=step(1.0), step_at_1000=step(_FAR) if info.max > _FAR else None,
        )  # fmt: skip


def _int8() -> Iterator[TypeFacts]:
    import torch

    info = torch.iinfo(torch.int8)
    yield _integer("INT8", "torch", info.min, info.max)


def _int4() -> Iterator[TypeFacts]:
    import torch
    from torchao.quantization.quant_primitives import _DTYPE_TO_QVALUE_BOUNDS as BOUNDS

    yield _integer("INT4", "torchao", *BOUNDS[torch.int4])


def _integer(name: str, package: str, low: int, high: int) -> TypeFacts:
    bits, sign = (high - low).bit_length(), int(low < 0)
    return TypeFacts(
        name=name, package=package, bits=bits, sign_bits=sign, exponent_bits=0, mantissa_bits=bits - sign,
        minimum=low, maximum=high, smallest_normal=1, step_at_1=1, step_at_1000=1 if high > _FAR else None, scaled=True,
    )  # fmt: skip


def _nf4() -> Iterator[TypeFacts]:
    import torch
    from bitsandbytes.functional import get_4bit_type, quantize_4bit

    codes = sorted(get_4bit_type("nf4", device="cpu").tolist())
    gaps = dict(pairwise(reversed(codes)))  # 1 is the largest code, so its step is the one below
    some = torch.ones(2**12)
    packed, state = quantize_4bit(some, quant_type="nf4")
    blocks = state.absmax.numel()
    yield TypeFacts(
        name="NF4", package="bitsandbytes", bits=round(math.log2(len(codes))), minimum=codes[0], maximum=codes[-1],
        smallest_normal=min(abs(code) for code in codes if code), step_at_1=1.0 - gaps[1.0], scaled=True,
        block_values=some.numel() // blocks, block_bytes=(packed.nbytes + state.absmax.nbytes) // blocks,
    )  # fmt: skip


def _blocks() -> Iterator[TypeFacts]:
    """From the library that runs the models, as the package gguf has had other sizes for types that no file holds."""
    from llama_cpp import GGML_TYPE_COUNT
    from llama_cpp._ggml import libggml

    libggml.ggml_type_name.restype = ctypes.c_char_p
    libggml.ggml_blck_size.restype, libggml.ggml_type_size.restype = ctypes.c_int64, ctypes.c_size_t
    found = []
    for kind in range(GGML_TYPE_COUNT):
        name, values, count = libggml.ggml_type_name(kind), libggml.ggml_blck_size(kind), libggml.ggml_type_size(kind)
        if values > 1:
            found.append((-count / values, name.decode().upper(), values, count))
    for _, name, values, count in sorted(found):
        yield TypeFacts(name=name, package=LLAMA_CPP, scaled=True, block_values=values, block_bytes=count)


if __name__ == "__main__":
    answer(lambda _: plain(read_types()))
