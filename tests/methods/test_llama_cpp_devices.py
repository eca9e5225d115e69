"""Which devices llama.cpp is handed: ggml's own list stands in for GPUs that are not there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import ModelError
from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.methods import METHODS, Batched, Settings
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.llama_cpp import model as llama_cpp_model
from quantbench.runtimes.llama_cpp.batch import decode_error
from quantbench.runtimes.llama_cpp.devices import devices_for
from quantbench.runtimes.llama_cpp.facts import tensor_bytes
from quantbench.runtimes.llama_cpp.model import library, open_gguf_file, require_offload
from quantbench.runtimes.llama_cpp.probe import write_model

if TYPE_CHECKING:
    from pathlib import Path


class Call:
    """A function of a C library: prototypes may be set on it."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __call__(self, *arguments: Any) -> Any:
        return self._answer(*arguments)


class Ggml:
    """ggml with devices of these names, their pointers being 1000 and up."""

    def __init__(self, *names: bytes, cuda: bool) -> None:
        self.ggml_backend_dev_count = Call(lambda: len(names))
        self.ggml_backend_dev_get = Call(lambda index: 1000 + index)
        self.ggml_backend_dev_name = Call(lambda pointer: names[pointer - 1000])
        self.ggml_backend_reg_by_name = Call(lambda name: 1 if cuda and name == b"CUDA" else None)


TWO = Ggml(b"Vulkan0", b"CUDA0", b"CUDA1", b"CPU", cuda=True)


@pytest.mark.parametrize(
    ("device", "pointers"), [("cpu", [None]), ("cuda", [1001, 1002, None]), ("cuda:0", [1001, None]), ("cuda:1", [1002, None])]
)
def test_the_gpus_asked_for_are_handed_over_and_no_other_device(device: str, pointers: list[int | None]) -> None:
    assert list(devices_for(TWO, device)) == pointers


@pytest.mark.parametrize(
    ("ggml", "device", "words"),
    [
        (Ggml(b"CPU", cuda=False), "cuda", "this llama-cpp-python was built without CUDA; install it again with CMAKE_ARGS="),
        (Ggml(b"Vulkan0", b"CPU", cuda=False), "cuda:0", "this llama-cpp-python was built without CUDA"),
        (Ggml(b"CPU", cuda=True), "cuda", "llama.cpp sees no GPUs; ask for one of them, or look at CUDA_VISIBLE_DEVICES"),
        (TWO, "cuda:2", "llama.cpp sees 2 GPUs; ask for one of them"),
    ],
)
def test_a_gpu_that_llama_cpp_cannot_use_is_an_error_in_one_sentence(ggml: Ggml, device: str, words: str) -> None:
    with pytest.raises(ModelError) as error:
        devices_for(ggml, device)
    assert str(error.value).startswith(f"device {device!r} was asked for and {words}")


def _without_cuda() -> bool:
    return not library().llama_cpp._lib.ggml_backend_reg_by_name(b"CUDA")


def test_a_wheel_without_cuda_is_an_error_before_any_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither skipped nor run on the CPU; the refusal comes from the job that prepares files."""
    with pytest.raises(ModelError) as error:
        require_offload("cuda:99")
    if not _without_cuda():
        pytest.skip("this llama-cpp-python was built with CUDA")
    assert "CMAKE_ARGS='-DGGML_CUDA=on'" in str(error.value)
    require_offload("cpu")
    canary = Settings(checkpoint=resolve("canary"), threads=1, context=64)
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "empty"))
    spec = Spec(model="canary", variant=Variant(method="gguf", precision="q8_0"), conditions=Conditions(device="cuda"))
    prepare = METHODS["gguf"].preparer
    assert prepare
    with pytest.raises(ModelError, match="was built without CUDA"):
        prepare(spec, canary)
    assert not (tmp_path / "empty").exists()


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A model of a few hundred kB."""
    path = tmp_path / "model.gguf"
    write_model(path)
    return path


