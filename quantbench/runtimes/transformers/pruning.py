"""Pruning of causal LMs: weights of the decoder blocks set to zero, or whole FFN neurons removed.

*Prunable* are the weights of all Linear layers inside the decoder blocks; embeddings, norms, biases and the output layer
are not touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from quantbench.core.errors import UnsupportedError
from quantbench.models.architecture import Architecture
from quantbench.runtimes.transformers.forecast import block_of, class_name

_FFNS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("fc1",), "fc2"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("c_fc",), "c_proj"),
)
"""Names of the Linear layers into and out of a feed-forward network's neurons."""

_WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
"""Names under which configs keep the number of those neurons."""


def prunable_layers(model: Any) -> list[Any]:
    """The Linear layers inside the decoder blocks; UnsupportedError when these hold less than half of the blocks' weights."""
    from torch.nn import Linear

    blocks = _blocks(model)
    layers = [module for block in blocks for module in block.modules() if isinstance(module, Linear)]
    held = sum(layer.weight.numel() for layer in layers)
    _check_held(held, sum(weight.numel() for weight in blocks.parameters()), type(model).__name__)
    return layers


def check_prunable(architecture: Architecture, *, in_fours: bool = False) -> None:
    """Raise UnsupportedError if prunable_layers would for such a model, or zero_two_of_four if ``in_fours``."""
    inside = [tensor for tensor in architecture.tensors if block_of(tensor.name)]
    layers, name = [tensor for tensor in inside if tensor.role == "linear"], class_name(architecture)
    _check_held(sum(layer.elements for layer in layers), sum(tensor.elements for tensor in inside), name)
    if in_fours:
        _check_fours((layer.shape[1] for layer in layers), name)


def zero_smallest(model: Any, share: float) -> None:
    """Set the ``share`` of all prunable weights that is smallest in magnitude to zero, by one threshold for all layers."""
    from torch.nn.utils import prune

    layers = [(layer, "weight") for layer in prunable_layers(model)]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=share)
    for layer, name in layers:
        prune.remove(layer, name)  # the mask goes, the zeros stay


def zero_two_of_four(model: Any) -> None:
    """Of every four neighbours along the input dimension, set the two of least magnitude to zero."""
    layers = prunable_layers(model)
    _check_fours((layer.in_features for layer in layers), type(model).__name__)
    for layer in layers:
        groups = layer.weight.data.view(-1, 4)
        smallest = groups.abs().topk(2, dim=1, largest=False).indices
        groups.scatter_(1, smallest, 0)


def remove_neurons(model: Any, share: float) -> None:
    """Remove the ``share`` (rounded to whole neurons) of each FFN's neurons that matters least; the config follows.

    What is left is exact and not padded to a multiple of anything: no kernel used here needs it.
    """
    networks = [_network(block, type(model).__name__) for block in _blocks(model)]
    size = networks[0][1].in_features
    config = model.config.get_text_config()
    width = next((name for name in _WIDTHS if getattr(config, name, None) == size), None)
    if width is None or any(down.in_features != size for _, down in networks):
        raise _uneven(type(model).__name__)
    kept = _kept(size, share)
    for ups, down in networks:
        keep = _importance(ups, down).topk(kept).indices.sort().values
        for layer in ups:
            layer.weight.data = layer.weight.data[keep]
            layer.out_features = kept
            if layer.bias is not None:
                layer.bias.data = layer.bias.data[keep]
        down.weight.data = down.weight.data[:, keep].contiguous()
        down.in_features = kept
    setattr(config, width, kept)


def shrink(architecture: Architecture, share: float) -> Architecture:
    """What remove_neurons leaves of such a model; UnsupportedError if it finds no neurons to remove."""
    name = class_name(architecture)
    networks = _networks_by_block(architecture)
    for found in networks.values():
        _check_one(found, name)
    shapes = {tensor.name: tensor.shape for tensor in architecture.tensors}
    sizes = {shapes[f"{down}.weight"][1] for [(_, down)] in networks.values()}
    if len(sizes) != 1:
        raise _uneven(name)
    size, removed = sizes.pop(), 0
    kept = _kept(size, share)
    for [(ups, down)] in networks.values():
        removed = (len(ups) + 1) * (size - kept)
        shapes[f"{down}.weight"] = (shapes[f"{down}.weight"][0], kept)
        for each in (f"{up}.{kind}" for up in ups for kind in ("weight", "bias")):
            if each in shapes:
                shapes[each] = (kept, *shapes[each][1:])
    tensors = tuple(replace(tensor, shape=shapes[tensor.name]) for tensor in architecture.tensors)
    return replace(architecture, tensors=tensors, inner_width=architecture.inner_width - removed)


