"""llama.cpp's dry run of a quantization in a process of its own, since an assertion of llama.cpp ends the process.

``python -m quantbench.methods._gguf_dry_run FOLDER`` reads ``request.json`` in FOLDER and leaves ``result.json`` there.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from quantbench.errors import ModelError, QuantbenchError, UnsupportedError

REQUEST, RESULT = "request.json", "result.json"
_HEADER, _OTHER = "header.gguf", "other.json"
_SHARES = 2

_ALIASES = {
    "mistral": "llama", "mixtral": "llama", "phi": "phi2", "gemma3_text": "gemma3", "cohere": "command-r",
}  # fmt: skip
"""Model types of transformers that gguf calls otherwise."""

_LLAMA_CONVERTER = frozenset(("llama", "arcee", "llama-embed", "smollm3", "apertus"))
"""Architectures whose converter is Llama's or derived from it: it writes the factors of Llama 3's rotary scaling."""

_ALWAYS_FLOAT32 = ("FFN_GATE_INP", "FFN_GATE_INP_SHEXP", "POS_EMBD", "TOKEN_TYPES")
"""Matrices that the converter leaves in float32."""

_EPSILON = 1e-5
"""llama.cpp wants one in the header; no type depends on it."""

_TENSOR_LINE = re.compile(r"^\[[ \d/]+\] (\S+) .*, type = +(\w+), [^(\n]*(?:\((\w+)\))?$", re.MULTILINE)

Tensor = tuple[str, Sequence[int], str]
"""A tensor's GGUF name, its shape as torch has it, and its type."""


def architecture_of(model_type: str) -> Any:
    """What gguf calls the architecture of a model type of transformers, from its own enumeration."""
    import gguf

    wanted = _plain(_ALIASES.get(model_type, model_type))
    for architecture, name in gguf.MODEL_ARCH_NAMES.items():
        if _plain(name) == wanted:
            return architecture
    raise UnsupportedError(f"llama.cpp has no architecture for model type {model_type!r}; ask for torch")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]", "", name)


