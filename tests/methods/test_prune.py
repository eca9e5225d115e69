"""Pruning: which weights go, what is left of the model, and what its bytes come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from quantbench.core.errors import MissingDependency, UnsupportedError
from quantbench.core.scenario import Spec, Variant
from quantbench.core.trace import WeightMemory
from quantbench.methods import METHODS, Artifact, Settings, prune
from quantbench.models.checkpoint import checkpoint_dtype, resolve
from quantbench.runtimes.transformers import pruning
from quantbench.runtimes.transformers.model import bytes_by_kind

LAYERS, HIDDEN, KV, FFN, VOCABULARY = 6, 256, 128, 768, 2048
ATTENTION = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV)
LINEAR = ATTENTION + LAYERS * 3 * HIDDEN * FFN
REST = 2 * VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN
ROTARY = 2 * 16 * 4
IDS = torch.arange(1, 33).unsqueeze(0)

METHOD = METHODS["prune"]
Tensors = Mapping[str, torch.Tensor]
MakeModel = Callable[[], Any]


def asked(precision: str, model: str = "canary") -> tuple[Spec, Settings]:
    spec = Spec(model=model, variant=Variant(method="prune", precision=precision))
    return spec, Settings(checkpoint=resolve(model), threads=1, context=64)


def prepared(precision: str, model: str = "canary") -> Artifact:
    assert METHOD.preparer
    return METHOD.preparer(*asked(precision, model))


def memory(precision: str, model: str = "canary") -> WeightMemory:
    with METHOD.open(*asked(precision, model)) as loaded:
        return loaded.memory()


def before_and_after(precision: str) -> tuple[Tensors, Tensors]:
    """The canary's tensors, and those of its pruned checkpoint."""
    return load_file(resolve("canary").path / "model.safetensors"), load_file(prepared(precision).path / "model.safetensors")


def prunable(tensors: Iterable[str]) -> list[str]:
    return [name for name in tensors if name.endswith("_proj.weight")]


def llama() -> Any:
    """A random Llama whose FFN has no round number of neurons."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=24, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    ))  # fmt: skip


def opt() -> Any:
    """A random OPT: fc1 and fc2 with biases, directly in the layer."""
    from transformers import OPTConfig, OPTForCausalLM

    model = OPTForCausalLM(OPTConfig(
        vocab_size=64, hidden_size=24, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        word_embed_proj_dim=24, bos_token_id=1, eos_token_id=2, pad_token_id=0, init_std=0.2,
    ))  # fmt: skip
    for layer in model.model.decoder.layers:
        nn.init.normal_(layer.fc1.bias)
    return model


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=24, n_layer=1, n_head=4, n_positions=64))


def phi3() -> Any:
    from transformers import Phi3Config, Phi3ForCausalLM

    return Phi3ForCausalLM(Phi3Config(
        vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip


@pytest.fixture(autouse=True)
def _one_cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pruned checkpoint is made once a session."""
    monkeypatch.setenv("QUANTBENCH_CACHE", str(shared_cache))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[MakeModel], str]:
    """A seeded random model as a checkpoint folder."""

    def save(make: MakeModel) -> str:
        torch.manual_seed(0)
        folder = tmp_path / make.__name__
        make().save_pretrained(folder)
        return str(folder)

    return save


@pytest.mark.parametrize(("precision", "share"), [("unstructured-30", 0.3), ("unstructured-50", 0.5), ("unstructured-70", 0.7)])
def test_the_share_asked_for_is_zero_and_the_bytes_are_the_closed_form(precision: str, share: float) -> None:
    """Dense bytes stay those of float32; sparse, each value left takes four bytes and each weight one bit."""
    gone = round(share * LINEAR)

    found = memory(precision)

    assert (found.elements, found.nonzero) == (LINEAR, LINEAR - gone)
    assert found.weight_bytes == 4 * (LINEAR + REST) + ROTARY
    assert found.sparse_bytes == 4 * (LINEAR - gone + REST) + LINEAR // 8 + ROTARY


def test_one_threshold_holds_for_all_layers() -> None:
    before, after = before_and_after("unstructured-50")
    gone = [before[name][after[name] == 0].abs().max() for name in prunable(before)]
    kept = [before[name][after[name] != 0].abs().min() for name in prunable(before)]
    shares = [(after[name] == 0).float().mean() for name in prunable(before)]

    assert max(gone) <= min(kept)
    assert max(shares) > 1.2 * min(shares)  # not the same share of every layer
    for name, tensor in before.items():
        left = after[name] != 0 if name in prunable(before) else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(after[name][left], tensor[left])


