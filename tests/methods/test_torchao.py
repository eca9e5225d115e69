"""torchao: bytes, kernels and numbers of each precision, what is refused, and checkpoints that it quantized before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.transformers import torchao as ao

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from quantbench.methods import LoadedModel

LAYERS, HIDDEN, KV, FFN, VOCABULARY = 6, 256, 128, 768, 2048
LINEAR = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * FFN)
ROWS = LAYERS * (2 * HIDDEN + 2 * KV + 2 * FFN + HIDDEN)
REST = 2 * (2 * VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN) + 2 * 16 * 4
"""Embeddings, output layer and norms in bfloat16, rotary frequencies in float32."""
GROUPS = LINEAR // 32
BYTES = {
    "int8-wo": LINEAR + (4 + 1) * ROWS + REST,  # float32 scale, int8 zero point
    "int8-dyn": LINEAR + (4 + 1) * ROWS + REST,
    "intx8-dyn": LINEAR + (2 + 1) * ROWS + REST,  # bfloat16 scale, int8 zero point
    "intx4-wo": LINEAR + (2 + 1) * GROUPS + REST,  # four bits kept in eight
}
KERNELS = {
    "int8-wo": "torchao-Int8Tensor",
    "int8-dyn": "torchao-Int8Tensor-dynamic-activations",
    "intx8-dyn": "torchao-IntxUnpackedToInt8Tensor-dynamic-activations",
    "intx4-wo": "torchao-IntxUnpackedToInt8Tensor",
}
ANYWHERE = tuple(BYTES)
PROMPT = [1, 300, 400, 500, 600, 700]
TINY_PROMPT = [1, 30, 40, 50, 60, 3]

METHOD = METHODS["torchao"]
Save = Callable[..., str]


def asked(precision: str, model: str = "canary", device: str = "cpu") -> tuple[Spec, Settings]:
    variant = Variant(method="torchao", precision=precision)
    spec = Spec(model=model, variant=variant, conditions=Conditions(device=device))
    return spec, Settings(checkpoint=resolve(model), threads=1, context=64)


def opened(precision: str, model: str = "canary") -> AbstractContextManager[LoadedModel]:
    return METHOD.open(*asked(precision, model))


def logits(model: LoadedModel, prompt: list[int]) -> np.ndarray[Any, Any]:
    return np.concatenate([chunk.copy() for chunk in model.score(prompt)])


@pytest.fixture
def saved(tmp_path: Path) -> Save:
    """A seeded random Llama (or another model) as a checkpoint folder; ``options`` go to from_pretrained and save again."""

    def save(hidden: int = 64, ffn: int = 96, **options: Any) -> str:
        from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        folder = tmp_path / f"llama-{hidden}-{ffn}"
        LlamaForCausalLM(LlamaConfig(
            vocab_size=64, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
        )).save_pretrained(folder)  # fmt: skip
        if options:
            with ao.quiet():
                AutoModelForCausalLM.from_pretrained(folder, **options).save_pretrained(folder / "quantized")
            return str(folder / "quantized")
        return str(folder)

    return save


@pytest.mark.parametrize("precision", ANYWHERE)
def test_bytes_are_the_closed_form_and_the_footprint_is_the_unquantized_models(precision: str) -> None:
    """Tensor subclasses say the shape and dtype of what they stand for, and ``get_memory_footprint()`` believes them."""
    with opened(precision) as model:
        memory, facts = model.memory(), model.facts

    assert memory.weight_bytes == BYTES[precision]
    assert memory.footprint_bytes == 2 * LINEAR + REST
    assert (facts["kernel"], facts["kv_dtype"]) == (KERNELS[precision], "bfloat16")


@pytest.mark.parametrize(
    ("precision", "group", "steps", "largest"),
    [("int8-wo", 0, 255, 127), ("int8-dyn", 0, 255, 127), ("intx8-dyn", 0, 255, 127), ("intx4-wo", 32, 15, 7)],
)
def test_weights_are_rounded_to_the_grid_that_the_name_promises(
    precision: str, group: int, steps: int, largest: int, saved: Save
) -> None:
    """Symmetric, a scale for each row or group: the largest magnitude over half the steps; numpy does it once more."""
    from safetensors.torch import load_file

    name = saved()
    before = load_file(Path(name) / "model.safetensors")
    with opened(precision, name) as loaded:
        weights = {key: each for key, each in loaded.model.named_parameters() if key.endswith("_proj.weight")}
        assert len(weights) == 14
        for key, weight in weights.items():
            exact = before[key].bfloat16().float().numpy()
            blocks = exact.reshape(len(exact), -1, group or exact.shape[1])
            scale = np.abs(blocks).max(axis=2, keepdims=True) / (steps / 2)
            values = np.clip(np.round(blocks / scale), -largest - 1, largest)
            found = weight.dequantize().float().numpy().reshape(blocks.shape)
            codes = weight.qdata.numpy().reshape(blocks.shape)

            assert (codes.min() >= -largest - 1) & (codes.max() <= largest) & (codes.max() > largest // 2)
            assert np.abs(codes - values).max() <= 1  # a scale in bfloat16 may move a value across an edge
            assert (np.abs(found - values * scale) / scale).max() < 1.6  # which is one step, and the rest bfloat16's rounding
            assert 0.2 < (np.abs(found - blocks) / scale).mean() < 0.3  # a quarter of a step


def test_dynamic_activations_change_the_numbers_of_the_same_weights(saved: Save) -> None:
    name = saved()
    with opened("int8-wo", name) as weights_only, opened("int8-dyn", name) as dynamic:
        pairs = zip(weights_only.model.parameters(), dynamic.model.parameters(), strict=True)
        same = all(torch.equal(ours.dequantize(), theirs.dequantize()) for ours, theirs in pairs if hasattr(ours, "qdata"))
        difference = np.abs(logits(weights_only, TINY_PROMPT) - logits(dynamic, TINY_PROMPT)).max()

    assert same
    assert difference > 0


@pytest.mark.parametrize("precision", ["int4-wo", "fp8"])
def test_kernels_that_need_cuda_are_refused_on_the_cpu(precision: str) -> None:
    message = rf"torchao/{precision} needs a CUDA device of compute capability 8\.[09] .* found the CPU; intx4-wo"
    with pytest.raises(UnsupportedError, match=message), opened(precision):
        pass


@pytest.mark.parametrize(
    ("precision", "capability", "refused"),
    [
        ("int4-wo", (7, 5), True), ("int4-wo", (8, 0), False), ("fp8", (8, 6), True), ("fp8", (8, 9), False),
        ("int8-wo", (5, 0), False),
    ],
)  # fmt: skip
def test_an_older_gpu_is_named(
    precision: str, capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)

    if refused:
        with pytest.raises(UnsupportedError, match=f"and found compute capability {capability[0]}.{capability[1]};"):
            ao.require_kernel(precision, "cuda:0")
    else:
        ao.require_kernel(precision, "cuda:0")


@pytest.mark.parametrize("precision", ["int4-wo", "fp8"])
def test_without_any_gpu_cuda_is_refused_too(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(UnsupportedError, match="found no CUDA device"), METHOD.open(*asked(precision, device="cuda")):
        pass


def test_the_4_bit_packing_is_the_one_that_torchs_own_kernels_read() -> None:
    """All other packings are refused by torchao without a library more, or on CUDA."""
    config = ao.base_config("int4-wo")

    assert (config.int4_packing_format, config.group_size) == ("tile_packed_to_4d", 32)


def test_rows_that_the_groups_do_not_divide_are_refused_and_rows_of_any_length_run_in_8_bits(saved: Save) -> None:
    odd = saved(hidden=48, ffn=80)
    with (
        pytest.raises(
            UnsupportedError, match=r"groups of 32 weights, .* the rows of 48 of model\.layers\.0\..*8-bit precision"
        ),
        opened("intx4-wo", odd),
    ):
        pass
    with (
        pytest.raises(UnsupportedError, match=r"rows of 80 of model\.layers\.0\.mlp\.down_proj"),
        opened("intx4-wo", saved(ffn=80)),
    ):
        pass
    linear, rows, rest = 2 * (2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 80), 2 * (3 * 48 + 2 * 24 + 2 * 80), 2 * (2 * 64 + 5) * 48
    for precision, of_row in (("int8-wo", 5), ("int8-dyn", 5), ("intx8-dyn", 3)):
        with opened(precision, odd) as model:
            assert model.facts["kernel"] == KERNELS[precision]
            assert model.memory().weight_bytes == linear + of_row * rows + rest + 2 * 6 * 4
            assert np.isfinite(logits(model, TINY_PROMPT)).all()


def test_the_silent_skip_on_cuda_is_refused_before_anything_is_loaded(saved: Save) -> None:
    """There torchao leaves such layers of int4-wo as they are, and says so in its log only."""
    with pytest.raises(UnsupportedError, match=r"torchao/int4-wo works on groups of 32 weights"):
        ao.check_layers(asked("int4-wo", saved(ffn=80))[1], "int4-wo")


def test_layers_that_were_left_are_counted_in_the_kernels_name(saved: Save) -> None:
    from transformers import AutoModelForCausalLM

    with ao.quiet():
        from torchao.quantization import quantize_
    model = AutoModelForCausalLM.from_pretrained(saved(), dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="without one quantized weight"):
        ao.weight_class(model)

    quantize_(model, ao.base_config("int8-dyn"), filter_fn=lambda _, name: name.endswith("q_proj"))
    assert ao.weight_class(model) == "Int8Tensor-dynamic-activations (12 of 14 layers left in bfloat16)"
    quantize_(model, ao.base_config("intx4-wo"), filter_fn=lambda _, name: name.endswith("k_proj"))
    assert ao.weight_class(model).startswith("Int8Tensor+IntxUnpackedToInt8Tensor-dynamic-activations (10 of 14")


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")

    with pytest.raises(UnsupportedError, match="GPT2LMHeadModel has none but its output layer"):
        METHOD.open(*asked("int8-wo", str(tmp_path / "gpt2"))).__enter__()


@pytest.mark.parametrize("precision", ANYWHERE)
def test_what_is_saved_opens_as_it_is_with_equal_logits(precision: str, saved: Save, tmp_path: Path) -> None:
    spec, settings = asked(precision, saved())
    with METHOD.open(spec, settings) as model:
        before, memory = logits(model, TINY_PROMPT), model.memory()
    assert METHOD.saver
    METHOD.saver(spec, settings, tmp_path / "out")

    again = asked(precision, str(tmp_path / "out"))
    assert again[1].checkpoint.quantized == "torchao"
    with METHOD.open(*again) as model:
        np.testing.assert_array_equal(logits(model, TINY_PROMPT), before)
        assert model.memory() == memory
        assert model.facts["kernel"] == KERNELS[precision]
        assert json.loads(model.facts["quantization"])["_type"].endswith("Config")


def test_another_precision_than_the_checkpoints_is_refused(saved: Save, tmp_path: Path) -> None:
    assert METHOD.saver
    METHOD.saver(*asked("int8-wo", saved()), tmp_path / "out")

    for other in ("int8-dyn", "intx8-dyn", "intx4-wo"):
        message = f"is quantized as torchao/int8-wo and torchao/{other} was asked for; ask for what it is"
        with pytest.raises(UnsupportedError, match=message), opened(other, str(tmp_path / "out")):
            pass


@pytest.mark.parametrize(
    ("quant_type", "name"),
    [
        ({"default": {"_type": "Float8WeightOnlyConfig", "_version": 2, "_data": {}}}, "torchao's Float8WeightOnlyConfig"),
        ("int8_weight_only", "torchao's int8_weight_only"),
        (None, "torchao's None"),
    ],
)
def test_a_configuration_that_no_precision_has_is_named(
    quant_type: str | Mapping[str, Any] | None, name: str, saved: Save, tmp_path: Path
) -> None:
    """Of these the last two are an old transformers' and a damaged one."""
    assert METHOD.saver
    METHOD.saver(*asked("int8-wo", saved()), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["quant_type"] = quant_type
    path.write_text(json.dumps(config))

    message = f"is quantized as {name} and torchao/int8-wo was asked for; give the checkpoint that it was made from"
    with pytest.raises(UnsupportedError, match=message), opened("int8-wo", str(tmp_path / "out")):
        pass


def test_a_checkpoint_of_another_group_size_opens_with_its_own_bytes(saved: Save) -> None:
    from transformers import TorchAoConfig

    with ao.quiet():
        from torchao.quantization import IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerGroup
    config = TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)))

    with opened("intx4-wo", saved(dtype=torch.bfloat16, quantization_config=config)) as model:
        linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
        assert model.memory().weight_bytes == linear + 3 * linear // 16 + 2 * (2 * 64 + 5) * 64 + 2 * 8 * 4
        assert json.loads(model.facts["quantization"])["_data"]["granularity"]["_data"] == {"group_size": 16}