def converted(request: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of the F16 file that llama.cpp's converter makes of an architecture."""
    import gguf

    architecture = architecture_of(request["model_type"])
    names = gguf.get_tensor_name_map(architecture, len(request["kv_heads"]))
    found = []
    for name, shape, role in request["tensors"]:
        for part, extent in _parts(name, shape, role):
            mapped = names.get_type_and_name(part.replace("language_model.", ""), try_suffixes=(".weight", ".bias"))
            if not mapped:
                raise UnsupportedError(
                    f"gguf {request['versions']['gguf']} has no name for tensor {part} of model type {request['model_type']!r}"
                )
            kind, target = mapped
            full = len(extent) < 2 or target.endswith("_norm.weight") or not target.endswith(".weight")
            always = kind.name in _ALWAYS_FLOAT32
            found.append((target, extent, "F32" if full or always else "F16"))
    return found + list(_rotary(request, gguf.MODEL_ARCH_NAMES[architecture]))


def _parts(name: str, shape: Sequence[int], role: str) -> Iterator[tuple[str, Sequence[int]]]:
    """What the converter makes of one tensor of transformers: GPT-2's are transposed, experts' fused ones taken apart."""
    if role == "conv1d":
        yield name, shape[::-1]
    elif role == "experts" and name.endswith("gate_up_proj"):
        for half in ("gate_proj", "up_proj"):
            yield f"{name.removesuffix('gate_up_proj')}{half}.weight", (shape[0], shape[1] // 2, shape[2])
    elif role == "experts" and not name.endswith(".weight"):
        yield f"{name}.weight", shape
    else:
        yield name, shape


def _rotary(request: Mapping[str, Any], architecture: str) -> Iterator[Tensor]:
    """Factors that the converter writes for scaled rotary positions, one for each pair of a head's values."""
    rotary = request["rotary"]
    if architecture in _LLAMA_CONVERTER and str(rotary.get("rope_type", rotary.get("type"))).lower() == "llama3":
        yield "rope_freqs.weight", (request["head_dim"] // 2,), "F32"
    if architecture in ("phi3", "phimoe") and rotary.get("long_factor"):
        for length in ("long", "short"):
            yield f"rope_factors_{length}.weight", (len(rotary[f"{length}_factor"]),), "F32"


def write_header(path: Path, request: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    """A GGUF file of ``tensors`` with everything but their values: a hole of their size, which takes no room on disk.

    Its metadata are those that llama.cpp reads before it looks at a tensor; it has no vocabulary.
    """
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture_of(request["model_type"])])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(request["context"])
    writer.add_embedding_length(request["width"])
    writer.add_block_count(len(request["kv_heads"]))
    writer.add_feed_forward_length(request["inner_width"])
    writer.add_vocab_size(request["vocabulary"])
    writer.add_head_count(request["heads"])
    writer.add_head_count_kv(request["kv_heads"])
    writer.add_key_length(request["head_dim"])
    writer.add_value_length(request["head_dim"])
    writer.add_layer_norm_eps(_EPSILON)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_parallel_residual(use=True)
    writer.add_logit_scale(1.0)
    writer.add_sliding_window(request["window"])
    if experts := max((shape[0] for _, shape, _ in tensors if len(shape) > 2), default=0):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(1)
    size = 0
    for name, shape, kind in tensors:
        count = tensor_bytes(shape, kind)
        writer.add_tensor_info(name, shape, np.dtype(np.float16), count, raw_dtype=gguf.GGMLQuantizationType[kind])
        size += writer.ggml_pad(count, writer.data_alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, writer.ggml_pad(path.stat().st_size, writer.data_alignment) + size)


def tensor_bytes(shape: Sequence[int], kind: str) -> int:
    """Bytes of a tensor of a type, from gguf's own table; the last dimension is the row."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return math.prod(shape) // int(block) * int(size)


class DryRun:
    """llama.cpp's quantization of one source file to one type after another, without reading a weight or writing one."""

    def __init__(self, source: Path) -> None:
        """Take llama.cpp's log over: it is where the types are told."""
        from quantbench.methods._llama_cpp import library

        self._source = str(source).encode()
        self._lib = library()
        self._lines: list[bytes] = []
        self._silent = self._lib.llama_log_callback(self._log)  # the library keeps a bare pointer
        self._lib.llama_log_set(self._silent, ctypes.c_void_p(0))

    def _log(self, _level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        self._lines.append(text)

    def types(self, precision: str, *, matrix: bool) -> dict[str, str]:
        """The type that each tensor gets in a file of ``precision``, with an importance matrix or without."""
        from quantbench.methods._gguf_files import file_type, matrix_array

        params = self._lib.llama_model_quantize_default_params()
        params.ftype = file_type(precision)
        params.dry_run = True
        params.nthread = 1
        if matrix:
            params.imatrix = matrix_array(self._lib, {})  # the types depend on whether there is one, not on what is in it
        self._lines.clear()
        failed = self._lib.llama_model_quantize(self._source, b"", params)
        log = b"".join(self._lines)
        if failed:
            last = (log.strip().splitlines() or [b"it gave no reason"])[-1].decode("utf-8", "replace")
            raise UnsupportedError(f"llama.cpp cannot tell the types of {precision} ({last})")
        return {name: after or before for name, before, after in _TENSOR_LINE.findall(log.decode())}


def sizes(source: Path, tensors: Sequence[Tensor], request: Mapping[str, Any], folder: Path) -> dict[str, int | str]:
    """Tensor bytes of each file asked for, or why there is none. A fork takes every other one where there is a second core."""
    import gguf  # noqa: F401 - before the fork, so that it is imported once
    import llama_cpp  # noqa: F401

    wanted = request["quantized"]
    if not hasattr(os, "fork") or (os.cpu_count() or 1) < _SHARES:
        return _share(source, tensors, request, wanted)
    other = folder / _OTHER
    forked = os.fork()
    if not forked:
        other.write_text(json.dumps(_share(source, tensors, request, wanted[1::_SHARES])))
        os._exit(0)
    found = _share(source, tensors, request, wanted[::_SHARES])
    code = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
    if code < 0:
        os.kill(os.getpid(), -code)  # what ended the fork would have ended this process
    found |= json.loads(other.read_text())
    other.unlink()
    return found


def _share(
    source: Path, tensors: Sequence[Tensor], request: Mapping[str, Any], wanted: Sequence[tuple[str, str, bool]]
) -> dict[str, int | str]:
    from quantbench.methods._gguf_files import check_shapes

    model = request.get("source", "the model")
    run = DryRun(source)
    shapes = {name: shape for name, shape, _ in tensors}
    rows = [(name, shape[-1], len(shape)) for name, shape in shapes.items()]
    bytes_of = cache(lambda name, kind: tensor_bytes(shapes[name], kind.upper()))
    found: dict[str, int | str] = {}
    for precision, kind, matrix in wanted:
        try:
            check_shapes(model, rows, kind)
            types = run.types(kind, matrix=matrix)
        except UnsupportedError as error:
            found[precision] = str(error)
            continue
        all_told = types.keys() == shapes.keys()
        found[precision] = (
            sum(bytes_of(name, told) for name, told in types.items())
            if all_told
            else f"llama.cpp told the types of {len(types)} tensors of {len(shapes)} in its dry run"
        )
    return found


def plain_sizes(tensors: Sequence[Tensor], request: Mapping[str, Any]) -> dict[str, int | str]:
    """Tensor bytes of the files that the converter writes itself: matrices in the type asked for, the rest in float32."""
    return {
        precision: sum(tensor_bytes(shape, "F32" if kind == "F32" else precision.upper()) for _, shape, kind in tensors)
        for precision in request["written"]
    }


def describe(path: Path) -> dict[str, Any]:
    """What a GGUF file's header says: metadata of its architecture, tensors with their types, precision, matrix or none."""
    from quantbench.methods._gguf_files import named_precision, notes_matrix, read_gguf
    from quantbench.models._gguf import gguf_parts

    readers = [read_gguf(part) for part in gguf_parts(path)]
    first = readers[0]
    named = first.get_field("general.architecture")
    if named is None:
        raise ModelError(f"{path} names no architecture in its header; make or download it again")
    architecture = str(named.contents())
    wanted = [name for name in first.fields if name.startswith(f"{architecture}.")]
    return {
        "architecture": architecture,
        "metadata": {name: first.fields[name].contents() for name in wanted},
        "tensors": [
            [tensor.name, [int(size) for size in reversed(tensor.shape)], tensor.tensor_type.name]
            for reader in readers
            for tensor in reader.tensors
        ],
        "bytes": sum(int(tensor.n_bytes) for reader in readers for tensor in reader.tensors),
        "precision": named_precision(first),
        "matrix": notes_matrix(first),
    }


def answer(request: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """What is asked for: a file's description, or the sizes of the files that can be made of it or of an architecture."""
    if "describe" in request:
        return describe(Path(request["describe"]))
    if "source" in request:
        return {"sizes": sizes(Path(request["source"]), request["tensors"], request, folder)}
    tensors = converted(request)
    header = folder / _HEADER
    try:
        write_header(header, request, tensors)
        return {"sizes": plain_sizes(tensors, request) | sizes(header, tensors, request, folder)}
    finally:
        header.unlink(missing_ok=True)


def main() -> None:
    """Answer the request in the folder named on the command line."""
    folder = Path(sys.argv[1])
    try:
        result = answer(json.loads((folder / REQUEST).read_text()), folder)
    except QuantbenchError as error:
        result = {"error": str(error)}
    (folder / RESULT).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
