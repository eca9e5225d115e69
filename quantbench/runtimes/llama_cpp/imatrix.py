"""llama.cpp's importance matrix: the mean square of each column of the inputs to every weight matrix, on calibration text.

The columns are measured on the transformers model in float32, which runs the same arithmetic as the F16 GGUF file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.core.cache import artifact, made_by
from quantbench.core.errors import UnsupportedError
from quantbench.core.protocols import Settings
from quantbench.core.scenario import Spec
from quantbench.models.checkpoint import watched
from quantbench.models.gguf import GgufHeader, GgufTensor
from quantbench.runtimes.llama_cpp.files import f16_file
from quantbench.runtimes.transformers.calibration import LENGTH, SEQUENCES, calibration_identity, calibration_ids, device_family
from quantbench.runtimes.transformers.model import load_pretrained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MATRIX_FILE = "imatrix.npz"

_BATCH = 8
_MAKERS = (
    "quantbench.runtimes.llama_cpp.imatrix", "quantbench.runtimes.transformers.calibration",
    "quantbench.runtimes.transformers.model",
)  # fmt: skip


def importance_matrix(spec: Spec, settings: Settings) -> Path:
    """The checkpoint's importance matrix as an ``.npz`` with an array per tensor of the GGUF file, computed on first use.

    Raises UnsupportedError for a ``.gguf`` model and for matrices whose inputs transformers does not expose.
    """
    checkpoint, conditions = settings.checkpoint, spec.conditions
    if checkpoint.kind == "gguf":
        raise UnsupportedError(no_matrix(spec.variant.name, checkpoint.path))
    asked = {
        "content": checkpoint.content_hash, "calibration": calibration_identity(conditions), "seed": conditions.seed,
        "sequences": SEQUENCES, "length": LENGTH, "device": device_family(conditions.device),
        "made_by": made_by(*_MAKERS),
    }  # fmt: skip

    def make(folder: Path) -> None:
        import numpy as np

        ids = calibration_ids(spec, settings)
        source = f16_file(checkpoint)
        model = load_pretrained(settings, conditions.device, dtype="float32")
        started = time.perf_counter()
        columns = mean_squares(model, _tensor_names(model, source), ids)
        seconds = time.perf_counter() - started
        _check(columns, model, source)
        arrays: dict[str, Any] = {name: values for name, (_, values) in columns.items()}
        np.savez(folder / MATRIX_FILE, **arrays)
        (folder / "imatrix.json").write_text(json.dumps({"imatrix_s": seconds, "tokens": len(ids) * len(ids[0])}))

    return artifact("imatrix", asked, watched(checkpoint, make)) / MATRIX_FILE


def no_matrix(variant: str, path: Path) -> str:
    """Why no importance matrix can be computed for a GGUF file."""
    return (
        f"{variant} needs an importance matrix, which is computed on a checkpoint folder, and {path} is a GGUF file; "
        "give the folder it was made from"
    )


def mean_squares(
    model: Any, names: Mapping[str, str], sequences: Sequence[Sequence[int]]
) -> dict[str, tuple[str, NDArray[np.float32]]]:
    """Mean squared inputs of the modules in ``names`` by input column: from tensor name to module name and means."""
    import torch

    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}

    def watcher(name: str) -> Callable[..., None]:
        def watch(_module: Any, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, 0) + rows.square().sum(dim=0, dtype=torch.float64)
            counts[name] = counts.get(name, 0) + len(rows)

        return watch

    handles = [model.get_submodule(name).register_forward_pre_hook(watcher(name)) for name in names]
    try:
        with torch.inference_mode():
            for start in range(0, len(sequences), _BATCH):
                ids = torch.tensor(sequences[start : start + _BATCH], device=model.device)
                model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return {names[name]: (name, (total / counts[name]).float().cpu().numpy()) for name, total in sums.items()}


def _tensor_names(model: Any, source: Path) -> dict[str, str]:
    """Modules with a weight matrix inside a block, and what the GGUF file calls it.

    Output and token embedding have no entry, as in llama.cpp's own tool.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    header = GgufHeader(source)
    architecture = header.get("general.architecture")
    known = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise UnsupportedError(f"the installed gguf does not know the tensors of {architecture!r}; pip install -U gguf")
    tensors = get_tensor_name_map(known[architecture], header.get(f"{architecture}.block_count"))
    names: dict[str, str] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        found = tensors.get_name(name.replace("language_model.", "")) if getattr(weight, "ndim", 0) == 2 else None
        if found and found.startswith("blk."):
            names[name] = f"{found}.weight"
    return names


def _check(columns: Mapping[str, tuple[str, NDArray[np.float32]]], model: Any, source: Path) -> None:
    """Raise UnsupportedError unless every quantizable matrix has an entry with its own columns in its own order.

    The converter may split, merge or reorder: then the matrix of one would silently weigh the other.
    """
    for tensor in GgufHeader(source).tensors:
        if not tensor.name.startswith("blk.") or len(tensor.shape) < 2 or tensor.kind != "F16":
            continue
        name, values = columns.get(tensor.name, ("", None))
        if values is None or len(values) != tensor.shape[-1] or not _same_columns(model.get_submodule(name), source, tensor):
            raise UnsupportedError(
                f"the importance matrix of {tensor.name} cannot be computed: transformers' model has no matrix with the same "
                "columns (experts, or columns in another order); ask for a precision without one"
            )


def _same_columns(module: Any, source: Path, tensor: GgufTensor) -> bool:
    """Whether the matrices agree in each column's share of the squares; rows may be permuted, the whole may be scaled."""
    import numpy as np

    rows = 1 if type(module).__name__ == "Conv1D" else 0  # GPT-2's linear layer stores inputs first
    ours = module.weight.detach().double().square().sum(dim=rows).cpu().numpy()
    stored = np.memmap(source, np.float16, "r", tensor.start, tensor.shape)
    theirs = np.square(stored.astype(np.float32)).sum(axis=0, dtype=np.float64)
    if ours.shape != theirs.shape or not theirs.any():
        return False
    share = ours / ours.sum()
    return bool(np.allclose(share, theirs / theirs.sum(), rtol=1e-3, atol=1e-3 * share.mean()))
