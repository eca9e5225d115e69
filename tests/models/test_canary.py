"""The canary: small, equal ids in both runtimes, trained at its full context, and of quality that falls with its bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantbench.core.machine import describe
from quantbench.core.record import Record
from quantbench.core.scenario import Conditions, Effort, Scenario, Variant
from quantbench.models import MODELS
from quantbench.models.checkpoint import checkpoint_dtype, count_parameters, resolve
from quantbench.planning.options import Plan
from quantbench.planning.prompts import load
from quantbench.results.store import Run, Store
from quantbench.running.runner import Runner
from quantbench.runtimes import open_tokenizer
from quantbench.runtimes.llama_cpp.files import f16_file

FOLDER = MODELS["canary"].folder()
GGUF_BY_QUALITY = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
TEXTS = (
    "Hello world",
    "  two spaces   three",
    "a\nb\n\n    indented\ttab",
    "Return the number 12345 of items.",
    "é ü 漢字 emoji 🙂 – dash",
    "def f(x):\n    return x + 1\n",
    " leading and trailing ",
    "x",
    "a" * 50,
    "!!??--==>>><<<%%$$",
    "The os.path module is always the path module suitable for the operating system Python is running on.",
)

pytestmark = pytest.mark.usefixtures("artifacts")


def test_it_is_small_and_bf16_and_the_card_says_how_good_it_is() -> None:
    weights = FOLDER / "model.safetensors"
    facts = json.loads((FOLDER / "training.json").read_text())
    card = (FOLDER / "README.md").read_text()

    assert weights.stat().st_size <= 12_000_000
    assert checkpoint_dtype(FOLDER) == "bf16"
    assert count_parameters(resolve("canary")) == facts["parameters"]
    assert facts["held_out_ppl_1024"] <= facts["held_out_ppl_256"]
    assert f"{facts['held_out_ppl_1024']:.1f}" in card
    assert facts["corpus_sha256"] in card


def test_both_runtimes_read_the_same_ids() -> None:
    """Transformers' tokenizer and llama.cpp's, on awkward texts and on every shipped prompt."""
    ours = open_tokenizer(resolve("canary"))
    theirs = open_tokenizer(resolve(str(f16_file(resolve("canary")))))

    texts = [*TEXTS, *load("ten").prompts]
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
    assert [ours.encode_literal(text) for text in texts] == [theirs.encode_literal(text) for text in texts]
    assert 2 in ours.encode("a </s> b")
    assert 2 not in ours.encode_literal("a </s> b")
    assert ours.encode_literal("a </s> b") == theirs.encode_literal("a </s> b")
    assert all(ours.encode(text)[0] == 1 for text in texts)
    assert [ours.decode(ours.encode(text)) for text in texts] == texts
    assert ours.ends == theirs.ends == {2}
    assert ours.context_limit == theirs.context_limit == 1024


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, users_cache: Path) -> dict[str, Record]:
    """GGUF levels of the canary, measured with little effort."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(users_cache))
        variants = [Variant(method="gguf", precision=precision) for precision in GGUF_BY_QUALITY]
        conditions = Conditions(output_tokens=32, answer_tokens=32)  # one set of answers, timed and compared
        scenarios = tuple(Scenario(model="canary", variant=each, prompts="ten", conditions=conditions) for each in variants)
        effort = Effort(min_rounds=1, max_rounds=1, energy=False, besides=False)
        plan = Plan(scenarios=scenarios, effort=effort, engine="inline")
        run = Run(machine=describe(), versions={}, command="test", commit="", profile="quick", engine="inline")
        with Runner(plan, Store(str(tmp_path_factory.mktemp("results")), run)) as runner:
            measured = [runner.measure(scenario) for scenario in scenarios]
    return {record.scenario.variant.precision: record for record in measured}


def test_quality_falls_strictly_as_bits_do(records: dict[str, Record]) -> None:
    divergences = [records[precision].values["kld_mean"] for precision in GGUF_BY_QUALITY]

    assert divergences == sorted(divergences)
    assert len(set(divergences)) == len(divergences)


def test_q8_0_is_near_lossless_and_q2_k_is_visibly_worse_than_q4_k_m(records: dict[str, Record]) -> None:
    assert records["q8_0"].values["top1_agreement"] >= 0.98
    assert records["q2_k"].values["chrf"] < records["q4_k_m"].values["chrf"] - 5
    assert records["q2_k"].values["token_match"] < records["q4_k_m"].values["token_match"]


def test_training_text_is_the_documentation_of_this_interpreter() -> None:
    from quantbench.models.builtin.canary import corpus

    documents = corpus.documents()
    training, held_out = corpus.split(documents)

    assert len(training) + len(held_out) == len(documents) > 1000
    assert not set(training) & set(held_out)
    assert any('The "assert" statement' in text for text in documents)  # the language reference
    assert any("OrderedDict" in text for text in documents)  # docstrings


