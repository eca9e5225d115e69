"""How many layers go to a GPU where not all of them fit; the boards are made up, the sizes are read by gguf's own reader."""

from __future__ import annotations

import shutil
from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

from quantbench.core.errors import ModelError, UnsupportedError, UsageError
from quantbench.core.scenario import Conditions, Scenario, Spec, Variant
from quantbench.measuring.anchor import choose
from quantbench.measuring.subjects import check_device
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.planning.planner import device_here, room_here
from quantbench.runtimes.llama_cpp import model as llama_cpp_model
from quantbench.runtimes.llama_cpp import plan
from quantbench.runtimes.llama_cpp.files import quantized_file
from quantbench.runtimes.llama_cpp.model import library, open_gguf_file
from quantbench.runtimes.llama_cpp.offload import MARGIN_BYTES, gpu_layers, layers_within
from quantbench.runtimes.llama_cpp.probe import write_model

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.conftest import FakeNvml

WIDTH, ROWS, BLOCKS, CONTEXT = 256, 512, 3, 300
CELLS = 512
"""CONTEXT in steps of 256, as llama.cpp rounds it up."""
KV_BYTES = 2 * WIDTH * CELLS * 2
"""Keys and values of a block: as many heads of each as of queries, in float16."""
AUTO = Conditions(device="cuda:0", n_gpu_layers="auto")
MOST_ACTIVATIONS = 4 * CELLS * (8 * WIDTH + ROWS + CELLS)
"""Above what lives at once in so small a model, in float32."""


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def uneven(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model whose blocks are of different types, and so of different sizes."""
    path = tmp_path / "uneven.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(ROWS)
    kinds = [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q4_0]
    named = {"token_embd": (ROWS, kinds[1]), **({} if request.param else {"output": (ROWS, kinds[0])})}
    for block, kind in enumerate(kinds):
        named |= {f"blk.{block}.{name}": (WIDTH, kind) for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down")}
    for name, (rows, kind) in named.items():
        writer.add_tensor(
            f"{name}.weight", gguf.quants.quantize(np.zeros((rows, WIDTH), dtype=np.float32), kind), raw_dtype=kind
        )
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def moved(path: Path, layers: int) -> int:
    """Bytes that so many layers have on the GPU: the output layer first, then blocks from the last."""
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    head = sizes.get("output.weight", sizes["token_embd.weight"]) + sizes["output_norm.weight"]
    blocks = [sum(size for name, size in sizes.items() if name.startswith(f"blk.{block}.")) for block in range(BLOCKS)]
    return head + sum(blocks[BLOCKS + 1 - layers :]) + (layers - 1) * KV_BYTES


@pytest.mark.parametrize("layers", range(1, BLOCKS + 2))
def test_as_many_layers_as_fit_and_not_one_byte_less_is_enough(layers: int, uneven: Path) -> None:
    spare = least(uneven, 1) - _room(uneven, 1, 0)  # what is left free beside the layers themselves is found from the first one
    largest = max(int(tensor.n_bytes) for tensor in gguf.GGUFReader(uneven).tensors)
    assert largest < spare < MOST_ACTIVATIONS  # a copied weight and the activations
    assert least(uneven, layers) == _room(uneven, layers, spare)


def least(path: Path, layers: int) -> int:
    """The fewest free bytes within which so many layers fit."""
    room = range(MARGIN_BYTES, MARGIN_BYTES + 2**24)
    return room[bisect_left(room, layers, key=lambda free: layers_within(path, [free], context=CONTEXT, batch=1))]


def _room(path: Path, layers: int, spare: int) -> int:
    return MARGIN_BYTES + spare + moved(path, layers)


def test_longer_contexts_and_more_sequences_leave_room_for_fewer_layers(uneven: Path) -> None:
    room = least(uneven, BLOCKS + 1)
    assert layers_within(uneven, [room], context=CONTEXT, batch=4) < BLOCKS + 1
    assert layers_within(uneven, [room], context=16 * CONTEXT, batch=1) < BLOCKS + 1


def test_several_gpus_hold_more_than_one_and_no_more_than_their_sum(uneven: Path) -> None:
    alone = MARGIN_BYTES + 2**21
    one = layers_within(uneven, [alone], context=CONTEXT, batch=1)
    assert layers_within(uneven, [alone, alone], context=CONTEXT, batch=1) <= BLOCKS + 1
    two = layers_within(uneven, [4 * alone, 4 * alone], context=CONTEXT, batch=1)
    assert one < two == BLOCKS + 1
    assert layers_within(uneven, [MARGIN_BYTES, MARGIN_BYTES], context=CONTEXT, batch=1) == 0


def test_what_is_free_on_the_board_that_was_asked_for_counts(uneven: Path, nvml: FakeNvml) -> None:
    first, second = nvml.boards.values()
    first.used, second.used = 80 * 2**30 - least(uneven, 2), 0
    assert gpu_layers(uneven, AUTO, context=CONTEXT) == 2
    assert gpu_layers(uneven, replace(AUTO, device="cuda:1"), context=CONTEXT) == BLOCKS + 1
    assert gpu_layers(uneven, replace(AUTO, n_gpu_layers="7"), context=CONTEXT) == 7
    assert gpu_layers(uneven, replace(AUTO, n_gpu_layers=""), context=CONTEXT) is None
    first.used = 80 * 2**30 - 10**9
    with pytest.raises(UnsupportedError, match=r"^not one layer of uneven\.gguf fits on cuda:0, which has 1 GB free; free "):
        gpu_layers(uneven, AUTO, context=CONTEXT)
    nvml.refuses["nvmlDeviceGetMemoryInfo"] = "Not Supported"
    with pytest.raises(UnsupportedError, match=r"how many layers fit on cuda:0 is not known \(Not Supported\); give"):
        gpu_layers(uneven, AUTO, context=CONTEXT)


def test_the_header_is_read_before_loading_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's first reading takes a process, which would count as loading."""
    copy = tmp_path / "never-read.gguf"
    shutil.copyfile(quantized_file(resolve("canary"), "q8_0").path, copy)
    spec = Spec(model=str(copy), variant=Variant(method="gguf", precision="q8_0"), conditions=AUTO)
    monkeypatch.setattr(llama_cpp_model, "_devices", lambda _: None)  # whatever is here
    settings = Settings(checkpoint=resolve(str(copy)), threads=1, context=64)
    assert METHODS["gguf"].prepare(spec, settings).path == copy
    monkeypatch.setattr(plan, "call", lambda *_, **__: pytest.fail("a process was started"))
    assert plan.header(copy)["precision"] == "q8_0"


def test_llama_cpp_is_asked_for_so_many_and_the_row_says_how_many_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    write_model(path)  # one block, so two layers
    lib, seen = library(), []
    load = lib.llama_model_load_from_file

    def watch(name: bytes, params: Any) -> Any:
        seen.append(params.n_gpu_layers)
        return load(name, params)

    monkeypatch.setattr(lib, "llama_model_load_from_file", watch)
    devices = llama_cpp_model._devices("cpu")
    monkeypatch.setattr(llama_cpp_model, "_devices", lambda _: devices)  # none, to load here
    facts = []
    for asked in (1, 99):
        opened = open_gguf_file(path, threads=1, context=64, device="cuda", extra_buffers=False, gpu_layers=asked)
        with opened as model:
            facts.append(model.facts)
    assert seen == [1, 99]
    assert [each["n_gpu_layers"] for each in facts] == ["1", "2"]
    assert facts[0]["kernel"] == "llama.cpp-cpu-1-layers-plain-buffers"  # another kernel, so that runs are not compared blindly
    with open_gguf_file(path, threads=1, context=64, device="cpu", extra_buffers=False) as model:
        assert "n_gpu_layers" not in model.facts


def test_a_part_on_the_host_is_accepted_only_where_it_was_asked_for() -> None:
    split = {"device": "cpu+cuda:0"}
    check_device("cuda:0", {**split, "n_gpu_layers": "20"}, "gguf/q4_k_m")
    with pytest.raises(ModelError, match="weights of gguf/q4_k_m are on cpu and cuda:0"):
        check_device("cuda:0", split, "gguf/q4_k_m")
    with pytest.raises(ModelError, match="weights of gguf/q4_k_m are on cpu;"):
        check_device("cuda:0", {"device": "cpu", "n_gpu_layers": "20"}, "gguf/q4_k_m")


@pytest.mark.parametrize("asked", ["0", "-1", "most", "1.5", "9" * 5000])
def test_no_number_of_layers_is_refused_in_one_sentence(asked: str) -> None:
    with pytest.raises(UsageError, match=r"^n_gpu_layers is .*; give a whole number from 1 on, or 'auto' for all that fit$"):
        Conditions(device="cuda", n_gpu_layers=asked)
    with pytest.raises(UsageError, match=r"^n_gpu_layers is '3', and the device is cpu; name a GPU, or leave it out$"):
        Conditions(n_gpu_layers="3")


def test_only_what_llama_cpp_runs_has_it_in_its_key() -> None:
    for name, differs in {"gguf": True, "torch": False}.items():
        precision = {"gguf": "q8_0", "torch": "bf16"}[name]
        spec = Spec(model="canary", variant=Variant(method=name, precision=precision), conditions=AUTO)
        plain = replace(spec, conditions=Conditions(device="cuda:0"))
        keys = {
            Scenario(model="canary", variant=each.variant, prompts="two", conditions=each.conditions).key(
                METHODS[name].recipe(each)
            )
            for each in (spec, plain)
        }
        assert len(keys) == 1 + differs
    served = replace(AUTO, server="llama-server/q8_0")
    as_served = Spec(model="canary", variant=Variant(method="server", precision="as-served"), conditions=served)
    assert METHODS["server"].recipe(as_served)["n_gpu_layers"] == "auto"


def test_what_exceeds_the_gpu_may_fill_the_host_too_where_layers_may_stay_there(nvml: FakeNvml) -> None:
    assert nvml.boards
    gpu, host = device_here("cuda:0"), device_here("cpu")
    assert gpu
    assert host
    room = room_here(AUTO, "gguf")
    assert room
    assert room.memory_bytes == gpu.memory_bytes + host.memory_bytes
    assert room.name == "NVIDIA H100 80GB HBM3 with this machine"
    assert room_here(AUTO, "torch") == gpu == room_here(Conditions(device="cuda:0"), "gguf")


@pytest.mark.usefixtures("artifacts")
def test_the_anchor_is_all_on_the_gpu_whatever_the_variant_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_model, "_devices", lambda _: None)
    spec = Spec(model="canary", variant=Variant(method="gguf", precision="q8_0"), conditions=AUTO)
    anchor = choose(spec, Settings(checkpoint=resolve("canary"), threads=1, context=64))
    assert anchor
    assert anchor.spec.conditions == replace(AUTO, n_gpu_layers="")
