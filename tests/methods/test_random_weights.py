"""A dummy's weights: seeded, alike on any run, one tensor in memory at a time, and none left out."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from quantbench.core.errors import ModelError
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Scenario, Spec, Variant
from quantbench.methods import METHODS, Settings, qat
from quantbench.models import dummy as dummies
from quantbench.models.architecture import FAMILIES
from quantbench.models.checkpoint import count_parameters, resolve
from quantbench.models.dummy import read_shapes, write_shapes
from quantbench.planning.outlook import Outlooks
from quantbench.runtimes.transformers import random_weights
from quantbench.runtimes.transformers.random_weights import POOL, NormalValues, load_random

BASE: Mapping[str, Any] = {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**BASE, "tie_word_embeddings": False},
    "qwen2": {**BASE, "tie_word_embeddings": True},
    "mixtral": {**BASE, "num_local_experts": 4},
    "bloom": {"vocab_size": 2048, "hidden_size": 128, "n_layer": 2, "n_head": 4},
    "deepseek_v3": {
        **BASE, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 64,
        "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
        "num_key_value_heads": 4, "first_k_dense_replace": 1,
    },
}  # fmt: skip
IDS = [1, 300, 400, 5]
PLANNED = [
    ("llama", each)
    for each in (
        "torch/fp32", "torch/bf16", "torch/fp16", "torch-dynamic/int8", "bitsandbytes/int8", "bitsandbytes/nf4",
        "bitsandbytes/nf4-dq", "torchao/int8-wo", "torchao/int8-dyn", "torchao/intx4-wo", "qat/int4", "prune/structured-25",
    )
] + [
    (family, each)
    for family in ("qwen2", "mixtral")
    for each in ("torch/fp32", "torch/bf16", "bitsandbytes/nf4", "torchao/int8-wo")
]  # fmt: skip


def _here(_module: str, request: list[str], _source: object) -> None:
    """The work of the process that describes a dummy."""
    write_shapes(Path(request[0]), request[1])


@pytest.fixture(autouse=True)
def _one_cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each dummy is described once a session, in this process."""
    monkeypatch.setenv("QUANTBENCH_CACHE", str(shared_cache))
    monkeypatch.setattr(dummies, "call_transformers", _here)


@pytest.fixture
def dummy(tmp_path: Path) -> Callable[..., Checkpoint]:
    """The dummy of a family."""

    def make(family: str, **changes: Any) -> Checkpoint:
        path = tmp_path / f"{family}.json"
        path.write_text(json.dumps({"model_type": family, **CONFIGS[family], **changes}))
        return resolve(f"dummy:{path}")

    return make


def asked(checkpoint: Checkpoint, variant: str, threads: int = 1) -> tuple[Spec, Settings]:
    method, precision = variant.split("/")
    spec = Spec(model=checkpoint.name, variant=Variant(method=method, precision=precision))
    return spec, Settings(checkpoint=checkpoint, threads=threads, context=64)


def opened(checkpoint: Checkpoint, variant: str, threads: int = 1) -> Any:
    return METHODS[variant.partition("/")[0]].open(*asked(checkpoint, variant, threads))


def logits(model: Any) -> torch.Tensor:
    return torch.cat([torch.from_numpy(each.copy()) for each in model.score(IDS)])


def test_matrices_are_normal_norms_ones_and_biases_zeros(dummy: Callable[..., Checkpoint]) -> None:
    checkpoint = dummy("qwen2", initializer_range=0.05)
    with opened(checkpoint, "torch/fp32") as model:
        tensors = {name: each.detach() for name, each in model.model.named_parameters()}
    assert {name: tuple(each.shape) for name, each in tensors.items()} == read_shapes(checkpoint.path)
    assert sum(each.numel() for each in tensors.values()) == count_parameters(checkpoint)
    seen = {"norm": 0, "bias": 0, "matrix": 0}
    for name, tensor in tensors.items():
        kind = "norm" if "norm" in name else "bias" if name.endswith("bias") else "matrix"
        seen[kind] += 1
        if kind == "matrix":
            assert float(tensor.std()) == pytest.approx(0.05, rel=0.03), name
            assert abs(float(tensor.mean())) < 2e-3, name
        else:
            assert (tensor == (1 if kind == "norm" else 0)).all(), name
    assert seen == {"norm": 2 * 2 + 1, "bias": 2 * 3, "matrix": 2 * 7 + 1}


