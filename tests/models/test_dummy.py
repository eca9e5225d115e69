"""Dummies: real shapes without weights, the same everywhere, measured but never compared, and refused in one sentence."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantbench.core.errors import ChildError, ModelError, UsageError
from quantbench.core.job import Checkpoint
from quantbench.core.machine import describe
from quantbench.core.record import Missing, Record, Status
from quantbench.core.scenario import Conditions, Effort, Scenario, Variant, short_name
from quantbench.methods import METHODS, Settings
from quantbench.models import MODELS, check_name, dummy, dummy_configs, meta
from quantbench.models.checkpoint import count_parameters, resolve
from quantbench.models.dummy import read_shapes, write_shapes
from quantbench.models.safetensors import weight_files
from quantbench.planning.options import Plan
from quantbench.results.store import Run, Store
from quantbench.running.runner import Runner
from quantbench.runtimes import open_tokenizer

LAYERS, HIDDEN, KV, FFN, VOCABULARY, CONTEXT = 2, 256, 128, 512, 2304, 128
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "intermediate_size": FFN,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "quantization_config": {"quant_method": "gptq", "bits": 4},
}  # fmt: skip
PARAMETERS = (
    LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * FFN) + 2 * VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN
)
ROTARY = 2 * 16 * 4
"""Of the torch model: inv_freq and its original, float32, half a head each."""

SIMILARITY = ("kld_mean", "kld_p99", "top1_agreement", "ppl", "ppl_ratio", "exact_match", "first_divergence", "chrf")


def _no_shapes(_module: str, _request: list[str], _source: object) -> None:
    """Stands for the process that writes them."""


def _here(_module: str, request: list[str], _source: object) -> None:
    """Its work in this process."""
    write_shapes(Path(request[0]), request[1])


def _write(folder: Path, config: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, users_cache: Path) -> Iterator[Checkpoint]:
    """A dummy that was made in a process of its own, at this run or an earlier one; kept in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        yield resolve(f"dummy:{_write(tmp_path_factory.mktemp('tiny'), CONFIG)}")


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[..., str]:
    """What is said of a configuration, given as text or as an object."""

    def refuse(content: str | Mapping[str, Any], make: Callable[[Path], object] | None = None) -> str:
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ModelError) as caught:
            make(tmp_path) if make else resolve(f"dummy:{path}")
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(str(path), "PATH")

    return refuse


def test_it_has_the_shapes_of_the_model_that_transformers_makes_and_no_weight(tiny: Checkpoint) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    real = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in CONFIG.items() if key != "quantization_config"}))
    assert read_shapes(tiny.path) == {name: tuple(each.shape) for name, each in real.named_parameters()}
    assert (tiny.kind, tiny.random_weights, tiny.quantized) == ("hf", True, "")
    assert count_parameters(tiny) == PARAMETERS
    assert weight_files(tiny.path) == []
    assert sum(path.stat().st_size for path in tiny.path.iterdir()) < 10**6


def test_tied_parameters_are_listed_once(tmp_path: Path) -> None:
    folder = _write(tmp_path / "tied", {**CONFIG, "tie_word_embeddings": True, "quantization_config": None})
    write_shapes(folder, "tied")
    assert sum(math.prod(shape) for shape in read_shapes(folder).values()) == PARAMETERS - VOCABULARY * HIDDEN


