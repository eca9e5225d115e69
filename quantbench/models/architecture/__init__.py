"""Architectures: what a config.json says about a model's tensors, without transformers and without weights.

A family turns a configuration into an Architecture whose tensors have transformers' own names and shapes: the fast path for the
most common models. Every other model type that transformers knows is counted from its own module (``quantbench.models.meta``)
and needs no file. A new family is one file in ``families``, or an entry point in the group ``quantbench.architecture``::

    @family("llama", "mistral")
    def llama(config: Config) -> Architecture: ...
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from quantbench.core.errors import ModelError
from quantbench.core.registry import Registry

Role = Literal["embedding", "linear", "conv1d", "experts", "output", "other"]
"""What a tensor is: ``linear`` [outputs, inputs] inside the blocks, ``conv1d`` the same transposed (GPT-2), ``experts`` one
tensor of all experts [experts, outputs, inputs], ``output`` the untied output layer, ``other`` norms, biases, positions."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A parameter, with its name and shape in transformers' state dict."""

    name: str
    shape: tuple[int, ...]
    role: Role = "other"

    @property
    def elements(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor that is not a parameter, such as rotary frequencies, which stay in float32 whatever the model's dtype.

    ``element_bytes`` is None if it has the dtype that the model is loaded in.
    """

    name: str
    shape: tuple[int, ...]
    element_bytes: int | None

    def bytes_in(self, model_element_bytes: int) -> int:
        """Its size in a model whose dtype has ``model_element_bytes`` bytes."""
        return math.prod(self.shape) * (model_element_bytes if self.element_bytes is None else self.element_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    """What a layer caches per position: a key and a value of ``heads`` x ``head_dim``, of the last ``window`` positions only.

    ``copies`` is how often transformers keeps each of them; llama.cpp keeps one.
    """

    heads: int
    head_dim: int
    window: int | None = None
    copies: int = 1


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model without its weights. Tied tensors are listed once.

    ``width`` is the hidden size, ``inner_width`` the most values a position has inside a feed-forward layer at once (gate, up
    and their product, or a layer and its activation; for experts, those that one token uses), ``attention_width`` those of
    queries, keys and values together. ``context`` is the most positions it was made for, None if it does not say. ``config`` is
    the configuration, or a GGUF file's metadata; ``gguf`` is that file. ``note`` says what had to be assumed. The true weight
    bytes are between ``bounds`` times the counted ones: 1 and 1 if the shapes are known.
    """

    name: str
    model_type: str
    config: Mapping[str, Any] = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)
    buffers: tuple[Buffer, ...] = field(default=(), repr=False)
    layers: tuple[CacheLayer, ...] = field(repr=False)
    width: int
    inner_width: int
    attention_width: int
    vocabulary: int
    context: int | None
    tied: bool
    gguf: Path | None = None
    note: str = ""
    bounds: tuple[float, float] = (1.0, 1.0)

    @cached_property
    def parameters(self) -> int:
        """The number of parameters, with tied ones counted once."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all buffers of a model loaded in a 16-bit dtype."""
        return self.buffer_bytes_in(2)

    def buffer_bytes_in(self, model_element_bytes: int) -> int:
        """Bytes of all buffers of a model loaded in a dtype of ``model_element_bytes`` bytes."""
        return sum(buffer.bytes_in(model_element_bytes) for buffer in self.buffers)


_MOST, _MOST_LAYERS = 10**12, 10**4
"""Larger figures must be typing errors, and would hang or overflow: tensors are listed per layer, sizes divided as floats."""
_LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer")


