"""A method of one's own, in one file: weights rounded to a few bits of mantissa, run by transformers.

Install it with an entry point, and it is measured, planned, stored, shown and compared like any other::

    [project.entry-points."quantbench.methods"]
    rounded = "own_method"
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quantbench.core.scenario import Precision, Spec
from quantbench.methods import LoadedModel, Settings, method
from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained

PRECISIONS = [Precision(name=f"m{bits}", bits=None, title=f"{bits} bits of mantissa") for bits in (7, 3)]


@method("rounded", precisions=PRECISIONS, requires=["torch", "transformers"])
@contextmanager
def open_rounded(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Weights rounded to a few bits of mantissa, kept in float32"""
    model = load_pretrained(settings, spec.conditions.device, dtype="float32")
    steps = 2.0 ** int(spec.variant.precision.removeprefix("m"))
    for weight in model.parameters():
        fraction, exponent = weight.data.frexp()
        weight.data.copy_(((fraction * steps).round() / steps).ldexp(exponent))
    yield TransformersModel(model, kernel="float32, rounded")
