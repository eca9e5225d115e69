"""Models whose precision is settled already: a ready GGUF file, and a checkpoint that was quantized elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantbench.core.errors import ModelError
from quantbench.core.scenario import Variant
from quantbench.methods import METHODS
from quantbench.models import is_dummy, is_hub_id, is_server
from quantbench.models.checkpoint import quantized_as
from quantbench.models.gguf import GgufHeader, gguf_parts
from quantbench.runtimes.gptqmodel.checkpoint import grouping

_GGUF = "gguf"
_PACKED = ("gptq", "awq")


@dataclass(frozen=True, slots=True)
class Settled:
    """The variants that a model already is, and a sentence that says so and how to compare it with its original.

    ``is_source``: other files of its kind can be made from it.
    """

    variants: tuple[Variant, ...]
    sentence: str
    is_source: bool = False


def settled(model: str) -> Settled | None:
    """What a model holds, by its header, its config.json or the type at the end of its hub name; else None.

    Also None for a checkpoint that is damaged or that no method opens: its rows say why.
    """
    if is_server(model) or is_dummy(model):
        return None
    path = Path(model).expanduser().absolute()
    repository, _, kind = model.rpartition(":")
    try:
        if path.is_file():
            return _holding(model, _precision(path))
        if (path / "config.json").is_file():
            return _of_folder(model, path)
    except ModelError:
        return None
    return _holding(model, kind.lower()) if is_hub_id(repository) else None


def _precision(path: Path) -> str:
    """The precision named in a GGUF file's header; empty where the library that reads it is not installed."""
    return "" if METHODS[_GGUF].missing() else GgufHeader(gguf_parts(path)[0]).precision


def _holding(model: str, precision: str) -> Settled | None:
    """A GGUF model of a precision; None where method gguf does not have that precision."""
    from quantbench.runtimes.llama_cpp.files import UNQUANTIZED

    if precision not in (each.name for each in METHODS[_GGUF].precisions):
        return None
    variant = Variant(method=_GGUF, precision=precision)
    start = f"{model} holds {variant.name}, so only that is planned"
    if precision in UNQUANTIZED:
        made = f"--method {_GGUF} --precision {precision},q8_0,q4_k_m"
        how = f"to compare it with quantizations made from it, add --reference {variant.name} {made}"
    else:
        how = (
            f"to compare it with its original, serve it and use --model ORIGINAL --method server --server URL; "
            f"to compare what quantbench makes from the original, use --model ORIGINAL --precision {precision}"
        )
    return Settled((variant,), f"{start}; {how}", is_source=precision in UNQUANTIZED)


def _of_folder(model: str, folder: Path) -> Settled | None:
    quantization = quantized_as(folder)
    kind = str(quantization.get("quant_method", ""))
    able = [method.name for method in METHODS if kind in method.reads]
    variants = [variant for name in able for variant in _fitting(name, quantization)]
    if not variants:
        return None
    names = " or ".join(each.name for each in variants)
    return Settled(
        tuple(variants),
        f"{model} is quantized already ({kind}), so only {names} is planned; to compare what quantbench makes from its "
        f"original, use --model ORIGINAL --method {variants[0].method}",
    )


def _fitting(method: str, quantization: dict[str, object]) -> Sequence[Variant]:
    """The variants of a method that a checkpoint may be: for GPTQ and AWQ the one with its bits and group size."""
    offered = METHODS[method].precisions
    if method in _PACKED:
        wanted = (quantization.get("bits"), quantization.get("group_size"))
        offered = tuple(each for each in offered if grouping(each.name) == wanted)
    return [Variant(method=method, precision=each.name) for each in offered]
