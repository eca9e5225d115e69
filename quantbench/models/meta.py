"""The shapes that transformers' own class gives a configuration, on the meta device without weights, in a child process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from quantbench.core.cache import made_by, recall, remember
from quantbench.core.children import answer, call
from quantbench.core.errors import ChildError, ModelError, OutOfMemoryError
from quantbench.core.machine import versions
from quantbench.models.architecture import Buffer, Role, Tensor
from quantbench.models.architecture.shapes import Shapes

_MAKERS = ("torch", "transformers")
_KIND = "meta-shapes"
_TIMEOUT_S = 120
_DIMENSIONS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "max_position_embeddings", "num_experts_per_tok",
)  # fmt: skip
"""Configuration keys by their usual names; transformers' own class maps a family's other names to them."""

_LEFT_OUT = frozenset(
    ("quantization_config", "auto_map", "attn_implementation", "_attn_implementation", "experts_implementation")
)
"""How it was quantized, and keys that name code which transformers would download and run."""


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the unquantized model and its submodels, without custom code."""
    kept = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    return {key: plain(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def meta_shapes(config: Mapping[str, Any]) -> Shapes:
    """The tensors of transformers' model for a configuration, computed once; no custom code is run.

    ModelError if transformers is not installed, or cannot build the model.
    """
    if missing := [each for each in _MAKERS if each not in versions(_MAKERS)]:
        raise ModelError(f"{' and '.join(missing)} not installed")
    told = _told(json.dumps(plain(config), sort_keys=True))
    if isinstance(told, str):
        raise ModelError(told)
    return as_shapes(told)


def as_shapes(told: Mapping[str, Any]) -> Shapes:
    """The result of ``describe`` as Shapes."""
    return Shapes(
        tensors=tuple(Tensor(name, tuple(shape), role) for name, shape, role in told["tensors"]),
        buffers=tuple(Buffer(name, tuple(shape), size) for name, shape, size in told["buffers"]),
        windows=tuple(told["windows"]),
        held=tuple((heads, size) for heads, size in told["held"]) if told["held"] else None,
        tied=told["tied"],
        dimensions=told["dimensions"],
        source="transformers' own module",
    )


def call_transformers(module: str, request: object, source: object, timeout_s: float | None = None) -> Any:
    """The answer of one of quantbench's modules for the configuration ``source``; ModelError if it or transformers fails."""
    try:
        return call(module, request, f"making a model from {source}", timeout_s=timeout_s)
    except ChildError as error:
        if error.refused:
            raise ModelError(str(error)) from error
        raise ModelError(
            f"transformers cannot make a model from {source} ({error.reason}); give another configuration"
        ) from error


def build(config: Any) -> Any:
    """The model that transformers makes from one of its configurations, in bfloat16 on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    model.tie_weights()
    return model


@cache
def _told(config: str) -> dict[str, Any] | str:
    """The child's description of a configuration (JSON), kept in the cache; or why there is none, not kept."""
    makers = versions(_MAKERS)
    asked = {"config": config, "versions": makers, "made_by": made_by(__name__)}
    known = recall(_KIND, asked)
    if isinstance(known, dict):
        return known
    try:
        found: dict[str, Any] = call_transformers(__name__, json.loads(config), "its config.json", _TIMEOUT_S)
    except (ModelError, OutOfMemoryError) as error:
        return str(error)
    remember(_KIND, asked, found)
    return found


def describe(model: Any) -> dict[str, Any]:
    """A model's tensors with their roles, its buffers, what each layer caches, and its usual dimensions."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = model.config.get_text_config()
    layers = DynamicCache(config=config).layers
    if strange := [type(each).__name__ for each in layers if not isinstance(each, DynamicLayer)]:
        raise ModelError(f"its layers use a cache that quantbench cannot count ({strange[0]})")
    count = config.num_hidden_layers
    windows = [getattr(each, "sliding_window", None) for each in layers] or [None] * count
    named = {name: getattr(config, name, None) for name in _DIMENSIONS}
    named["num_key_value_heads"] = named["num_key_value_heads"] or getattr(config, "num_kv_heads", None)  # Falcon's name
    return {
        "tensors": [[name, list(each.shape), _role(model, name, each)] for name, each in model.named_parameters()],
        "buffers": [
            [name, list(each.shape), None if each.dtype == torch.bfloat16 else each.element_size()]
            for name, each in model.named_buffers()
        ],
        "windows": windows,
        "held": _held(model, DynamicCache(config=config)),
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "dimensions": {name: value for name, value in named.items() if type(value) is int},
    }


def _held(model: Any, cache: Any) -> list[list[int]] | None:
    """Number and size of the heads that each layer caches, from running one token on the meta device; None if that fails."""
    import torch

    token = torch.zeros((1, 1), dtype=torch.long, device="meta")
    try:
        with torch.inference_mode():
            model.eval()(input_ids=token, past_key_values=cache, use_cache=True)
    except Exception:  # noqa: BLE001 - some classes need real values, and each fails in its own way
        return None
    if any(each.keys is None or each.keys.dim() != 4 or each.keys.shape != each.values.shape for each in cache.layers):
        return None
    return [[each.keys.shape[1], each.keys.shape[3]] for each in cache.layers]


def _role(model: Any, name: str, parameter: Any) -> Role:
    """A parameter's role, by the class of the module that it belongs to."""
    import torch
    from transformers.pytorch_utils import Conv1D

    module = model.get_submodule(name.rpartition(".")[0])
    if module is model.get_input_embeddings():
        return "embedding"
    if parameter.dim() == 3 and not isinstance(module, torch.nn.Conv1d):
        return "experts"
    if parameter.dim() == 2 and isinstance(module, torch.nn.Linear):
        return "output" if module is model.get_output_embeddings() else "linear"
    return "conv1d" if parameter.dim() == 2 and isinstance(module, Conv1D) else "other"


def describe_config(body: Mapping[str, Any]) -> dict[str, Any]:
    """``describe`` for the model of a configuration; ModelError if transformers does not know its type."""
    from transformers import CONFIG_MAPPING

    if body["model_type"] not in CONFIG_MAPPING:
        raise ModelError("transformers does not know it either")
    return describe(build(CONFIG_MAPPING[body["model_type"]].from_dict(dict(body))))


if __name__ == "__main__":
    answer(describe_config)
