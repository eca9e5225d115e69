"""How much of a model is on the GPU where the rest stays on the host."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.protocols import N_GPU_LAYERS
from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric

_WHOLE = "no layer stays on the host unless --n-gpu-layers asks for it, of a model that llama.cpp runs on a GPU"


@metric(
    Column(
        N_GPU_LAYERS, "layers", kind="int", doc="layers on the GPU, the output layer one of them; the others are on the host",
        formula="as asked, or the most whose weights, keys and values fit in what is free beside activations and 1 GiB",
        source="llama.cpp: load_tensors in llama-model.cpp, --fit-target",
    )
)  # fmt: skip
def offload(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Layers on the GPU of a model that is partly on the host"""
    return {N_GPU_LAYERS: int(trace.facts[N_GPU_LAYERS]) if N_GPU_LAYERS in trace.facts else Missing(_WHOLE)}
