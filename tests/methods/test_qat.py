"""QAT: what is trained and what is not, that the simulated numbers are torchao's, and that it helps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from quantbench.core.cache import cache_root
from quantbench.core.errors import ModelError, UnsupportedError
from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.measuring.passes.similarity import log_softmax
from quantbench.methods import METHODS, Artifact, Settings, qat
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.transformers import calibration
from quantbench.runtimes.transformers import torchao as ao
from quantbench.runtimes.transformers.distill import Training, distill

BOTH = ("int8", "int4")
SHORT = Training(rate=2e-3, steps=6, batch=2, length=16, warmup=2)
LONG = Training(rate=1e-3, steps=40, batch=4, length=32, warmup=5)
IDS = torch.arange(1, 33).unsqueeze(0)

METHOD = METHODS["qat"]


def llama(hidden: int = 64) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )).eval()  # fmt: skip


def opt() -> Any:
    """A model with dropout."""
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(OPTConfig(
        vocab_size=64, hidden_size=64, ffn_dim=96, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=64,
        word_embed_proj_dim=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, init_std=0.2, dropout=0.5,
    )).eval()  # fmt: skip


def gpt2() -> Any:
    """A model whose blocks have no Linear layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they give on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], str]:
    def save(model: Any) -> str:
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def tiny(saved: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A random Llama as a checkpoint, little calibration text, and short training."""
    monkeypatch.setattr(calibration, "SEQUENCES", 8)
    monkeypatch.setattr(qat, "TRAINING", dict.fromkeys(BOTH, SHORT))
    return saved(llama())


def asked(precision: str, model: str, method: str = "qat", seed: int = 0) -> tuple[Spec, Settings]:
    variant = Variant(method=method, precision=precision)
    spec = Spec(model=model, variant=variant, conditions=Conditions(seed=seed))
    return spec, Settings(checkpoint=resolve(model), threads=1, context=64)


def prepared(precision: str, model: str, seed: int = 0) -> Artifact:
    assert METHOD.preparer
    return METHOD.preparer(*asked(precision, model, seed=seed))


def logits(spec: Spec, settings: Settings) -> np.ndarray[Any, Any]:
    with METHODS[spec.variant.method].open(spec, settings) as model:
        return np.concatenate([chunk.copy() for chunk in model.score(IDS[0].tolist())])


def sequences(model: Any, count: int = 16, length: int = 32) -> list[list[int]]:
    """Text sampled from the model."""
    torch.manual_seed(1)
    ids = torch.ones(count, 1, dtype=torch.long)
    with torch.inference_mode():
        for _ in range(length - 1):
            chances = model(input_ids=ids).logits[:, -1].softmax(dim=-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1)], dim=1)
    found: list[list[int]] = ids.tolist()
    return found


def simulated(precision: str) -> Any:
    """The Llama with its quantization simulated."""
    with ao.quiet():
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig

        model = llama()
        quantize_(model.base_model, QATConfig(ao.base_config(qat.SAME_AS[precision]), step="prepare"))
    return model


def quantized(model: Any, precision: str) -> Any:
    """A Llama, simulated or not, with its blocks quantized by torchao."""
    with ao.quiet():
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig

        quantize_(model.base_model, QATConfig(step="convert"))
        quantize_(model.base_model, ao.base_config(qat.SAME_AS[precision]))
    return model


def divergence(model: Any, text: Sequence[Sequence[int]]) -> float:
    """Mean KL(Llama || model) in nats, in double precision."""
    ids = torch.tensor(text)
    with torch.inference_mode():
        p, q = (log_softmax(each(input_ids=ids).logits.flatten(0, 1).numpy()).astype(np.float64) for each in (llama(), model))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("precision", BOTH)
def test_what_is_simulated_is_what_torchao_computes(precision: str) -> None:
    """The same weights: the model that is trained gives the logits of the model that will be measured, and not its own."""
    with torch.inference_mode():
        plain, trained, real = (
            model(IDS).logits for model in (llama(), simulated(precision), quantized(llama(), precision))
        )  # fmt: skip

    assert (trained - real).abs().max() < 1e-4 * (plain - real).abs().max()
    assert (plain - real).abs().max() > 1e-3


def test_training_brings_the_quantized_model_closer_also_on_other_text() -> None:
    """A 4-bit model, judged after it was really quantized."""
    text = sequences(llama(), 64)
    model = simulated("int4")

    losses = distill(model, llama(), text[:48], LONG, seed=0)

    assert len(losses) == 40
    assert fmean(losses[-5:]) < 0.8 * fmean(losses[:5])
    assert divergence(quantized(model, "int4"), text[48:]) < 0.8 * divergence(quantized(llama(), "int4"), text[48:])


def test_training_reaches_weights_behind_quantized_activations() -> None:
    """8 bits lose too little to win it back, so the weights are moved away first."""
    model = simulated("int8")
    torch.manual_seed(5)
    for name, weight in model.named_parameters():
        if "_proj" in name:
            weight.data += 0.02 * torch.randn_like(weight)

    losses = distill(model, llama(), sequences(llama(), 16), LONG, seed=0)

    assert fmean(losses[-5:]) < 0.8 * fmean(losses[:5])


def test_the_loss_is_the_divergence_from_the_teacher_in_this_direction() -> None:
    """A model that is three times as sure; in float32, as on every CPU: bfloat16 would move the figure by some percent."""
    ids = sequences(llama(), 1)
    sure = llama()
    sure.lm_head.weight.data *= 3
    with torch.inference_mode():
        p, q = (log_softmax(each(input_ids=torch.tensor(ids)).logits[0].numpy()).astype(np.float64) for each in (llama(), sure))
    forward, backward = (float((np.exp(a) * (a - b)).sum(axis=1).mean()) for a, b in ((p, q), (q, p)))

    first = distill(sure, llama(), ids, Training(rate=1e-9, steps=4, batch=1, length=32, warmup=2), seed=0)[0]

    assert first == pytest.approx(forward, rel=1e-4)
    assert abs(forward - backward) > 0.2 * forward


def test_the_seed_chooses_the_windows() -> None:
    text = sequences(llama(), 16)
    curves = [distill(simulated("int4"), llama(), text, SHORT, seed=seed) for seed in (0, 0, 1)]

    assert curves[0] == curves[1] != curves[2]


@pytest.mark.parametrize("precision", BOTH)
def test_embeddings_and_output_layer_stay_and_every_layer_of_the_blocks_moves(precision: str) -> None:
    model = simulated(precision)

    distill(model, llama(), sequences(llama(), 4), SHORT, seed=0)

    before, after = llama().state_dict(), model.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert {name for name in before if "_proj" in name} <= moved
    assert not moved & {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


def test_a_tied_output_layer_stays_too() -> None:
    from transformers import LlamaForCausalLM

    model, teacher = (
        LlamaForCausalLM(llama().config.__class__(**{**llama().config.to_dict(), "tie_word_embeddings": True})) for _ in "ab"
    )
    before = model.lm_head.weight.clone()

    distill(model, teacher, sequences(llama(), 4), SHORT, seed=0)

    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, before)


def test_a_loss_that_diverges_is_an_error_and_leaves_no_artifact(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = Training(rate=1e30, steps=6, batch=2, length=16, warmup=2)
    monkeypatch.setattr(qat, "TRAINING", dict.fromkeys(BOTH, wild))

    with pytest.raises(ModelError, match=r"the loss of quantization-aware training is (nan|inf) at step \d"):
        prepared("int4", tiny)
    assert not list((cache_root() / "qat").iterdir())


def test_the_seed_and_nothing_else_decides(tiny: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two caches, and other random numbers around."""
    found: list[Mapping[str, torch.Tensor]] = []
    curves = []
    for place, noise, seed in (("a", 1, 0), ("b", 2, 0), ("c", 1, 1)):
        monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / place))
        torch.manual_seed(noise)
        made = prepared("int4", tiny, seed)
        found.append(load_file(made.path / "model.safetensors"))
        curves.append(json.loads((made.path.parent / "training.json").read_text())["losses"])

    assert curves[0] == curves[1] != curves[2]
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_dropout_is_off() -> None:
    teacher = opt()
    text = sequences(teacher, 4)
    curves = []
    for noise in (1, 2):
        model = opt()
        model.load_state_dict(teacher.state_dict())
        torch.manual_seed(noise)
        curves.append(distill(model, teacher, text, SHORT, seed=0))

    assert curves[0] == curves[1]


