"""Architectures: what a config.json says of a model's tensors, without transformers and without weights.

One file each: a family turns a configuration into an Architecture whose tensors have transformers' own names and shapes. A new
family is one file here (or an entry point in the group ``quantbench.architecture``)::

    @family("llama", "mistral")
    def llama(config: Config) -> Architecture: ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from quantbench.errors import ModelError
from quantbench.registry import Registry

Role = Literal["embedding", "linear", "conv1d", "experts", "output", "other"]
"""What a tensor is: ``linear`` [outputs, inputs] inside the blocks, ``conv1d`` the same transposed (GPT-2), ``experts`` one
tensor of all experts [experts, outputs, inputs], ``output`` the untied output layer, ``other`` norms, biases, positions."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A parameter, under its name and with its shape in transformers' state dict."""

    name: str
    shape: tuple[int, ...]
    role: Role = "other"

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor that is no parameter, such as rotary frequencies; it keeps its own dtype whatever the model's."""

    name: str
    shape: tuple[int, ...]
    element_bytes: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.element_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    """What a layer keeps per position: a key and a value of ``heads`` x ``head_dim``; of the last ``window`` positions only."""

    heads: int
    head_dim: int
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model without its weights. Tied tensors are listed once.

    ``width`` is the hidden size, ``inner_width`` the most values a position has inside a feed-forward layer at once (gate and
    up counted both, of experts those that one token uses), ``attention_width`` those of queries, keys and values together.
    ``context`` is the most positions it was made for, None where it says nothing. ``config`` is the configuration itself, of a GGUF file its metadata; ``gguf`` that file.
    ``note`` says what had to be assumed.
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

    @property
    def parameters(self) -> int:
        """Values of all parameters, tied ones once."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.bytes for buffer in self.buffers)


class Config:
    """A config.json's keys, each asked for with what it must be; ModelError names what is missing or impossible."""

    def __init__(self, body: Mapping[str, Any], source: str) -> None:
        """``source`` is what messages name."""
        self.body = body
        self.source = source

    def count(self, *names: str, default: int | None = None) -> int:
        """A positive whole number under the first of ``names`` that is there."""
        found = next((self.body[name] for name in names if self.body.get(name) is not None), default)
        if found is None:
            raise ModelError(
                f"{self.source} has no {' or '.join(names)}, which its shapes follow from; give a whole config.json"
            )
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise ModelError(f"{self.source} has {names[0]} {found!r}; it must be a whole number from 1 on")
        return found

    def flag(self, name: str, *, default: bool) -> bool:
        """A yes or no."""
        found = self.body.get(name)
        if found is None:
            return default
        if not isinstance(found, bool):
            raise ModelError(f"{self.source} has {name} {found!r}; it must be true or false")
        return found


Build = Callable[[Config], Architecture]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The model types that one function can read."""

    name: str
    model_types: tuple[str, ...]
    build: Build


FAMILIES: Registry[Family] = Registry("quantbench.architecture", Family, "architecture")


def family(*model_types: str) -> Callable[[Build], Family]:
    """Register a function from a configuration to an Architecture for ``model_types``; it is named like the function."""

    def register(build: Build) -> Family:
        return Family(name=build.__name__, model_types=model_types, build=build)

    return register


def read(body: Mapping[str, Any], name: str, source: str) -> Architecture:
    """The architecture that a configuration describes; ``name`` is what the model is called, ``source`` what messages name.

    A model type that no family knows is read as a Llama where its keys allow, with a note that says so. Raises ModelError where
    fields are missing or impossible.
    """
    model_type = str(body.get("model_type"))
    config = Config(body, source)
    known = next((each for each in FAMILIES if model_type in each.model_types), None)
    if known:
        return replace(known.build(config), name=name)
    try:
        found = FAMILIES["llama"].build(config)
    except ModelError as error:
        raise ModelError(
            f"{source} has model_type {model_type!r}, which quantbench does not know, and its fields do not say its shapes "
            f"as Llama's do ({error})"
        ) from error
    assumed = f"model type {model_type!r} is not known: counted as if it were a Llama of these dimensions"
    return replace(found, name=name, note="; ".join(filter(None, (assumed, found.note))))