def test_no_two_tensors_are_alike_or_share_memory(dummy: Callable[..., Checkpoint]) -> None:
    with opened(dummy("llama"), "torch/bf16") as model:
        tensors = list(model.model.parameters())
    assert len({each.untyped_storage().data_ptr() for each in tensors}) == len(tensors)
    drawn = [each.detach().flatten()[:2048].float() for each in tensors if each.dim() > 1]
    assert float((torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))).abs().max()) < 0.15


def test_any_dtype_holds_the_same_values_which_bfloat16_can(dummy: Callable[..., Checkpoint]) -> None:
    checkpoint = dummy("llama")
    with opened(checkpoint, "torch/bf16") as half, opened(checkpoint, "torch/fp32") as single:
        for (name, one), other in zip(half.model.named_parameters(), single.model.parameters(), strict=True):
            assert (one.dtype, other.dtype) == (torch.bfloat16, torch.float32)
            assert torch.equal(one.float(), other), name


@pytest.mark.parametrize("variant", ["torch/fp32", "bitsandbytes/nf4"])
def test_two_loads_are_equal_whatever_the_threads(variant: str, dummy: Callable[..., Checkpoint]) -> None:
    checkpoint = dummy("llama")
    with opened(checkpoint, variant) as model:
        weights = [each.clone() for each in model.model.parameters()]  # before the first forward, which may repack them
        first = logits(model)
    with opened(checkpoint, variant) as model:
        assert torch.equal(logits(model), first)
    with opened(checkpoint, variant, threads=2) as model:
        assert all(torch.equal(*pair) for pair in zip(model.model.parameters(), weights, strict=True))
    torch.set_num_threads(1)


def test_values_follow_from_name_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str) -> torch.Tensor:
        return NormalValues(0.02).make(name, (64, 64), "cpu", torch.bfloat16)

    first = made("a.weight")
    place = 15649375  # crc32 of the name, modulo the pool: Python's own hash is another one in each process
    assert torch.equal(first.flatten(), random_weights.draw_pool(0.02)[place : place + 64 * 64])
    assert torch.equal(made("a.weight"), first)
    assert not torch.equal(made("b.weight"), first)
    monkeypatch.setattr(random_weights, "SEED", 1)
    assert not torch.equal(made("a.weight"), first)


