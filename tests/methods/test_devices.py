"""Where torch puts a model, with GPUs that are not there: what transformers is told, and what comes of a model without room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from quantbench.core.errors import ModelError
from quantbench.core.job import FAILURE_FILE, Job, Task
from quantbench.core.scenario import Conditions, Effort, Spec, Variant
from quantbench.measuring.worker import run_job
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.runtimes import says_out_of_memory
from quantbench.runtimes.transformers.devices import gpus_of, one_place, placed, settings_on, wait_for
from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained

if TYPE_CHECKING:
    from pathlib import Path

FREE = {0: 40 * 10**9, 1: 24 * 10**9}
TINY = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=64
)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two GPUs that torch says it sees; what it was told to make current."""
    current: list[Any] = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (FREE[gpu], 80 * 10**9))
    return current


def _given(device: str) -> dict[str, Any]:
    """What transformers is told."""
    found: dict[str, Any] = {}

    def load(**where: Any) -> nn.Module:
        found.update(where)
        return nn.Module()

    placed(device, load)
    return found


def test_one_gpu_takes_the_model_whole_and_several_share_it_without_the_host(
    gpus: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _given("cpu") == {"device_map": None}
    assert gpus == []
    assert _given("cuda:1") == {"device_map": "cuda:1"}
    assert _given("cuda") == {"device_map": "auto", "max_memory": FREE}
    assert gpus == [1, 0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _given("cuda") == {"device_map": "cuda:0"}


def test_a_row_on_a_gpu_says_its_allocator_and_one_on_the_cpu_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    for place in ("cuda:1", "cuda:0+cuda:1"):
        assert settings_on(place)["allocator"] == "PYTORCH_ALLOC_CONF=expandable_segments:True (user)"
    assert settings_on("cpu") == {}


@pytest.mark.parametrize("override", ["0", "1"])
def test_a_row_on_a_gpu_says_how_float32_is_multiplied(override: str) -> None:
    """In a process of its own: torch reads the environment once, and cuBLAS's TF32 may be the user's silent choice there."""
    script = "from quantbench.runtimes.transformers.devices import settings_on\nprint(settings_on('cuda:0')['float32'])"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": override}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    told = dict(each.split("=") for each in done.stdout.split())
    assert set(told) == {"cublas", "cudnn-conv", "cudnn-rnn"}
    assert (told["cublas"] == "tf32") == (override == "1")


def test_where_torch_sees_a_gpu_the_cpu_is_named(gpus: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Told nothing, transformers' bitsandbytes takes the GPU."""
    from transformers.quantizers.auto import AutoHfQuantizer

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(load_in_4bit=True))
    assert quantizer.update_device_map(None) == {"": 0}
    assert _given("cpu") == {"device_map": "cpu"}
    assert gpus == []


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_cpu_that_is_named_is_the_same_cpu(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantbench.runtimes.transformers import devices

    spec = Spec(model="canary", variant=Variant(method="bitsandbytes", precision=precision))
    settings = Settings(checkpoint=resolve("canary"), threads=1, context=64)
    said = []
    for named in (None, "cpu"):
        monkeypatch.setattr(devices, "_arguments", lambda _, named=named: ({"device_map": named}, {}))
        with METHODS["bitsandbytes"].open(spec, settings) as model:
            said.append((model.facts, model.memory(), list(model.generate([1, 300, 301], 8))))
    assert said[0] == said[1]
    assert said[0][0]["device"] == "cpu"


def test_a_module_is_not_spread(gpus: list[Any]) -> None:
    assert [one_place(each) for each in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("count", "built", "device", "words"),
    [
        (0, None, "cuda", "was built for the CPU alone; install a build of torch for CUDA"),
        (0, "13.0", "cuda", "sees no GPUs; ask for one of them, or look at CUDA_VISIBLE_DEVICES and the driver"),
        (2, "13.0", "cuda:2", "sees 2 GPUs; ask for one of them"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_one_sentence(
    count: int, built: str | None, device: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ModelError) as error:
        gpus_of(device)
    assert str(error.value).startswith(f"device {device!r} was asked for and torch {torch.__version__} ")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("quantization", "room"),
    [(None, 10**9), (None, 60_000), (BitsAndBytesConfig(load_in_4bit=True), 8_000)],
    ids=["room", "too little", "quantized"],
)
def test_without_the_host_transformers_puts_on_the_disk_what_has_no_room(quantization: Any, room: int) -> None:
    """What ``placed`` relies on: nothing goes to the host, and what is left over shows."""
    from transformers.integrations.accelerate import _get_device_map
    from transformers.quantizers.auto import AutoHfQuantizer

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(TINY)
    quantizer = AutoHfQuantizer.from_config(quantization) if quantization else None
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    asked = {0: room, 1: room}
    assert weights > 100_000
    if quantizer:
        with pytest.raises(ValueError, match="dispatched on the CPU or the disk"):
            _get_device_map(model, "auto", asked, quantizer)
        return
    places = set(_get_device_map(model, "auto", asked, None).values())
    assert places == ({0, 1} if room > weights else {0, 1, "disk"})  # never "cpu", which would be a slow row


def _spread(left: int) -> nn.Module:
    """A model of 1000 float32 weights, ``left`` of them on the disk and the rest on what says that it is a GPU."""

    class OnGpu(nn.Parameter):
        device = torch.device("cuda:0")  # type: ignore[assignment]

    model = nn.Module()
    model.near = OnGpu(torch.zeros(1000 - left))
    if left:
        model.far = nn.Parameter(torch.zeros(left, device="meta"))
    return model


def test_weights_without_room_on_the_gpus_are_out_of_memory_and_no_slow_row(gpus: list[Any]) -> None:
    whole = _spread(0)
    assert placed("cuda", lambda **_: whole) is whole
    with pytest.raises(MemoryError) as error:
        placed("cuda", lambda **_: _spread(250))
    assert str(error.value) == (
        "out of memory: 1 kB of 4 kB of weights have no room on cuda:0 (40 GB free) and cuda:1 (24 GB free), "
        "beside what a layer needs to run; use fewer bits, or more GPUs"
    )


@pytest.mark.parametrize(
    "said",
    [
        "Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM",
        "You are attempting to perform disk offload with a pre-quantized torchao model",
        "The current `device_map` had weights offloaded to the disk, which needed to be re-saved.",
    ],
)
def test_a_quantizer_that_refuses_such_a_map_is_out_of_memory_too(said: str, gpus: list[Any]) -> None:
    def load(**_: Any) -> Any:
        raise ValueError(said)

    with pytest.raises(MemoryError, match=r"^out of memory: some of the weights have no room on cuda:0 \(40 GB free\) and"):
        placed("cuda", load)
    with pytest.raises(ValueError, match="something else"):
        placed("cuda", partial(_fail, ValueError("something else")))


def _fail(error: Exception, **_: Any) -> Any:
    raise error


def test_what_transformers_swallows_while_it_converts_weights_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It collects the errors of its quantizers, and raises one that only points to a report that nobody printed."""
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB")
    monkeypatch.setattr(Bnb4bitQuantize, "convert", lambda *_, **__: _fail(error))
    Job(
        kind="measure", checkpoint=resolve("canary"), variant=Variant(method="bitsandbytes", precision="nf4"),
        conditions=Conditions(threads=1, output_tokens=2, answer_tokens=2, continuation_tokens=2), effort=Effort(),
        tasks=(Task(prompts_name="one", prompts=("a prompt",), reference=None),),
    ).save(tmp_path)  # fmt: skip
    assert run_job(tmp_path) == 1
    failure = json.loads((tmp_path / FAILURE_FILE).read_text())
    assert failure["status"] == "oom"
    assert failure["reason"].startswith("transformers could not convert the weights: ")
    assert "CUDA out of memory. Tried to allocate 2.00 GiB" in failure["reason"]


def test_other_errors_of_the_conversion_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize

    monkeypatch.setattr(Bnb4bitQuantize, "convert", lambda *_, **__: _fail(ValueError("blocks of 63 are too odd")))
    spec = Spec(model="canary", variant=Variant(method="bitsandbytes", precision="nf4"))
    settings = Settings(checkpoint=resolve("canary"), threads=1, context=64)
    with pytest.raises(ModelError) as error, METHODS["bitsandbytes"].open(spec, settings):
        raise AssertionError("it must not be loaded")
    assert str(error.value) == "transformers could not convert the weights: blocks of 63 are too odd"


def test_every_gpu_in_use_is_waited_for_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    model = TransformersModel(AutoModelForCausalLM.from_config(TINY), "test")
    model.synchronize()
    assert waited == []
    monkeypatch.setattr("quantbench.runtimes.transformers.model.found_device", lambda _: "cuda:0+cuda:3")
    spread = TransformersModel(model.model, "test")
    spread.synchronize()
    spread.synchronize()
    assert waited == ["cuda:0", "cuda:3"] * 2
    waited.clear()
    wait_for(())
    assert waited == []


def test_a_model_whose_parts_are_dispatched_answers_as_it_did() -> None:
    """What accelerate hangs on a model that it spreads moves inputs and leaves the cache: here every part is on the CPU."""
    from accelerate import dispatch_model

    settings = Settings(checkpoint=resolve("canary"), threads=1, context=64)
    model = TransformersModel(load_pretrained(settings, "cpu", dtype="float32"), "test")
    prompt = [1, 5, 9, 13]
    said, scored = list(model.generate(prompt, 8)), next(model.score(prompt))
    parts = dict.fromkeys(("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    spread = TransformersModel(
        dispatch_model(model.model, parts, force_hooks=True, skip_keys=model.model._skip_keys_device_placement), "test"
    )
    assert hasattr(spread.model.model.layers[0], "_hf_hook")
    assert list(spread.generate(prompt, 8)) == said
    assert (next(spread.score(prompt)) == scored).all()


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB.",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
        "cudaErrorMemoryAllocation: out of memory",
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        "Error out of memory at line 380 in file csrc/ops.cu",
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9.00 MiB on device 0: cudaMalloc failed: out of memory",
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
    ],
)
def test_what_libraries_say_when_memory_ran_out_is_known(text: str) -> None:
    assert says_out_of_memory(text)


def test_other_failures_are_not_taken_for_it() -> None:
    for text in ("CUDA error: invalid device ordinal", "no kernel image is available", "CUBLAS_STATUS_NOT_INITIALIZED", ""):
        assert not says_out_of_memory(text)