EMULATED = {
    "mxfp8": ("MXTensor-dynamic-activations", LINEAR + LINEAR // 32),
    "mxfp4": ("MXTensor-dynamic-activations", LINEAR // 2 + LINEAR // 32),
    "nvfp4-wo": ("NVFP4Tensor", LINEAR // 2 + LINEAR // 16 + 4 * 7 * LAYERS),
}
"""Class and bytes: the canary's sides fill whole blocks of scales, of 128 rows and 4 groups."""


def kld(precision: str) -> float:
    from quantbench.measuring.passes.similarity import log_softmax

    tokens = [1, *range(300, 364)]
    plain = Spec(model="canary", variant=Variant(method="torch", precision="bf16"), conditions=Conditions())
    with METHODS["torch"].open(plain, asked(precision)[1]) as reference, opened(precision) as model:
        p, q = (log_softmax(logits(each, tokens)).astype(np.float64) for each in (reference, model))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("precision", EMULATED)
def test_what_is_emulated_has_its_bytes_and_its_quality_and_no_speed(precision: str) -> None:
    name, stored = EMULATED[precision]
    with opened(precision) as model:
        assert model.memory().weight_bytes == stored + REST
        assert model.facts["kernel"] == f"torchao-{name}-emulated"
        assert model.untimed.startswith(f"torchao/{precision} is emulated here")  # type: ignore[attr-defined]
    assert 0 < kld(precision) < (0.02 if precision == "mxfp8" else 0.5)


def test_hqq_finds_other_scales_for_the_same_bytes() -> None:
    with opened("intx4-hqq") as hqq, opened("intx4-wo") as plain:
        assert hqq.memory().weight_bytes == plain.memory().weight_bytes == BYTES["intx4-wo"]
        name = "model.layers.0.mlp.up_proj.weight"
        ours, theirs = (dict(each.model.named_parameters())[name] for each in (hqq, plain))  # type: ignore[attr-defined]
        assert (ours.scale != theirs.scale).any()
    assert 0 < kld("intx4-hqq") < 0.2


def test_hqq_on_a_gpu_is_int4_wo_with_other_scales() -> None:
    hqq, plain = ao.base_config("int4-hqq"), ao.base_config("int4-wo")
    assert (hqq.int4_choose_qparams_algorithm, plain.int4_choose_qparams_algorithm) == ("hqq", "tinygemm")
    assert (hqq.group_size, hqq.int4_packing_format) == (plain.group_size, plain.int4_packing_format)