def test_nothing_of_the_configuration_names_code_or_a_quantization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration from the hub may name modules beside it, and kernels that transformers fetches."""
    named = {
        "auto_map": {"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "modeling.Config"},
        "attn_implementation": "somebody/kernels", "experts_implementation": "somebody/kernels",
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    }  # fmt: skip
    (_write(tmp_path / "named", {**CONFIG, **named, "draft": named}) / "modeling.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(dummy, "call_transformers", _here)
    found = json.loads((resolve(f"dummy:{tmp_path / 'named'}").path / "config.json").read_text())
    assert found["draft"] == {}
    assert not set(found) & set(named)
    assert (found["architectures"], found["dtype"]) == (["LlamaForCausalLM"], "bfloat16")


@pytest.mark.usefixtures("artifacts")
def test_its_hash_is_of_the_configuration_and_not_of_the_place(tiny: Checkpoint, tmp_path: Path) -> None:
    found = resolve(f"dummy:{_write(tmp_path / 'elsewhere', CONFIG) / 'config.json'}")
    assert (found.content_hash, found.path) == (tiny.content_hash, tiny.path)


def test_another_configuration_seed_or_recipe_has_another_hash(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dummy, "call_transformers", _no_shapes)
    wider = resolve(f"dummy:{_write(tmp_path / 'wider', {**CONFIG, 'intermediate_size': 768})}")
    monkeypatch.setattr(dummy, "SEED", 1)
    reseeded = resolve(f"dummy:{_write(tmp_path / 'same', CONFIG)}")
    monkeypatch.setattr(dummy, "RECIPE", dummy.RECIPE + 1)
    remade = resolve(f"dummy:{_write(tmp_path / 'same', CONFIG)}")
    assert len({tiny.content_hash, wider.content_hash, reseeded.content_hash, remade.content_hash}) == 4


def test_prompts_are_read_by_the_canarys_tokenizer(tiny: Checkpoint) -> None:
    tokenizer = open_tokenizer(tiny)
    canary = open_tokenizer(resolve("canary"))
    assert tokenizer.encode("Return the number 12345.") == canary.encode("Return the number 12345.")
    assert (tokenizer.ends, tokenizer.context_limit) == (canary.ends, CONTEXT)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runner's jobs are kept."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def records(tiny: Checkpoint, jobs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Record]:
    """A dummy through runner and workers, by method and kind of prompts."""
    text = tmp_path_factory.mktemp("text") / "words.txt"
    text.write_text("The number of items is returned. " * 60)
    conditions = Conditions(output_tokens=4, answer_tokens=4, continuation_tokens=4, threads=1)
    scenarios = tuple(
        Scenario(model=tiny.name, variant=Variant(method=method, precision=precision), prompts=prompts, conditions=conditions)
        for method, precision in (("torch", "bf16"), ("gguf", "q8_0"))
        for prompts in ("two", f"text:{text}")
    )
    effort = Effort(min_rounds=1, max_rounds=1, budget_s=0.01)
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    store = Store(str(tmp_path_factory.mktemp("results")), run)
    with Runner(Plan(scenarios=scenarios, effort=effort, engine="inline", keep_jobs=jobs), store) as runner:
        return {(each.variant.method, each.reads): runner.measure(each) for each in scenarios}


@pytest.mark.parametrize("method", ["torch", "gguf"])
def test_memory_and_latency_are_measured(method: str, records: dict[tuple[str, str], Record]) -> None:
    record = records[method, "prompts"]
    assert record.status is Status.OK, record.reason
    q8_0 = (PARAMETERS - (2 * LAYERS + 1) * HIDDEN) * 34 // 32 + 4 * (2 * LAYERS + 1) * HIDDEN
    assert record.values["weight_bytes"] == (2 * PARAMETERS + ROTARY if method == "torch" else q8_0)
    assert record.values["parameters"] == PARAMETERS
    assert record.predicted_weight_bytes == record.values["weight_bytes"]
    assert not isinstance(record.values["decode_tps"], Missing)
    assert not isinstance(records[method, "text"].values["scoring_tps"], Missing)


@pytest.mark.parametrize("method", ["torch", "gguf"])
@pytest.mark.parametrize("kind", ["prompts", "text"])
def test_similarity_is_null_with_the_reason(kind: str, method: str, records: dict[tuple[str, str], Record]) -> None:
    record = records[method, kind]
    assert record.status is Status.OK, record.reason
    reason = Missing("random weights say nothing about similarity")
    assert {name: record.values[name] for name in SIMILARITY} == dict.fromkeys(SIMILARITY, reason)
    assert record.outputs == ()


def test_what_is_made_while_it_is_loaded_has_no_file_and_no_time_of_loading(records: dict[tuple[str, str], Record]) -> None:
    made, written = records["torch", "prompts"].values, records["gguf", "prompts"].values
    assert made["load_s"] == Missing("its random weights are generated while loading, so the time says nothing about loading")
    assert made["artifact_bytes"] == Missing("its random weights are generated while loading, and never written to disk")
    assert (made["conversion"], written["conversion"]) == ("on load", "pre-quantized")
    assert not isinstance(written["load_s"], Missing)
    assert int(written["artifact_bytes"]) > int(written["weight_bytes"])
    assert isinstance(made["quantize_s"], Missing)
    assert written["quantize_s"] == Missing("its file was written with random weights, without a quantizer")


def test_it_is_not_probed_and_says_so(records: dict[tuple[str, str], Record]) -> None:
    reason = Missing("a dummy is not probed; probe the real model, or the canary")
    assert records["torch", "prompts"].values["finetunes"] == reason


@pytest.mark.usefixtures("records")
def test_no_work_is_done_but_what_is_measured(jobs: Path) -> None:
    kinds = [folder.name.rpartition("-")[2] for folder in jobs.glob("*/*-*") if folder.is_dir()]
    assert sorted(set(kinds)) == ["measure", "prepare"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("dummy:tinyllama-1.1b", "dummy:tinyllama-1.1b"),
        ("dummy:org/tiny", "dummy:org/tiny"),
        ("dummy:/some/where/tiny", "dummy:tiny"),
        ("dummy:/some/where/tiny/config.json", "dummy:tiny"),
        ("dummy:../where/tiny/config.json", "dummy:tiny"),
    ],
)
def test_ids_are_short(name: str, shown: str) -> None:
    assert short_name(name) == shown


@pytest.mark.parametrize("name", ["dummy:tinyllama-1.1b", "dummy:org/tiny", "dummy:org/tiny@main"])
def test_a_name_is_checked_without_network(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dummy:tinylama-1.1b", "unknown dummy 'tinylama-1.1b'; did you mean 'tinyllama-1.1b'"),
        ("dummy:", f"unknown dummy ''; known: {', '.join(sorted(dummy_configs()))}"),
        ("dummy:org/tiny:Q4_K_M", "unknown dummy 'org/tiny:Q4_K_M'; known: "),
        ("dummy:./no/x", "dummy path './no/x' does not exist; give a config.json, or a folder that holds one"),
    ],
)
def test_a_name_that_can_be_no_dummy_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert str(caught.value).startswith(reason)


def test_a_hub_repository_gives_its_config_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(repository: str, filename: str, *, revision: str | None) -> str:
        asked.append((repository, filename, revision))
        return str(_write(tmp_path / "hub", CONFIG) / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    monkeypatch.setattr(dummy, "call_transformers", _no_shapes)
    found = resolve("dummy:org/tiny@v2")
    assert asked == [("org/tiny", "config.json", "v2")]
    assert json.loads((found.path / "config.json").read_text())["hidden_size"] == HIDDEN


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError("Connection refused\nand forty lines more")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    with pytest.raises(ModelError, match=r"^model 'org/tiny' could not be fetched from the hub \(Connection refused\); check"):
        resolve("dummy:org/tiny")


def test_a_file_that_is_no_configuration_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert refusal("{").startswith("PATH cannot be read as JSON (Expecting property name")
    assert refusal({"hidden_size": 1}) == (
        "PATH names no model_type, so it is not a model's config.json; give one that save_pretrained wrote"
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty/config.json does not exist; give a config.json"):
        resolve(f"dummy:{tmp_path / 'empty'}")


def test_a_vocabulary_that_is_too_small_for_prompts_is_refused(refusal: Callable[..., str]) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "quantization_config"}
    found = refusal({**config, "vocab_size": 2047}, lambda folder: write_shapes(folder, "SOURCE"))
    assert found == (
        "SOURCE has a vocabulary of 2047, but a dummy's prompts are encoded with 2048 ids; set vocab_size to 2048 or more"
    )


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (ChildError("it", "ended with exit code 2", "SOURCE is refused", refused=True), "SOURCE is refused"),
        (
            ChildError("it", "ended with exit code 1", "ValueError: no such model_type"),
            "transformers cannot make a model from PATH (ValueError: no such model_type); give another configuration",
        ),
    ],
)
def test_a_process_that_fails_is_one_sentence(
    ended: ChildError, reason: str, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ended

    monkeypatch.setattr(meta, "call", fail)
    assert refusal({**CONFIG, "model_type": "fantasy"}) == reason


@pytest.mark.usefixtures("artifacts")
def test_the_gguf_file_has_as_many_ids_as_the_configuration(tiny: Checkpoint) -> None:
    """llama.cpp's converter fills the canary's vocabulary up with ids that stand for nothing."""
    variant = Variant(method="gguf", precision="q8_0")
    scenario = Scenario(model=tiny.name, variant=variant, prompts="two")
    with METHODS["gguf"].open(scenario, Settings(checkpoint=tiny, threads=1, context=64)) as model:
        (logits,) = model.score([1, 300, 400])
    assert logits.shape == (3, VOCABULARY)
    assert len(json.loads((MODELS["canary"].folder() / "tokenizer.json").read_text())["model"]["vocab"]) < VOCABULARY