def count_values(model: Any, weight_bytes: int, elements: int) -> dict[str, int]:
    """``elements``, ``nonzero`` and ``sparse_bytes`` for WeightMemory.

    ``elements`` is how many prunable weights there were before pruning, so that removed neurons count like zeros. Stored
    sparse, a prunable tensor takes its nonzero values and one bit per element, rounded up to bytes (2:4's own format, two
    bits per kept value, is as large), or stays dense where that is smaller.
    """
    import torch

    nonzero = saved = 0
    for layer in prunable_layers(model):
        kept = int(torch.count_nonzero(layer.weight))
        nonzero += kept
        zeros = layer.weight.numel() - kept
        saved += max(0, zeros * layer.weight.element_size() - -(-layer.weight.numel() // 8))
    return {"elements": elements, "nonzero": nonzero, "sparse_bytes": weight_bytes - saved}


def _blocks(model: Any) -> Any:
    """The list of decoder blocks: the outermost one that is as long as the config says."""
    from torch.nn import ModuleList

    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, ModuleList) and len(module) == depth:
            return module
    raise UnsupportedError(f"prune finds no list of {depth} decoder blocks in {type(model).__name__}; use another method")


def _network(block: Any, name: str) -> tuple[list[Any], Any]:
    """The Linear layers into and out of the one feed-forward network of a decoder block."""
    found = [network for module in block.modules() for network in _networks(module)]
    _check_one(found, name)
    return found[0]


def _networks(module: Any) -> Iterator[tuple[list[Any], Any]]:
    from torch.nn import Linear

    for into, out in _FFNS:
        layers: list[Any] = [getattr(module, each, None) for each in (*into, out)]
        *ups, down = layers
        if all(isinstance(layer, Linear) for layer in layers) and all(up.out_features == down.in_features for up in ups):
            yield ups, down
            return


def _networks_by_block(architecture: Architecture) -> dict[str, list[tuple[list[str], str]]]:
    """Of each decoder block its feed-forward networks: names of the Linear layers into and out of their neurons."""
    networks: dict[str, list[tuple[list[str], str]]] = {}
    layers: dict[str, tuple[int, ...]] = {}
    for tensor in architecture.tensors:
        if block := block_of(tensor.name):
            networks.setdefault(block, [])
            if tensor.role == "linear":
                layers[tensor.name.removesuffix(".weight")] = tensor.shape
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in layers):
        for into, out in _FFNS:
            ups, down = [f"{parent}.{each}" for each in into], f"{parent}.{out}"
            if down in layers and all(up in layers and layers[up][0] == layers[down][1] for up in ups):
                networks[block_of(down)].append((ups, down))
                break
    return networks


def _kept(size: int, share: float) -> int:
    return size - round(size * share)


def _check_held(held: int, whole: int, name: str) -> None:
    if 2 * held < whole:
        raise UnsupportedError(
            f"prune works on Linear layers, and the decoder blocks of {name} keep most weights elsewhere "
            "(fused experts, Conv1D); use a method that quantizes this model as a whole"
        )


def _check_fours(rows: Iterable[int], name: str) -> None:
    for length in rows:
        if length % 4:
            raise UnsupportedError(
                f"2:4 sparsity needs rows of a multiple of four weights, and a Linear layer of {name} has rows of {length}; "
                "use unstructured-50"
            )


def _check_one(found: Sequence[object], name: str) -> None:
    if len(found) != 1:
        raise UnsupportedError(
            f"structured pruning needs one FFN of separate Linear layers (gate/up/down or fc1/fc2) in each block, and a block "
            f"of {name} has {len(found) or 'none'}; use an unstructured precision"
        )


def _uneven(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"structured pruning shrinks all FFNs alike through one figure of the config, and that of {name} has no such figure; "
        "use an unstructured precision"
    )


def _importance(ups: list[Any], down: Any) -> Any:
    """One figure per neuron: the product of the L1 norms of its rows and its column.

    The product, since a factor moved from a neuron's up row into its down column changes the product as little as it changes
    what the neuron computes; a sum would favour whichever matrix has the larger weights.
    """
    import torch

    importance = down.weight.data.abs().sum(dim=0, dtype=torch.float64)
    for layer in ups:
        importance = importance * layer.weight.data.abs().sum(dim=1, dtype=torch.float64)
    return importance
