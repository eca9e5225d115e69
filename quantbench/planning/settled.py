"""Models whose precision is settled already: a ready file of a runtime, and a checkpoint that was quantized elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.outside import expanded, is_file
from quantbench.core.scenario import Variant
from quantbench.methods import METHODS
from quantbench.models import is_dummy, is_hub_id, is_server
from quantbench.models.checkpoint import checkpoint_dtype, quantized_as
from quantbench.runtimes import RUNTIMES, Runtime, reader_of

_PLAIN = "torch"
"""The method that runs a checkpoint which nobody quantized."""

_UNQUANTIZED_BITS = 16
"""Other files can be made from weights of at least so many."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The variants that a model already is, and a sentence that says so and how to compare it with its original.

    ``is_source``: other precisions of the same method can be made from it.
    """

    variants: tuple[Variant, ...]
    sentence: str
    is_source: bool = False

    def offers(self, variant: Variant) -> bool:
        """Whether the model is, or can be made, the variant."""
        return variant in self.variants or (self.is_source and variant.method == self.variants[0].method)


def settled(model: str) -> Settled | None:
    """What a model holds, by its header, its config.json or the type at the end of its hub name; else None.

    Also None for a checkpoint that is damaged or that no method opens: its rows say why.
    """
    if is_server(model) or is_dummy(model):
        return None
    path = expanded(model).absolute()
    repository, _, kind = model.rpartition(":")
    try:
        if is_file(path):
            reader = reader_of(path)
            return _holding(model, reader, reader.read_precision(path)) if reader and reader.read_precision else None
        if is_file(path / "config.json"):
            return _of_folder(model, path)
    except ModelError:
        return None
    if not is_hub_id(repository):
        return None
    named = (_holding(model, each, kind.lower()) for each in RUNTIMES if each.suffix)
    return next(filter(None, named), None)


def held_by(checkpoint: Checkpoint) -> tuple[str, str]:
    """The method and precision that a checkpoint's files hold; UnsupportedError where no method has such a precision."""
    name, reader = checkpoint.name, reader_of(checkpoint.path)
    if reader and reader.read_precision:
        precision = reader.read_precision(checkpoint.path)
        variant = _of_kind(reader.opens, precision)
        what = precision
    elif quantization := quantized_as(checkpoint.path):
        variant = next((each for method in METHODS for each in method.held(quantization)), None)
        what = f"a quantization by {quantization.get('quant_method', 'nobody knows what')}"
    else:
        what = checkpoint_dtype(checkpoint.path)
        plain = any(each.name == what for each in METHODS[_PLAIN].precisions)
        variant = Variant(method=_PLAIN, precision=what) if plain else None
    if variant is None:
        raise UnsupportedError(f"{name} holds {what}, which no method here reads; give an artifact in another format")
    return variant.method, variant.precision


def _of_kind(kind: str, precision: str) -> Variant | None:
    """The first method that opens checkpoints of a kind and has the precision."""
    for method in METHODS:
        if kind in method.kinds and not method.endpoint and any(each.name == precision for each in method.precisions):
            return Variant(method=method.name, precision=precision)
    return None


def _holding(model: str, reader: Runtime, precision: str) -> Settled | None:
    """A file of a runtime's kind in a precision; None where no method that opens such files has that precision."""
    variant = _of_kind(reader.opens, precision)
    if variant is None:
        return None
    method = METHODS[variant.method]
    is_source = (method.precision(precision).bits or 0) >= _UNQUANTIZED_BITS
    if is_source:
        others = [each.name for each in method.precisions if each.first][::3]  # a large and a small one are enough to show how
        made = f"--method {method.name} --precision {','.join([precision, *others])}"
        how = f"to compare it with quantizations made from it, add --reference {variant.name} {made}"
    else:
        how = (
            f"to compare it with its original, use --model ORIGINAL --artifact NAME={model}; "
            f"to compare what quantbench makes from the original, use --model ORIGINAL --precision {precision}"
        )
    return Settled((variant,), f"{model} holds {variant.name}, so only that is planned; {how}", is_source=is_source)


def _of_folder(model: str, folder: Path) -> Settled | None:
    quantization = quantized_as(folder)
    variants = [variant for method in METHODS for variant in method.held(quantization)]
    if not variants:
        return None
    names = " or ".join(each.name for each in variants)
    return Settled(
        tuple(variants),
        f"{model} is quantized already ({quantization['quant_method']}), so only {names} is planned; to compare it "
        f"with its original, use --model ORIGINAL --artifact NAME={model}",
    )
