"""Predicted bytes of weights, by arithmetic on the shapes of an architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from quantbench.models.architecture import Architecture

ELEMENT_BYTES: Mapping[str, Fraction] = {
    "fp32": Fraction(4), "fp16": Fraction(2), "bf16": Fraction(2), "fp8": Fraction(1),
    "q8_0": Fraction(34, 32), "q4_0": Fraction(18, 32),
}  # fmt: skip
"""Bytes per value by dtype; the last two are llama.cpp's blocks of 32 values with a 16-bit scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What a variant's weights will take.

    ``weight_bytes`` is what the column of that name will say once the variant is loaded, None if it cannot be predicted, with
    the reason in ``note``; ``file_bytes`` is the size of the quantized file or checkpoint if it is known. ``dtype`` is that of
    the activations, and of the KV cache unless the runtime sets another.
    """

    weight_bytes: int | None
    file_bytes: int | None = None
    dtype: str = "bf16"
    note: str = ""


def dense_bytes(architecture: Architecture, dtype: str) -> int:
    """Bytes of all parameters in one dtype, and of the buffers in their own."""
    size = ELEMENT_BYTES[dtype]
    return math.ceil(architecture.parameters * size) + architecture.buffer_bytes_in(math.ceil(size))