def test_rows_of_a_matrix_larger_than_the_pool_differ() -> None:
    """The pool begins again inside such a matrix; were a whole number of rows to fit it, tokens would be each other's twins."""
    columns = 4096
    made = NormalValues(0.02).make("embedding.weight", (POOL // columns + 200, columns), "cpu", torch.bfloat16)
    again = POOL // columns
    for shift in (again, again + 1):
        assert float((made[shift : shift + 100] == made[:100]).float().mean()) < 0.1


@pytest.mark.parametrize(("family", "variant"), PLANNED)
def test_weights_take_what_was_planned(family: str, variant: str, dummy: Callable[..., Checkpoint]) -> None:
    checkpoint = dummy(family)
    scenario = Scenario(model=checkpoint.name, variant=asked(checkpoint, variant)[0].variant, prompts="two")
    with opened(checkpoint, variant) as model:
        assert model.memory().weight_bytes == Outlooks().by_files(scenario, checkpoint).weight_bytes


def test_an_architecture_that_only_transformers_knows(dummy: Callable[..., Checkpoint]) -> None:
    assert "bloom" not in FAMILIES
    checkpoint = dummy("bloom")
    for variant in ("torch/bf16", "bitsandbytes/nf4", "torchao/int8-wo"):
        with opened(checkpoint, variant) as model:
            assert logits(model).isfinite().all(), variant


def test_saved_buffers_are_what_the_architecture_makes_them(dummy: Callable[..., Checkpoint]) -> None:
    with opened(dummy("deepseek_v3"), "torch/bf16") as model:
        saved = set(model.model.state_dict()) - {name for name, _ in model.model.named_parameters()}
        assert saved == {"model.layers.1.mlp.gate.e_score_correction_bias"}
        assert all((model.model.state_dict()[name] == 0).all() for name in saved)
        assert logits(model).isfinite().all()


def test_a_quantized_layer_is_never_there_twice(dummy: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    """Storages of bfloat16 that live at once, counted whenever one is made: what stays so, and one layer."""
    from torch.multiprocessing.reductions import StorageWeakRef

    made: list[tuple[StorageWeakRef, int]] = []
    peaks: list[int] = []
    make = NormalValues.make

    def counted(self: NormalValues, name: str, *rest: Any) -> torch.Tensor:
        tensor = make(self, name, *rest)
        storage = tensor.untyped_storage()
        made.append((StorageWeakRef(storage), storage.nbytes()))
        peaks.append(sum(size for each, size in made if not each.expired()))
        return tensor

    monkeypatch.setattr(NormalValues, "make", counted)
    checkpoint = dummy("llama", num_hidden_layers=8)
    with opened(checkpoint, "bitsandbytes/nf4") as model:
        left = sum(each.nbytes for each in model.model.parameters() if each.dtype == torch.bfloat16)
    layer = 2 * BASE["hidden_size"] * BASE["intermediate_size"]
    total = 2 * count_parameters(checkpoint)
    assert sum(size for _, size in made) == total
    assert left < max(peaks) <= left + layer < 0.6 * total


@pytest.mark.parametrize(("variant", "noted"), [("bitsandbytes/int8", True), ("bitsandbytes/nf4", False)])
def test_the_row_of_llm_int8_says_that_random_weights_flatter_it(
    variant: str, noted: bool, dummy: Callable[..., Checkpoint]
) -> None:
    with opened(dummy("llama"), variant) as model:
        assert model.facts.get("note", "").startswith("speeds are an upper bound") is noted


def test_the_pool_is_let_go(dummy: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where transformers keeps what it was given."""
    drawn: list[weakref.ref[torch.Tensor]] = []
    kept: list[object] = []
    draw, make = random_weights.draw_pool, NormalValues.make

    def remembered(spread: float) -> torch.Tensor:
        pool: torch.Tensor = draw(spread)
        drawn.append(weakref.ref(pool))
        return pool

    def keeping(self: NormalValues, *rest: Any) -> torch.Tensor:
        kept.append(self)
        return make(self, *rest)

    monkeypatch.setattr(random_weights, "draw_pool", remembered)
    monkeypatch.setattr(NormalValues, "make", keeping)
    model = load_random(dummy("llama"), dtype="float32")
    gc.collect()
    assert len(drawn) == 1
    assert kept
    assert drawn[0]() is None
    assert next(model.parameters()).isfinite().all()


@pytest.mark.parametrize("change", ["one less", "one more"])
def test_a_parameter_that_was_left_out_is_an_error(
    change: str, dummy: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of itself transformers only warns, and initializes what it was not given."""
    checkpoint = dummy("llama")
    shapes = read_shapes(checkpoint.path)
    if change == "one less":
        shapes.pop(name := "model.layers.1.mlp.up_proj.weight")
    else:
        shapes[name := "model.layers.7.mlp.up_proj.weight"] = (4, 4)
    monkeypatch.setattr(random_weights, "read_shapes", lambda _: shapes)
    with pytest.raises(ModelError, match=rf"left 1 of the {len(shapes)} tensors of dummy:.* weights \({name} first\)"):
        load_random(checkpoint, dtype="float32")


@pytest.mark.parametrize(
    ("family", "layer"),
    [("llama", "model.layers.0.mlp.up_proj.weight"), ("mixtral", "model.layers.0.block_sparse_moe.experts.3.w1.weight")],
)
def test_it_can_be_saved_as_a_checkpoint_like_those_of_its_family(
    family: str, layer: str, dummy: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    """Under the names of published checkpoints; plain transformers loads the same model."""
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    checkpoint = dummy(family)
    saver = METHODS["torch"].saver
    assert saver
    saver(*asked(checkpoint, "torch/bf16"), tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        assert layer in file.keys()  # noqa: SIM118 - it is no mapping
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    with opened(checkpoint, "torch/bf16") as model:
        assert all(torch.equal(*pair) for pair in zip(plain.parameters(), model.model.parameters(), strict=True))
        with torch.inference_mode():
            assert torch.equal(plain(torch.tensor([IDS])).logits[0].float(), logits(model))


def test_it_is_not_trained_but_quantized_alike(dummy: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> None:
        raise AssertionError("random weights were trained on their own noise")

    monkeypatch.setattr(qat, "distill", train)
    checkpoint = dummy("llama")
    preparer = METHODS["qat"].preparer
    assert preparer
    made = preparer(*asked(checkpoint, "qat/int4"))
    assert (made.file_bytes, made.quantize_s, made.quantized) == (None, None, False)
    with opened(checkpoint, "qat/int4") as model, opened(checkpoint, "torchao/intx4-wo") as same:
        assert torch.equal(logits(model), logits(same))
        assert "qat_losses" not in model.facts


def test_it_can_be_pruned(dummy: Callable[..., Checkpoint]) -> None:
    """Of that a checkpoint is written, which then is loaded as any."""
    checkpoint = dummy("llama")
    preparer = METHODS["prune"].preparer
    assert preparer
    made = preparer(*asked(checkpoint, "prune/unstructured-50"))
    assert made.file_bytes is not None
    assert made.file_bytes > 2 * count_parameters(checkpoint)
    with opened(checkpoint, "prune/unstructured-50") as model:
        memory = model.memory()
    assert memory.nonzero is not None
    assert memory.nonzero / memory.elements == pytest.approx(0.5, abs=0.01)


@pytest.mark.gpu
def test_on_a_gpu_it_is_made_there_quantized_layer_by_layer_and_nothing_else_stays() -> None:
    """A model of 2.2 GB in bfloat16, in a process of its own; its values are those that the CPU makes."""
    script = """
import json
import torch
from quantbench.methods import METHODS, Settings
from quantbench.runtimes.transformers.random_weights import NormalValues
from quantbench.models.checkpoint import count_parameters, resolve
from quantbench.core.scenario import Conditions, Spec, Variant
checkpoint = resolve("dummy:tinyllama-1.1b")
made = [NormalValues(0.02).make("a.weight", (5000, 4096), device, torch.bfloat16) for device in ("cpu", "cuda:0")]
alike = torch.equal(made[0], made[1].cpu())
del made
torch.cuda.empty_cache()
torch.cuda.reset_peak_memory_stats(0)
variant = Variant(method="bitsandbytes", precision="nf4")
spec = Spec(model=checkpoint.name, variant=variant, conditions=Conditions(device="cuda:0"))
with METHODS["bitsandbytes"].open(spec, Settings(checkpoint=checkpoint, threads=2, context=64)) as model:
    told = {
        "alike": alike, "device": model.facts["device"], "bf16": 2 * count_parameters(checkpoint),
        "peak": torch.cuda.max_memory_allocated(0), "kept": torch.cuda.memory_allocated(0),
        "weights": model.memory().weight_bytes,
    }
print(json.dumps(told))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["alike"], told["device"]) == (True, "cuda:0")
    assert told["peak"] < 0.6 * told["bf16"]
    assert told["weights"] <= told["kept"] < told["weights"] + POOL  # the pool takes two bytes a value
