"""What it would cost to count models of other families as Llamas: the bound that a plan of an unknown family carries.

The model types are those that transformers makes decoders of text of, with the dimensions that its own configuration class has
where nothing is given, which are mostly those of a published model of the family.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ratios import Result

PRECISIONS = {"torch": ["fp32", "bf16"], "bitsandbytes": ["int8", "nf4"]}


def as_llama() -> Iterator[Result]:
    """The least and the most that weights take of what counting a model as a Llama foretells, of all types and precisions."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from quantbench.models.architecture import AS_LLAMA

    found = {kind: misses for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if (misses := _misses(kind))}
    least = min((min(misses.values()), kind) for kind, misses in found.items())
    most = max((max(misses.values()), kind) for kind, misses in found.items())
    count = f"{len(found)} types"
    yield Result(f"least of what a Llama takes, {least[1]}", f"{least[0]:.3f}", count, AS_LLAMA[0] / least[0], "<= 1")
    yield Result(f"most of what a Llama takes, {most[1]}", f"{most[0]:.3f}", count, most[0] / AS_LLAMA[1], "<= 1")


def _misses(kind: str) -> Mapping[str, float]:
    """By variant what a model of this type takes over what it would as a Llama; empty where it is not counted as one."""
    from transformers import AutoConfig

    from quantbench.models import architecture
    from quantbench.models.architecture.shapes import from_shapes
    from quantbench.models.meta import as_shapes, build, describe
    from quantbench.planning import planner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = AutoConfig.for_model(kind)
            body: dict[str, Any] = json.loads(config.to_json_string())
            guessed = architecture.read({**body, "model_type": f"unknown-{kind}"}, kind, kind)
            true = from_shapes(body, kind, kind, as_shapes(describe(build(config))))
        except Exception:  # noqa: BLE001 - some of transformers' classes make no model without dimensions, each in its own way
            return {}
    found = {}
    for method, precisions in PRECISIONS.items():
        weights = [planner.forecast(each, method, precisions) for each in (true, guessed)]
        for precision in precisions:
            real, told = (each[precision].weight_bytes for each in weights)
            if real and told:
                found[f"{method}/{precision}"] = real / told
    return found
