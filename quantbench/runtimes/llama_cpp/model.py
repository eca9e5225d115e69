"""A GGUF model through llama.cpp's low-level calls: batch of ids in, sampler in C, logits only where they are scored."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.core.errors import ModelError
from quantbench.core.protocols import N_GPU_LAYERS, SCORE_POSITIONS, Sampling
from quantbench.core.trace import WeightMemory
from quantbench.runtimes import says_out_of_memory
from quantbench.runtimes.llama_cpp.batch import decode_error, open_batch
from quantbench.runtimes.llama_cpp.devices import devices_for
from quantbench.runtimes.llama_cpp.facts import BUFFER_LINE, FALLBACK_LINE, found_device, placed, step_counts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREFILL_BATCH = 512
"""Tokens of one batch, logical and physical: llama.cpp's own default for the latter."""

_LOG_LEVEL_ERROR = 4
_ALL_LAYERS = -1


@cache
def library() -> Any:
    """llama_cpp with its backend started and its log kept to errors."""
    import llama_cpp

    def errors_only(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        if level == _LOG_LEVEL_ERROR:
            sys.stderr.write(text.decode("utf-8", "replace"))
            llama_cpp.quantbench_error = text.decode("utf-8", "replace").strip()
            llama_cpp.quantbench_errors.append(llama_cpp.quantbench_error)
        elif FALLBACK_LINE in text:
            llama_cpp.quantbench_fallbacks.append(text.decode("utf-8", "replace"))
        elif BUFFER_LINE in text:
            llama_cpp.quantbench_buffers.append(text.decode("utf-8", "replace"))

    silent = llama_cpp.llama_log_callback(errors_only)
    llama_cpp.quantbench_error = ""
    llama_cpp.quantbench_errors = []
    llama_cpp.quantbench_buffers = []
    llama_cpp.quantbench_fallbacks = []
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.quantbench_log = silent  # the library keeps a bare pointer: the callback must outlive it
    llama_cpp.llama_backend_init()
    return llama_cpp


def require_offload(device: str) -> None:
    """Raise ModelError if a GPU is requested and llama.cpp was built without CUDA, or does not see that GPU."""
    _devices(device)


def _devices(device: str) -> Any:
    return devices_for(library().llama_cpp._lib, device)  # noqa: SLF001 - llama-cpp-python wraps no function of ggml's devices


@contextmanager
def open_gguf_file(
    path: Path, *, threads: int, context: int, device: str, extra_buffers: bool, batch: int = 1, gpu_layers: int | None = None
) -> Iterator[LlamaCppModel]:
    """Load ``path`` without memory mapping, so that its memory compares with other methods'.

    The context holds ``batch`` sequences of ``context`` tokens.
    ``extra_buffers``: let llama.cpp repack weights for AMX and wide vector units, its own default. So many ``gpu_layers``, as
    llama.cpp counts them, go to a GPU; None stands for all.

    Raises ModelError when llama.cpp cannot load the file or has no such GPU, MemoryError if there is too little memory.
    """
    lib = library()
    devices = _devices(device)
    model_params = lib.llama_model_default_params()
    model_params.load_mode = lib.LLAMA_LOAD_MODE_NONE
    model_params.use_extra_bufts = extra_buffers
    model_params.n_gpu_layers = 0 if device == "cpu" else gpu_layers or _ALL_LAYERS
    model_params.devices = ctypes.cast(devices, ctypes.c_void_p)
    lib.quantbench_buffers.clear()
    lib.quantbench_errors.clear()
    model = lib.llama_model_load_from_file(str(path).encode(), model_params)
    if not model:
        raise _refused(f"llama.cpp cannot load {path}", "make or download it again, or free memory")
    try:
        context_params = lib.llama_context_default_params()
        context_params.n_ctx = context * batch
        context_params.n_seq_max = batch
        context_params.n_batch = context_params.n_ubatch = PREFILL_BATCH
        context_params.op_offload = context_params.offload_kqv = device != "cpu"  # else a GPU build would still use the GPU
        context_params.n_threads = context_params.n_threads_batch = threads
        llama_context = lib.llama_init_from_model(model, context_params)
        if not llama_context:
            raise _refused(f"llama.cpp cannot make a context of {batch} x {context} tokens for {path}", "ask for a smaller one")
        try:
            yield LlamaCppModel(
                model, llama_context, path, lib.quantbench_buffers, extra_buffers=extra_buffers, gpu_layers=gpu_layers
            )
        finally:
            lib.llama_free(llama_context)
    finally:
        lib.llama_model_free(model)


def _refused(what: str, mend: str) -> Exception:
    """An error with llama.cpp's own words: a MemoryError if they name bytes, else a ModelError with its last error."""
    said = library().quantbench_errors
    if memory := next(filter(says_out_of_memory, said), ""):
        return MemoryError(f"{what} ({memory}); {mend}")
    return ModelError(f"{what} ({said[-1] if said else 'it gave no reason'}); {mend}")


class LlamaCppModel:
    """A LoadedModel over a llama.cpp context."""

    def __init__(
        self, model: Any, context: Any, path: Path, buffers: Sequence[str], *, extra_buffers: bool, gpu_layers: int | None
    ) -> None:
        """``model`` and ``context`` are llama.cpp's pointers, owned by the caller; ``buffers`` is its log of weight buffers."""
        self._lib = library()
        self._model = model
        self._context = context
        self._path = path
        self._buffers = tuple(buffers)
        self._suffix = "" if extra_buffers else "-plain-buffers"
        self._placed = {} if gpu_layers is None else placed(self._lib, model, gpu_layers)
        self._vocabulary = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(model))

    @property
    def facts(self) -> Mapping[str, str]:
        """Kernel class with the instruction sets llama.cpp was built for, the device, and the KV cache dtype."""
        device = found_device(self._buffers, self._path)
        places = "+".join(place.partition(":")[0] for place in device.split("+"))
        layers = f"-{self._placed[N_GPU_LAYERS]}-layers" if "cpu" in places and self._placed else ""
        return {
            "kernel": f"llama.cpp-{places}{layers}{self._suffix}",
            "device": device,
            **self._placed,
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
                    raise decode_error(lib, f"llama.cpp could not decode the next token of {self._path}; the context is full")
                token = lib.llama_sampler_sample(sampler, context, -1)
                yield token
        finally:
            lib.llama_sampler_free(sampler)

    def generate_batch(self, prompts: Sequence[Sequence[int]], limit: int) -> Iterator[Sequence[int]]:
        """See Batched. The prompts are read in slices of all of them, with as many tokens at once as for a single one."""
        width, length = len(prompts), len(prompts[0])
        piece = max(1, PREFILL_BATCH // width)
        sampler = self._sampler(None)
        try:
            with open_batch(self._lib, width * piece, width) as batch:
                self._forget()
                for start in range(0, length, piece):
                    rows = [prompt[start : start + piece] for prompt in prompts]
                    batch.decode(self._context, rows, start, last=start + piece >= length)
                for position in range(length, length + limit):
                    tokens = batch.sample(sampler, self._context)
                    yield tokens
                    if position < length + limit - 1:
                        batch.decode(self._context, [[token] for token in tokens], position, last=True)
        finally:
            self._lib.llama_sampler_free(sampler)

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See LoadedModel. The chunk is a view of llama.cpp's own buffer."""
        return self.score_sliced(tokens, first, SCORE_POSITIONS)

    def score_sliced(self, tokens: Sequence[int], first: int, positions: int) -> Iterator[NDArray[np.float32]]:
        """See Sliced."""
        import numpy as np

        self._forget()
        lib = self._lib
        ids = np.asarray(tokens, dtype=np.int32)
        wanted = (np.arange(len(ids)) >= first).astype(np.int8)
        for start in range(0, len(ids), positions):
            end = min(start + positions, len(ids))
            batch = lib.llama_batch_get_one(ids[start:end].ctypes.data_as(ctypes.POINTER(lib.llama_token)), end - start)
            batch.logits = wanted[start:end].ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
            if lib.llama_decode(self._context, batch):
                raise decode_error(lib, f"llama.cpp could not score {len(ids)} tokens with {self._path}; the context is full")
            if end > first:
                rows = end - max(start, first)
                pointer = lib.llama_get_logits(self._context)
                yield np.ctypeslib.as_array(pointer, shape=(rows * self._vocabulary,)).reshape(rows, -1)

    def memory(self) -> WeightMemory:
        """Bytes of all tensors as llama.cpp counts them."""
        counts = step_counts(self._lib, self._model, self._path)
        return WeightMemory(by_kind={"tensors": int(self._lib.llama_model_size(self._model))}, **counts)

    def synchronize(self) -> None:
        """Wait for the backend."""
        self._lib.llama_synchronize(self._context)

    def _forget(self) -> None:
        """Empty the cache without overwriting it: that would take as long as the context is, and count as prefill."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)

    def _feed(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), PREFILL_BATCH):
            chunk = tokens[start : start + PREFILL_BATCH]
            cells = (self._lib.llama_token * len(chunk))(*chunk)
            if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(cells, len(chunk))):
                full = f"llama.cpp could not read {len(tokens)} tokens with {self._path}; ask for more context"
                raise decode_error(self._lib, full)

    def _sampler(self, sampling: Sampling | None) -> Any:
        lib = self._lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if sampling is None:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        else:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(sampling.temperature))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(sampling.seed))
        return chain