def test_of_every_four_neighbours_the_two_largest_are_left() -> None:
    before, after = before_and_after("2-4")

    for name in prunable(before):
        groups, left = before[name].view(-1, 4).abs(), after[name].view(-1, 4)
        assert torch.equal((left != 0).sum(dim=1), torch.full((len(left),), 2))
        assert torch.equal(left.abs().sort(dim=1).values[:, 2:], groups.sort(dim=1).values[:, 2:])
        assert torch.equal(left[left != 0], before[name].view(-1, 4)[left != 0])
    found = memory("2-4")
    assert (found.elements, found.nonzero) == (LINEAR, LINEAR // 2)
    assert found.sparse_bytes == 4 * (LINEAR // 2 + REST) + LINEAR // 8 + ROTARY


def test_rows_that_are_no_multiple_of_four_are_refused(saved: Callable[[MakeModel], str]) -> None:
    with pytest.raises(UnsupportedError, match=r"2:4 sparsity needs rows of a multiple of four weights, .* has rows of 50"):
        prepared("2-4", saved(llama))


@pytest.mark.parametrize(("precision", "left"), [("structured-25", 576), ("structured-50", 384)])
def test_removed_neurons_count_as_zeros_and_take_no_bytes(precision: str, left: int) -> None:
    """The share is of the original's weights; what has no zeros is no smaller when stored sparse."""
    linear = ATTENTION + LAYERS * 3 * HIDDEN * left

    found = memory(precision)

    assert (found.elements, found.nonzero) == (LINEAR, linear)
    assert found.weight_bytes == found.sparse_bytes == 4 * (linear + REST) + ROTARY


@pytest.mark.parametrize(
    ("precision", "left"),
    [("structured-25+int8", 576), ("structured-50+int8", 384), ("unstructured-50+int8", 768), ("structured-25+nf4", 576)],
)
def test_compositions_are_what_bitsandbytes_makes_of_the_pruned_model(precision: str, left: int) -> None:
    """INT8 with a float32 scale a row; NF4 with one for 64 weights and a code book a layer."""
    linear = ATTENTION + LAYERS * 3 * HIDDEN * left
    rows = LAYERS * (2 * HIDDEN + 2 * KV + 2 * left + HIDDEN)

    packed = linear + 4 * rows if precision.endswith("int8") else linear // 2 + 4 * linear // 64 + 16 * 4 * 7 * LAYERS

    found = memory(precision)

    assert found.weight_bytes == packed + 2 * REST + ROTARY
    assert (found.elements, found.nonzero, found.sparse_bytes) == (None, None, None)
    assert prepared(precision) == replace(prepared(precision.partition("+")[0]), quantized=False)


@pytest.mark.parametrize(
    ("make", "precision", "size", "left"),
    [(llama, "structured-25", 50, 38), (llama, "structured-50", 50, 25), (opt, "structured-25", 40, 30)],
)
def test_the_shrunk_model_is_the_original_without_those_neurons(
    make: MakeModel, precision: str, size: int, left: int, saved: Callable[[MakeModel], str]
) -> None:
    """Plain transformers loads it, and it computes what the original computes with the least neurons' outputs at zero."""
    from transformers import AutoModelForCausalLM

    name = saved(make)
    original = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    shrunk = AutoModelForCausalLM.from_pretrained(prepared(precision, name).path, dtype=torch.float32).eval()
    for before, after in zip(ffns(original), ffns(shrunk), strict=True):
        kept = torch.tensor([any(torch.equal(row, other) for other in after[0].weight) for row in before[0].weight])
        weights = [layer.weight.abs().sum(dim=1) for layer in before[:-1]] + [before[-1].weight.abs().sum(dim=0)]
        importance = torch.stack(weights).prod(dim=0)
        assert importance[kept].min() >= importance[~kept].max()
        assert [layer.weight.shape[0] for layer in after[:-1]] == [left] * len(after[:-1])
        assert len(kept) == size
        with torch.no_grad():
            before[-1].weight[:, ~kept] = 0

    with torch.inference_mode():
        whole = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()(IDS).logits
        expected, found = original(IDS).logits, shrunk(IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (whole - found).abs().max() > 0.01  # the neurons did something


def ffns(model: Any) -> list[list[nn.Linear]]:
    if hasattr(model.model, "decoder"):
        return [[layer.fc1, layer.fc2] for layer in model.model.decoder.layers]
    return [[layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj] for layer in model.model.layers]


def test_a_model_without_linear_layers_in_its_blocks_is_refused(saved: Callable[[MakeModel], str]) -> None:
    with pytest.raises(UnsupportedError, match=r"decoder blocks of GPT2LMHeadModel keep most weights elsewhere"):
        prepared("unstructured-50", saved(gpt2))


def test_a_fused_ffn_is_pruned_by_value_but_not_by_neuron(saved: Callable[[MakeModel], str]) -> None:
    name = saved(phi3)

    with pytest.raises(UnsupportedError, match=r"a block of Phi3ForCausalLM has none; use an unstructured precision"):
        prepared("structured-25", name)
    found = memory("unstructured-50", name)
    assert (found.nonzero, found.elements) == (2592, 5184)  # 24 x (3 x 24 + 24) of attention, 24 x 40 x 3 of the FFN


def test_the_artifact_keeps_the_checkpoints_dtype_and_is_made_once() -> None:
    first, again = prepared("structured-50"), prepared("structured-50")

    assert checkpoint_dtype(first.path) == checkpoint_dtype(resolve("canary").path) == "bf16"
    assert first == again
    assert first.quantize_s is not None
    assert first.quantize_s > 0
    assert first.file_bytes == (first.path / "model.safetensors").stat().st_size > 2 * (LINEAR + REST) * 0.6


def test_pruned_and_composed_checkpoints_can_be_saved_and_loaded(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert METHOD.saver
    for precision in ("structured-25", "structured-25+int8"):
        out = tmp_path / precision
        out.mkdir()
        METHOD.saver(*asked(precision), out)

        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.config.intermediate_size == 576
        assert not list(out.glob("prune.json"))
        assert resolve(str(out)).quantized == ("bitsandbytes" if "+" in precision else "")


def test_a_composition_without_bitsandbytes_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS["bitsandbytes"], "requires", ("no_such_module",))

    with pytest.raises(MissingDependency, match=r"needs no_such_module, not installed; pip install .*\[bitsandbytes\]"):
        prepared("structured-25+int8")
    assert prepared("structured-25").file_bytes > 0


class Blocks(nn.Module):
    """One decoder block of two Linear layers, three by three."""

    def __init__(self, *weights: torch.Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=1))
        self.layers = nn.ModuleList([nn.ModuleList([nn.Linear(*weight.shape[::-1], bias=False) for weight in weights])])
        for layer, weight in zip(self.layers[0], weights, strict=True):
            layer.weight.data = weight


def test_sparse_bytes_by_hand() -> None:
    """Four values of nine: 4 x 4 bytes and nine bits in two bytes; a tensor without zeros stays dense."""
    holes = torch.tensor([[1.0, 0.0, 0.0], [0.0, -2.0, 0.0], [3.0, 0.0, 4.0]])
    model = Blocks(holes, torch.ones(3, 3))

    counts = pruning.count_values(model, 72, 20)

    assert counts == {"elements": 20, "nonzero": 13, "sparse_bytes": (4 * 4 + 2) + 36}


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_semi_structured_storage_is_counted_as_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the values and two bits for each; torch's own packing works on the CPU, only its kernels do not."""
    from torch.sparse import SparseSemiStructuredTensorCUTLASS, _semi_structured_conversions

    def pack(weight: torch.Tensor) -> torch.Tensor:
        packed, meta = _semi_structured_conversions.sparse_semi_structured_from_dense_cutlass(weight)
        return SparseSemiStructuredTensorCUTLASS(weight.shape, packed, meta, None, None, None)

    torch.manual_seed(0)
    model = Blocks(torch.randn(64, 128, dtype=torch.bfloat16))
    pruning.zero_two_of_four(model)
    dense = model.layers[0][0].weight.detach().clone()
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", pack)

    assert prune._to_sparse(model) == "SparseSemiStructuredTensorCUTLASS"
    assert bytes_by_kind(model) == {"parameters": 0, "buffers": 0, "tensor_subclasses": 64 * 128 // 2 * 2 + 64 * 128 // 8}
    assert torch.equal(model.layers[0][0].weight.to_dense(), dense)


def test_shapes_that_the_sparse_kernels_refuse_are_one_sentence() -> None:
    """On the CPU torch refuses any; the sentence carries torch's own reason."""
    with pytest.raises(UnsupportedError, match=r"torch cannot store these weights .* \(.*device.*\); use prune/2-4"):
        prune._to_sparse(Blocks(torch.zeros(64, 64, dtype=torch.bfloat16)))