class Config:
    """A config.json's keys, each read as the type it must have; ModelError names what is missing or impossible."""

    def __init__(self, body: Mapping[str, Any], source: str) -> None:
        """``source`` names the configuration in messages."""
        self.body = body
        self.source = source

    def count(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """A whole number, positive unless ``least`` says otherwise, under the first of ``names`` that exists."""
        found = self.optional(*names, default=default, least=least)
        if found is None:
            raise ModelError(
                f"{self.source} has no {' or '.join(names)}, which its shapes depend on; give a complete config.json"
            )
        return found

    def optional(self, *names: str, default: int | None = None, least: int = 1) -> int | None:
        """Like ``count``, but None if there is neither the key nor a ``default``."""
        name = next((each for each in names if self.body.get(each) is not None), names[0])
        found = default if self.body.get(name) is None else self.body[name]
        if found is not None and (isinstance(found, bool) or not isinstance(found, int) or found < least):
            raise self._wrong(name, f"a whole number of at least {least}")
        most = _MOST_LAYERS if name in _LAYER_KEYS else _MOST
        if found is not None and found > most:
            raise ModelError(f"{self.source} has {name} above {most}, which no model has; give an intact config.json")
        return found

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        found = self.body.get(name)
        if found is None:
            return default
        if not isinstance(found, bool):
            raise self._wrong(name, "true or false")
        return found

    def share(self, name: str, *, default: float) -> float:
        """A part of a whole: above 0, at most 1."""
        found = self.body.get(name)
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= 1:
            raise self._wrong(name, "a number above 0 and at most 1")
        return float(found)

    def counts(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; empty if the key is missing."""
        found = self.body.get(name)
        whole = isinstance(found, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in found)
        if found is not None and not whole:
            raise self._wrong(name, "a list of whole numbers")
        return tuple(found or ())

    def text(self, name: str) -> str:
        """A string; empty if the key is missing."""
        found = self.body.get(name)
        if found is not None and not isinstance(found, str):
            raise self._wrong(name, "a string")
        return found or ""

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty if the key is missing."""
        found = self.body.get(name)
        if found is not None and not (isinstance(found, list) and all(isinstance(each, str) for each in found)):
            raise self._wrong(name, "a list of strings")
        return tuple(found or ())

    def table(self, name: str) -> Config:
        """A nested table; without keys if it is missing."""
        found = self.body.get(name)
        if found is not None and not isinstance(found, Mapping):
            raise self._wrong(name, "a table of keys")
        return Config(found or {}, f"{self.source} under {name}")

    def __bool__(self) -> bool:
        """Whether it has any keys."""
        return bool(self.body)

    def _wrong(self, name: str, requirement: str) -> ModelError:
        return ModelError(f"{self.source} has {name} {self.body[name]!r}; it must be {requirement}")


_NO_PLAIN_DECODER = (
    "is_encoder_decoder", "type_vocab_size", "kv_lora_rank", "state_size", "ssm_cfg", "mamba_d_state", "linear_num_value_heads",
    "layers_block_type", "hybrid_override_pattern", "block_configs", "add_cross_attention",
)  # fmt: skip
"""Keys of models with an encoder, latent attention, recurrent layers or layers that differ from each other."""

_MORE_THAN_LLAMA = re.compile("_experts$|^(vision|audio)_config$")
"""Keys of models with experts, or with vision or audio parts: they are many times as large as a Llama of those dimensions."""

AS_LLAMA = (0.35, 1.25)
"""True weight bytes of a model that is counted as a Llama, as multiples of the counted ones, with a margin at the top.

``bench/harness/run.py as-llama`` measures it, in fp32, bf16, int8 and nf4: the decoders of transformers 5.23 that would be
counted this way take between 0.354 (hrm_text, which runs its layers several times) and 1.004 times as much; most of them
between 0.73 and 1, as the usual difference is a missing gate or a tied embedding.
"""

Build = Callable[[Config], Architecture]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The model types that one function can read."""

    name: str
    model_types: tuple[str, ...]
    build: Build


FAMILIES: Registry[Family] = Registry(
    "quantbench.models.architecture.families", Family, "architecture", group="quantbench.architecture"
)


def family(*model_types: str) -> Callable[[Build], Family]:
    """Register a function from a configuration to an Architecture for ``model_types``; it is named like the function."""

    def register(build: Build) -> Family:
        return Family(name=build.__name__, model_types=model_types, build=build)

    return register


def is_known(body: Mapping[str, Any]) -> bool:
    """Whether a family reads configurations of this model type."""
    return any(body.get("model_type") in each.model_types for each in FAMILIES)


def read(body: Mapping[str, Any], name: str, source: str, *, why: str = "") -> Architecture:
    """The architecture that a configuration describes; ``name`` is the model's name, ``source`` names the file in messages.

    A model type that no family knows is read as a Llama if its keys allow, with bounds, a note that says so, and ``why``
    nothing better was available. Raises ModelError if fields are missing or impossible, and for models that are more than a
    text decoder.
    """
    config = Config(body, source)
    model_type = config.text("model_type")
    known = next((each for each in FAMILIES if model_type in each.model_types), None)
    if known:
        return replace(known.build(config), name=name, note=quantized_note(config))
    reason = f" ({why})" if why else ""
    require_decoder(config, model_type, but=[key for key in body if _MORE_THAN_LLAMA.search(key)], reason=reason)
    try:
        found = FAMILIES["llama"].build(config)
    except ModelError as error:
        raise ModelError(
            f"{source} has model_type {model_type!r}, which quantbench does not know{reason}, and its fields do not give its "
            f"shapes as Llama's do ({error})"
        ) from error
    least, most = AS_LLAMA
    assumed = (
        f"model type {model_type!r} is not known{reason}: counted as a Llama of these dimensions; its weights may "
        f"take {1 - least:.0%} less to {most - 1:.0%} more, the error of this count on other families"
    )
    return replace(found, name=name, note="; ".join(filter(None, (assumed, quantized_note(config)))), bounds=AS_LLAMA)


def quantized_note(config: Config) -> str:
    """A note if the checkpoint is already quantized."""
    table = config.table("quantization_config")
    how = f" ({method})" if (method := table.text("quant_method")) else ""
    says = f"the checkpoint is already quantized{how}: sizes in other methods are those of the unquantized model"
    return says if table else ""


def require_decoder(config: Config, model_type: str, *, but: Sequence[str] = (), reason: str = "") -> None:
    """ModelError if the keys of an unknown type say that it is not a plain text decoder; ``but`` are further such keys.

    ``reason`` is why the type is not known, in brackets.
    """
    if config.body.get("text_config"):
        raise ModelError(
            f"{config.source} has model_type {model_type!r} with a text_config: a multimodal model, which quantbench "
            "cannot count; to plan its text part alone, give a config.json with what is under text_config"
        )
    config.optional(*_LAYER_KEYS)
    if marks := [each for each in (*_NO_PLAIN_DECODER, *but) if config.body.get(each)]:
        raise ModelError(
            f"{config.source} has model_type {model_type!r}, which quantbench does not know{reason}, and its {marks[0]} says "
            f"that it is not built like a Llama; known types are {', '.join(_model_types())}, and transformers' plain decoders"
        )


def _model_types() -> list[str]:
    return sorted(each for known in FAMILIES for each in known.model_types)
