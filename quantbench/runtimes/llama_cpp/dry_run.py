"""llama.cpp's dry run of a quantization, in a child process because a failed assertion in llama.cpp ends the process."""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantbench.core import children
from quantbench.core.errors import ModelError, QuantbenchError, UnsupportedError
from quantbench.models.gguf import GgufHeader, all_tensors, tensor_bytes
from quantbench.runtimes.llama_cpp.facts import fallen_back
from quantbench.runtimes.llama_cpp.tensors import TypedTensor, architecture_of, converted, fallback

_HEADER, _OTHER = "header.gguf", "other.json"
_SHARES = 2

_EPSILON = 1e-5
"""llama.cpp requires one in the header; no type depends on it."""

_TENSOR_LINE = re.compile(r"^\[[ \d/]+\] (\S+) .*, type = +(\w+), [^(\n]*(?:\((\w+)\))?$", re.MULTILINE)


def write_header(path: Path, request: Mapping[str, Any], tensors: Sequence[TypedTensor]) -> None:
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


class DryRun:
    """llama.cpp's quantization of one source file to one type after another, without reading a weight or writing one."""

    def __init__(self, source: Path) -> None:
        """Redirect llama.cpp's log, the only place that names the types."""
        from quantbench.runtimes.llama_cpp.model import library

        self._source = str(source).encode()
        self._lib = library()
        self._lines: list[bytes] = []
        self.fallen_back: set[str] = set()
        self._silent = self._lib.llama_log_callback(self._log)  # the library keeps a bare pointer
        self._lib.llama_log_set(self._silent, ctypes.c_void_p(0))

    def _log(self, _level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        self._lines.append(text)

    def types(self, precision: str, *, matrix: bool) -> dict[str, str]:
        """The type that each tensor gets in a file of ``precision``, with an importance matrix or without."""
        from quantbench.runtimes.llama_cpp.files import NO_FALLBACK, file_type, matrix_array, refused_type

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
            if NO_FALLBACK in last:
                raise UnsupportedError(refused_type(precision, last))
            raise UnsupportedError(f"llama.cpp's dry run of {precision} failed ({last}); use another precision")
        text = log.decode("utf-8", "replace")
        self.fallen_back = fallen_back(text)
        return {name: after or before for name, before, after in _TENSOR_LINE.findall(text)}


Told = dict[str, Any]
"""What is reported of a file: ``bytes`` of its tensors, or their ``types`` in order, and its ``fallback``."""


def tell(source: Path, tensors: Sequence[TypedTensor], request: Mapping[str, Any], folder: Path) -> dict[str, Told | str]:
    """What each requested quantized file holds, or why there is none. Given a second core, a fork takes every other one."""
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
        os.kill(os.getpid(), -code)  # whatever ended the fork would have ended this process too
    found |= json.loads(other.read_text())
    other.unlink()
    return found


def _share(
    source: Path, tensors: Sequence[TypedTensor], request: Mapping[str, Any], wanted: Sequence[tuple[str, str, bool]]
) -> dict[str, Told | str]:
    run = DryRun(source)
    found: dict[str, Told | str] = {}
    for precision, kind, matrix in wanted:
        try:
            types = quantized(run, tensors, kind, matrix=matrix, model=request.get("source", "the model"))
        except UnsupportedError as error:
            found[precision] = str(error)
        else:
            found[precision] = _told(types, request, run.fallen_back)
    return found


def _told(tensors: Sequence[TypedTensor], request: Mapping[str, Any], fallen: Collection[str] = ()) -> Told:
    """The tensors' bytes, or their types if those are wanted; and what fell back."""
    sizes = [(name, tensor_bytes(shape, kind), kind) for name, shape, kind in tensors]
    told = {"types": [kind for _, _, kind in sizes]} if request.get("types") else {"bytes": sum(size for _, size, _ in sizes)}
    return {**told, "fallback": fallback(sizes, fallen)}


def quantized(run: DryRun, tensors: Sequence[TypedTensor], kind: str, *, matrix: bool, model: object) -> list[TypedTensor]:
    """The tensors with the types that they have in a file of type ``kind``.

    Raises UnsupportedError if llama.cpp refuses their shapes, or does not report all types. Messages name ``model``.
    """
    from quantbench.runtimes.llama_cpp.files import require_experts

    require_experts(model, (len(shape) for _, shape, _ in tensors), kind)
    types = run.types(kind, matrix=matrix)
    if types.keys() != {name for name, _, _ in tensors}:
        raise UnsupportedError(f"llama.cpp told the types of {len(types)} tensors of {len(tensors)} in its dry run")
    return [(name, shape, types[name].upper()) for name, shape, _ in tensors]


def unquantized(tensors: Sequence[TypedTensor], precision: str) -> list[TypedTensor]:
    """The tensors in a file that the converter writes itself: matrices in the requested type, the rest in float32."""
    return [(name, shape, "F32" if kind == "F32" else precision.upper()) for name, shape, kind in tensors]


def describe(path: Path) -> dict[str, Any]:
    """What a GGUF file's header says: architecture, tensors with types, precision, and whether a matrix was used."""
    from quantbench.runtimes.llama_cpp.files import notes_matrix

    tensors = all_tensors(path)
    header = GgufHeader(path)
    architecture = header.get("general.architecture")
    if architecture is None:
        raise ModelError(f"{path} names no architecture in its header; make or download it again")
    return {
        "architecture": architecture,
        "metadata": {key: header.get(key) for key in header if key.startswith(f"{architecture}.")},
        "tensors": [[tensor.name, list(tensor.shape), tensor.kind] for tensor in tensors],
        "bytes": sum(tensor.bytes for tensor in tensors),
        "precision": header.precision,
        "matrix": notes_matrix(header),
    }


def answer(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer to a request: a file described, or what files made from it or from an architecture would hold."""
    folder = Path(request["folder"])
    if "describe" in request:
        return describe(Path(request["describe"]))
    if "source" in request:
        tensors = request["tensors"]
        return {"files": tell(Path(request["source"]), tensors, request, folder), "count": len(tensors)}
    tensors = converted(request)
    header = folder / _HEADER
    try:
        write_header(header, request, tensors)
        written = {precision: _told(unquantized(tensors, precision), request) for precision in request["written"]}
        named = {"tensors": [[name, shape] for name, shape, _ in tensors]} if request.get("types") else {}
        return {"files": written | tell(header, tensors, request, folder), "count": len(tensors), **named}
    finally:
        header.unlink(missing_ok=True)


def answer_or_refuse(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same; a refusal is an answer too, and is kept."""
    try:
        return answer(request)
    except QuantbenchError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    children.answer(answer_or_refuse)