@pytest.mark.parametrize("where", ["load", "context"])
def test_memory_that_ran_out_is_told_from_a_file_that_is_damaged(
    where: str, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp logs the bytes first, and last that it failed."""
    lib = library()
    said = [
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 13000.00 MiB on device 0: cudaMalloc failed: out of memory",
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        "llama_model_load_from_file_impl: failed to load model",
    ]

    def fails(*_: Any) -> None:
        lib.quantbench_errors.extend(said)

    name = {"load": "llama_model_load_from_file", "context": "llama_init_from_model"}[where]
    with monkeypatch.context() as patch:
        patch.setattr(lib, name, fails)
        with pytest.raises(MemoryError) as error, _opened(model_file):
            raise AssertionError("it must not open")
    assert said[0] in str(error.value)
    with _opened(model_file) as model:  # and the next one is unharmed
        assert len(list(model.generate([1, 2], 3))) == 3
    model_file.write_bytes(model_file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="failed to load model"), _opened(model_file):
        raise AssertionError("it must not open")


def _opened(path: Path) -> Any:
    return open_gguf_file(path, threads=1, context=64, device="cpu", extra_buffers=False)


def test_all_layers_are_asked_of_the_gpus_and_none_of_them_for_the_cpu(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = library()
    seen: list[tuple[int, bool]] = []
    load = lib.llama_model_load_from_file

    def watch(path: bytes, params: Any) -> Any:
        seen.append((params.n_gpu_layers, bool(params.devices)))
        return load(path, params)

    monkeypatch.setattr(lib, "llama_model_load_from_file", watch)
    with _opened(model_file):
        pass
    monkeypatch.setattr(llama_cpp_model, "_devices", lambda _: devices_for(TWO, "cpu"))  # without any, to load here
    with open_gguf_file(model_file, threads=1, context=64, device="cuda", extra_buffers=False) as model:
        assert model.facts["device"] == "cpu"  # found, not asked
    assert seen == [(0, True), (-1, True)]


def test_tables_that_are_read_row_by_row_may_stay_on_the_host(tmp_path: Path) -> None:
    """GPT-2 has two of them."""
    import gguf
    import numpy as np

    path = tmp_path / "two.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    sizes = {b"token_embd.weight": 64, b"position_embd.weight": 32, b"output_norm.weight": 8}
    for name, rows in sizes.items():
        writer.add_tensor(name.decode(), np.zeros((rows, 16), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert tensor_bytes(path) == {b"token_embd.weight": 64 * 16 * 4, b"position_embd.weight": 32 * 16 * 4}


def test_memory_that_may_be_the_hosts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGML_CUDA_ENABLE_UNIFIED_MEMORY", "1")
    with pytest.raises(ModelError, match="silently moves to the host what does not fit on a GPU; unset it"):
        devices_for(TWO, "cuda")
    assert list(devices_for(TWO, "cpu")) == [None]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (["alloc_buffer: allocating 512.00 MiB on device 0: cudaMalloc failed: out of memory"], MemoryError),
        (["decode: failed to find a memory slot for batch of size 8"], ModelError),
        ([], ModelError),
    ],
)
def test_a_failed_step_is_memory_or_a_full_context(said: list[str], kind: type[Exception]) -> None:
    error = decode_error(SimpleNamespace(quantbench_errors=said), "the context is full")
    assert type(error) is kind
    assert (said[0] if kind is MemoryError else "the context is full") in str(error)


@pytest.mark.usefixtures("artifacts")
def test_a_batch_beyond_its_context_is_a_full_context() -> None:
    spec = Spec(model="canary", variant=Variant(method="gguf", precision="f16"))
    settings = Settings(checkpoint=resolve("canary"), threads=1, context=256, batch=2)
    with METHODS["gguf"].open(spec, settings) as model:
        assert isinstance(model, Batched)
        with pytest.raises(ModelError, match=r"2 sequences to position \d+; ask for a smaller batch"):
            list(model.generate_batch([[1] * 300] * 2, 2))
