"""A GGUF model through llama.cpp's low-level calls: batch of ids in, sampler in C, logits only where they are scored."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.errors import ModelError, UnsupportedError
from quantbench.methods import Sampling
from quantbench.trace import WeightMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREFILL_BATCH = 512
"""Tokens of one prefill batch, llama.cpp's own default for its physical batch."""

_SCORE_LOGIT_BYTES = 64 * 2**20
_LOG_LEVEL_ERROR = 4
_ALL_LAYERS = 999


@cache
def library() -> Any:
    """llama_cpp with its backend started and its log kept to errors."""
    import llama_cpp

    def errors_only(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        if level == _LOG_LEVEL_ERROR:
            sys.stderr.write(text.decode("utf-8", "replace"))
            llama_cpp.quantbench_error = text.decode("utf-8", "replace").strip()

    silent = llama_cpp.llama_log_callback(errors_only)
    llama_cpp.quantbench_error = ""
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.quantbench_log = silent  # the library keeps a bare pointer: the callback must outlive it
    llama_cpp.llama_backend_init()
    return llama_cpp


def require_offload(device: str) -> None:
    """Raise UnsupportedError when a GPU is asked of a build of llama.cpp without one, which would run on the CPU instead."""
    if device != "cpu" and not library().llama_supports_gpu_offload():
        raise UnsupportedError(
            f"device {device!r} was asked for and this llama-cpp-python was built without GPU support; "
            "rebuild it with CMAKE_ARGS='-DGGML_CUDA=on'"
        )


@contextmanager
def open_gguf_file(path: Path, *, threads: int, context: int, device: str, extra_buffers: bool) -> Iterator[LlamaCppModel]:
    """Load ``path`` without memory mapping, so that its memory compares with other methods'.

    ``extra_buffers``: let llama.cpp repack weights for AMX and wide vector units, its own default.

    Raises ModelError when llama.cpp cannot load the file, UnsupportedError when a GPU is asked of a build without one.
    """
    lib = library()
    require_offload(device)
    kernel = f"llama.cpp-{device}" + ("" if extra_buffers else "-plain-buffers")
    model_params = lib.llama_model_default_params()
    model_params.use_mmap = False
    model_params.use_extra_bufts = extra_buffers
    model_params.n_gpu_layers = 0 if device == "cpu" else _ALL_LAYERS
    model = lib.llama_model_load_from_file(str(path).encode(), model_params)
    if not model:
        raise ModelError(_refusal(f"llama.cpp cannot load {path}", "make or download it again, or free memory"))
    try:
        context_params = lib.llama_context_default_params()
        context_params.n_ctx = context
        context_params.n_batch = PREFILL_BATCH
        context_params.n_threads = context_params.n_threads_batch = threads
        llama_context = lib.llama_init_from_model(model, context_params)
        if not llama_context:
            raise ModelError(
                _refusal(f"llama.cpp cannot make a context of {context} tokens for {path}", "ask for a shorter one")
            )
        try:
            yield LlamaCppModel(model, llama_context, path, kernel)
        finally:
            lib.llama_free(llama_context)
    finally:
        lib.llama_model_free(model)


def _refusal(what: str, mend: str) -> str:
    """One sentence with llama.cpp's own last error, which tells a damaged file from memory that ran out."""
    return f"{what} ({library().quantbench_error or 'it gave no reason'}); {mend}"


class LlamaCppModel:
    """A LoadedModel over a llama.cpp context."""

    def __init__(self, model: Any, context: Any, path: Path, kernel: str) -> None:
        """``model`` and ``context`` are llama.cpp's pointers, owned by the caller."""
        self._lib = library()
        self._model = model
        self._context = context
        self._path = path
        self._kernel = kernel
        self._vocabulary = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(model))

    @property
    def facts(self) -> Mapping[str, str]:
        """Kernel class with the instruction sets llama.cpp was built for, and the KV cache dtype."""
        return {
            "kernel": self._kernel,
            "kv_dtype": "float16",
            "llama_cpp_system": self._lib.llama_print_system_info().decode(),
        }

    def generate(self, prompt: Sequence[int], limit: int, sampling: Sampling | None = None) -> Iterator[int]:
        """See LoadedModel. Sampling happens in llama.cpp; one id a step crosses into Python."""
        lib, context = self._lib, self._context
        sampler = self._sampler(sampling)
        try:
            self._forget()
            self._feed(prompt)
            token = lib.llama_sampler_sample(sampler, context, -1)
            yield token
            cell = (lib.llama_token * 1)()
            batch = lib.llama_batch_get_one(cell, 1)
            for _ in range(limit - 1):
                cell[0] = token
                if lib.llama_decode(context, batch):
                    raise ModelError(f"llama.cpp could not decode the next token of {self._path}; the context is full")
                token = lib.llama_sampler_sample(sampler, context, -1)
                yield token
        finally:
            lib.llama_sampler_free(sampler)

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See LoadedModel. The chunk is a view of llama.cpp's own buffer."""
        import numpy as np

        self._forget()
        if first:
            self._feed(tokens[:first])
        step = max(1, min(PREFILL_BATCH, _SCORE_LOGIT_BYTES // (4 * self._vocabulary)))
        batch = self._lib.llama_batch_init(step, 0, 1)
        try:
            for start in range(first, len(tokens), step):
                chunk = tokens[start : start + step]
                batch.n_tokens = len(chunk)
                for offset, token in enumerate(chunk):
                    batch.token[offset] = token
                    batch.pos[offset] = start + offset
                    batch.n_seq_id[offset] = 1
                    batch.seq_id[offset][0] = 0
                    batch.logits[offset] = True
                if self._lib.llama_decode(self._context, batch):
                    raise ModelError(f"llama.cpp could not score {len(tokens)} tokens with {self._path}; the context is full")
                pointer = self._lib.llama_get_logits(self._context)
                yield np.ctypeslib.as_array(pointer, shape=(len(chunk) * self._vocabulary,)).reshape(len(chunk), -1)
        finally:
            self._lib.llama_batch_free(batch)

    def memory(self) -> WeightMemory:
        """Bytes of all tensors as llama.cpp counts them."""
        return WeightMemory(by_kind={"tensors": int(self._lib.llama_model_size(self._model))})

    def synchronize(self) -> None:
        """Wait for the backend."""
        self._lib.llama_synchronize(self._context)

    def _forget(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _feed(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), PREFILL_BATCH):
            chunk = tokens[start : start + PREFILL_BATCH]
            cells = (self._lib.llama_token * len(chunk))(*chunk)
            if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(cells, len(chunk))):
                raise ModelError(f"llama.cpp could not read {len(tokens)} tokens with {self._path}; ask for more context")

    def _sampler(self, sampling: Sampling | None) -> Any:
        lib = self._lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if sampling is None:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        else:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(sampling.temperature))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(sampling.seed))
        return chain
