"""The tensors of the F16 file that llama.cpp's converter makes of an architecture: names, shapes, types; and their bytes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from quantbench.core.errors import UnsupportedError

_ALIASES = {
    "mistral": "llama", "mixtral": "llama", "phi": "phi2", "gemma3_text": "gemma3", "cohere": "command-r",
}  # fmt: skip
"""Model types of transformers that have another name in gguf."""

_LLAMA_CONVERTER = frozenset(("llama", "arcee", "llama-embed", "smollm3", "apertus"))
"""Architectures whose converter is Llama's or derived from it: it writes the factors of Llama 3's rotary scaling."""

_ALWAYS_FLOAT32 = ("FFN_GATE_INP", "FFN_GATE_INP_SHEXP", "POS_EMBD", "TOKEN_TYPES")
"""Matrices that the converter leaves in float32."""

TypedTensor = tuple[str, Sequence[int], str]
"""A tensor's GGUF name, its shape as torch has it, and its type."""


def architecture_of(model_type: str) -> Any:
    """The name in gguf, from its own enumeration, for the architecture of a model type of transformers."""
    import gguf

    wanted = _plain(_ALIASES.get(model_type, model_type))
    for architecture, name in gguf.MODEL_ARCH_NAMES.items():
        if _plain(name) == wanted:
            return architecture
    raise UnsupportedError(f"llama.cpp has no architecture for model type {model_type!r}; ask for torch")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]", "", name)


def converted(request: Mapping[str, Any]) -> list[TypedTensor]:
    """The tensors of the F16 file that llama.cpp's converter makes of an architecture."""
    import gguf

    architecture = architecture_of(request["model_type"])
    names = gguf.get_tensor_name_map(architecture, len(request["kv_heads"]))
    found = []
    for name, shape, role in request["tensors"]:
        for part, extent in _parts(name, shape, role):
            mapped = names.get_type_and_name(part.replace("language_model.", ""), try_suffixes=(".weight", ".bias"))
            if not mapped:
                raise UnsupportedError(
                    f"gguf {request['versions']['gguf']} has no name for tensor {part} of model type {request['model_type']!r}"
                )
            kind, target = mapped
            full = len(extent) < 2 or target.endswith("_norm.weight") or not target.endswith(".weight")
            always = kind.name in _ALWAYS_FLOAT32
            found.append((target, extent, "F32" if full or always else "F16"))
    return found + list(_rotary(request, gguf.MODEL_ARCH_NAMES[architecture]))


def _parts(name: str, shape: Sequence[int], role: str) -> Iterator[tuple[str, Sequence[int]]]:
    """What the converter makes of one tensor of transformers: GPT-2's are transposed, fused experts split."""
    if role == "conv1d":
        yield name, shape[::-1]
    elif role == "experts" and name.endswith("gate_up_proj"):
        for half in ("gate_proj", "up_proj"):
            yield f"{name.removesuffix('gate_up_proj')}{half}.weight", (shape[0], shape[1] // 2, shape[2])
    elif role == "experts" and not name.endswith(".weight"):
        yield f"{name}.weight", shape
    else:
        yield name, shape


def _rotary(request: Mapping[str, Any], architecture: str) -> Iterator[TypedTensor]:
    """Factors that the converter writes for scaled rotary positions, one for each pair of a head's values."""
    rotary = request["rotary"]
    if architecture in _LLAMA_CONVERTER and str(rotary.get("rope_type", rotary.get("type"))).lower() == "llama3":
        yield "rope_freqs.weight", (request["head_dim"] // 2,), "F32"
    if architecture in ("phi3", "phimoe") and rotary.get("long_factor"):
        for length in ("long", "short"):
            yield f"rope_factors_{length}.weight", (len(rotary[f"{length}_factor"]),), "F32"


def fallback(tensors: Iterable[tuple[str, int, str]], fallen: Collection[str]) -> dict[str, Any]:
    """How many tensors and bytes fell back to another type, and which types, the most bytes first.

    ``tensors`` are names, bytes and types in the file; ``fallen`` those whose rows do not fill blocks of the type that
    llama.cpp's recipe gives them, so that its ``tensor_type_fallback`` (llama-quant.cpp) gave another.
    """
    held: dict[str, int] = {}
    count = 0
    for name, size, kind in tensors:
        if name in fallen:
            count += 1
            held[kind] = held.get(kind, 0) + size
    return {
        "tensors": count,
        "bytes": sum(held.values()),
        "types": [kind.lower() for kind in sorted(held, key=lambda each: -held[each])],
    }
