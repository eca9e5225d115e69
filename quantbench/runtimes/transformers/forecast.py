"""Arithmetic that forecasts of several methods share: which layers a library quantizes, and the bytes of all others."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from quantbench.models.architecture import Architecture, Role, Tensor
from quantbench.models.footprint import ELEMENT_BYTES

_OWN_LINEAR = frozenset({"falcon"})
"""Model types whose blocks have a Linear class of their own: a library that looks for exactly torch's class skips it."""

_LEFT: Mapping[str, str] = {"linear": "Linear layers", "conv1d": "Conv1D layers", "experts": "fused experts"}
_BLOCK = re.compile(r".+?\.\d+(?=\.)")


def layers_of(architecture: Architecture, *roles: Role, exact: bool = False) -> list[Tensor]:
    """The weights with one of ``roles``; with ``exact``, only those of layers that are of torch's Linear class itself."""
    own = {"linear"} if exact and architecture.model_type in _OWN_LINEAR else set()
    return [tensor for tensor in architecture.tensors if tensor.role in roles and tensor.role not in own]


def sides(tensor: Tensor) -> tuple[int, int]:
    """Outputs and inputs of a layer by its weight."""
    outputs, inputs = tensor.shape
    return (inputs, outputs) if tensor.role == "conv1d" else (outputs, inputs)


def block_of(name: str) -> str:
    """The decoder block that a tensor is in, such as ``model.layers.0``; empty for one outside."""
    found = _BLOCK.match(name)
    return found[0] if found else ""


def mixed_bytes(architecture: Architecture, dtype: str, stored: Mapping[str, int]) -> int:
    """Bytes of a model some of whose tensors, by name, are ``stored`` in a form of their own and all others in one dtype."""
    rest = sum(tensor.elements for tensor in architecture.tensors if tensor.name not in stored)
    size = int(ELEMENT_BYTES[dtype])
    return sum(stored.values()) + rest * size + architecture.buffer_bytes_in(size)


def left_note(architecture: Architecture, dtype: str, taken: Collection[str], *, output: bool = False) -> str:
    """What stays in ``dtype``: layers that are not among those ``taken``, and the output layer unless ``output`` is taken."""
    tied = ", tied to the embedding," if architecture.tied else ""
    left = [tensor for tensor in architecture.tensors if tensor.role in _LEFT and tensor.name not in taken]
    kinds = " and ".join(_LEFT[role] for role in dict.fromkeys(tensor.role for tensor in left))
    share = sum(tensor.elements for tensor in left) / architecture.parameters
    passed = f"{kinds} ({share:.0%} of the parameters) stay {dtype}" if left else ""
    return joined("" if output else f"the output layer{tied} stays {dtype}", passed)


def joined(*notes: str) -> str:
    """All notes that are not empty, as one."""
    return "; ".join(filter(None, notes))


def class_name(architecture: Architecture) -> str:
    """The name of transformers' class, or the model type where the configuration does not give one."""
    names = architecture.config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else architecture.model_type