@pytest.mark.parametrize("precision", BOTH)
def test_the_artifact_is_a_plain_checkpoint_in_bfloat16_and_is_made_once(precision: str, tiny: str) -> None:
    from transformers import AutoModelForCausalLM

    first = prepared(precision, tiny)
    stamp = (first.path / "model.safetensors").stat().st_mtime_ns
    again = prepared(precision, tiny)
    model = AutoModelForCausalLM.from_pretrained(first.path, dtype="auto")

    assert first == again
    assert (first.path / "model.safetensors").stat().st_mtime_ns == stamp
    assert first.file_bytes == (first.path / "model.safetensors").stat().st_size
    assert first.quantize_s is not None
    assert first.quantize_s > 0
    assert model.dtype == torch.bfloat16
    assert model.state_dict().keys() == llama().state_dict().keys()
    assert {type(each) for each in model.modules() if isinstance(each, nn.Linear)} == {nn.Linear}


def test_each_training_is_an_artifact_of_its_own_and_stands_in_the_key(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, recipes = [], []
    for training in (SHORT, Training(rate=1e-3, steps=4, batch=2, length=16, warmup=2)):
        monkeypatch.setattr(qat, "TRAINING", dict.fromkeys(BOTH, training))
        folders.append(prepared("int8", tiny).path)
        recipes.append(dict(METHOD.recipe(asked("int8", tiny)[0])))

    assert folders[0] != folders[1] != prepared("int4", tiny).path
    assert recipes[0] != recipes[1]
    assert json.loads(recipes[1]["training"]) == {"rate": 1e-3, "steps": 4, "batch": 2, "length": 16, "warmup": 2}
    assert recipes[0]["calibration"] == "sampled 8 x 256"


@pytest.mark.parametrize("precision", BOTH)
def test_it_is_loaded_as_the_same_precision_of_torchao(precision: str, tiny: str) -> None:
    """The same bytes and kernel, other weights; the losses of six steps are kept one by one."""
    ours, theirs = asked(precision, tiny), asked(qat.SAME_AS[precision], tiny, "torchao")
    with METHOD.open(*ours) as trained, METHODS["torchao"].open(*theirs) as untrained:
        assert trained.memory() == untrained.memory()
        assert trained.facts["kernel"] == untrained.facts["kernel"]
        losses = json.loads(trained.facts["qat_losses"])
    kept = json.loads((prepared(precision, tiny).path.parent / "training.json").read_text())

    assert losses == [round(loss, 6) for loss in kept["losses"]]
    assert np.abs(logits(*ours) - logits(*theirs)).max() > 0.01


def test_a_long_course_is_kept_as_averages(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qat, "TRAINING", dict.fromkeys(BOTH, Training(rate=1e-4, steps=26, batch=1, length=8, warmup=2)))
    with METHOD.open(*asked("int8", tiny)) as model:
        curve = json.loads(model.facts["qat_losses"])
    steps = json.loads((prepared("int8", tiny).path.parent / "training.json").read_text())["losses"]

    assert curve == pytest.approx([fmean(steps[start : start + 2]) for start in range(0, 26, 2)], abs=1e-6)


@pytest.mark.parametrize("precision", BOTH)
def test_what_is_saved_opens_with_torchao_with_equal_logits(precision: str, tiny: str, tmp_path: Path) -> None:
    assert METHOD.saver
    METHOD.saver(*asked(precision, tiny), tmp_path / "out")

    again = asked(qat.SAME_AS[precision], str(tmp_path / "out"), "torchao")
    np.testing.assert_array_equal(logits(*again), logits(*asked(precision, tiny)))


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: llama(48), "groups of 32 weights, .* rows of 48 of"), (gpt2, "GPT2LMHeadModel has none but its output layer")],
)
def test_what_torchao_cannot_quantize_is_refused_before_training(
    make: Callable[[], Any], message: str, saved: Callable[[Any], str]
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        prepared("int4", saved(make()))
    assert not (cache_root() / "calibration").exists()


def test_a_quantized_checkpoint_is_refused(tiny: str, tmp_path: Path) -> None:
    saver = METHODS["torchao"].saver
    assert saver
    saver(*asked("int8-wo", tiny, "torchao"), tmp_path / "out")

    with pytest.raises(UnsupportedError, match=r"cannot open a checkpoint that is already quantized \(torchao\)"):
        METHOD.open(*asked("int8", str(tmp_path / "out")))
