"""Rows of the tensors of a GGUF model, read where they are, and ggml's own quantization of rows."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.core.errors import ModelError
from quantbench.models.gguf import GgufHeader, GgufTensor, gguf_parts, tensor_bytes
from quantbench.runtimes.llama_cpp.model import library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Rows:
    """The tensors of a GGUF model by name, of which a few rows at a time are read: the model is never in memory as a whole."""

    def __init__(self, path: Path) -> None:
        """Read the headers of all parts; raises what ``gguf_parts`` and ``GgufHeader`` do."""
        self.tensors: dict[str, GgufTensor] = {}
        self._parts: dict[str, Path] = {}
        for part in gguf_parts(path):
            for tensor in GgufHeader(part).tensors:
                self.tensors[tensor.name] = tensor
                self._parts[tensor.name] = part

    def sample(self, name: str, most: int) -> NDArray[np.float32] | None:
        """Evenly spread rows of a tensor [rows, columns], of ``most`` values in all but at least one row.

        Two tensors of one shape give the same rows. None for a type that gguf cannot read, and for a tensor without values.
        """
        import numpy as np

        tensor = self.tensors[name]
        if not tensor.bytes:
            return None
        count = math.prod(tensor.shape[:-1])
        wanted = max(1, min(count, most // tensor.shape[-1]))
        picked = np.linspace(0, count - 1, wanted).astype(np.int64)
        stored = np.memmap(self._parts[name], np.uint8, "r", tensor.start, (count, tensor.bytes // count))
        return unpacked(np.ascontiguousarray(stored[picked]), tensor.kind)


def unpacked(rows: NDArray[np.uint8], kind: str) -> NDArray[np.float32] | None:
    """The values of rows that are stored in a type; None if gguf cannot read it."""
    import gguf
    import numpy as np

    try:
        with np.errstate(all="ignore"):  # a damaged scale may be infinite
            values: NDArray[np.float32] = gguf.dequantize(rows, gguf.GGMLQuantizationType[kind])
    except NotImplementedError:
        return None
    return values


def packed(weights: NDArray[np.float32], kind: str, importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """Rows of weights in a type, quantized by ggml as llama.cpp has it done; ``importance`` is that of the columns.

    Without one, types that need one take all columns as alike. ModelError if ggml writes other than it should.
    """
    import numpy as np
    from gguf import GGMLQuantizationType

    ggml: Any = library().llama_cpp._lib  # noqa: SLF001 - llama-cpp-python wraps no ggml_quantize_ function
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, *2 * [ctypes.c_void_p], *3 * [ctypes.c_int64], ctypes.c_void_p]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    number = int(GGMLQuantizationType[kind])
    rows, columns = weights.shape
    source = np.ascontiguousarray(weights, dtype=np.float32)
    target = np.empty((rows, tensor_bytes((columns,), kind)), dtype=np.uint8)
    if importance is None and ggml.ggml_quantize_requires_imatrix(number):
        importance = np.ones(columns, dtype=np.float32)
    weighed = None if importance is None else importance.ctypes.data
    written = ggml.ggml_quantize_chunk(number, source.ctypes.data, target.ctypes.data, 0, rows, columns, weighed)
    if written != target.size:
        raise ModelError(f"ggml wrote {written} bytes of {kind} instead of {target.size}; reinstall llama-cpp-python")
    return target
