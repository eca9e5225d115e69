"""Sequences answered together say what each says alone, and prompts of a length are as long as asked."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from quantbench.core.job import Task
from quantbench.core.scenario import Spec, Variant
from quantbench.measuring.passes.latency import together
from quantbench.methods import METHODS, Batched, LoadedModel, Settings
from quantbench.models.checkpoint import resolve
from quantbench.models.tokenizer import encode_prompts
from quantbench.runtimes import open_tokenizer

PROMPT = [1, *range(300, 340)]
LENGTH = 6
WIDTH = 5

pytestmark = pytest.mark.usefixtures("artifacts")


def _open(stack: ExitStack, method: str, precision: str, batch: int, context: int = 64) -> LoadedModel:
    spec = Spec(model="canary", variant=Variant(method=method, precision=precision))
    settings = Settings(checkpoint=resolve("canary"), threads=1, context=context, batch=batch)
    preparer = METHODS[method].preparer
    if preparer:
        preparer(spec, settings)
    return stack.enter_context(METHODS[method].open(spec, settings))


@pytest.mark.parametrize(("method", "precision"), [("torch", "fp32"), ("gguf", "f32")])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:2]], ids=["long", "short"])
def test_each_row_is_answered_as_it_is_alone(method: str, precision: str, prompt: list[int]) -> None:
    rows = together(prompt, WIDTH)
    with ExitStack() as stack:
        model = _open(stack, method, precision, WIDTH)
        assert isinstance(model, Batched)
        steps = [list(tokens) for tokens in model.generate_batch(rows, LENGTH)]
        again = [list(tokens) for tokens in model.generate_batch(rows, LENGTH)]
    with ExitStack() as stack:
        single = _open(stack, method, precision, 1)
        alone = [list(single.generate(row, LENGTH)) for row in rows]
    assert [len(step) for step in steps] == [WIDTH] * LENGTH
    assert steps == again
    assert [list(answer) for answer in zip(*steps, strict=True)] == alone
    assert len({tuple(answer) for answer in alone}) > 1 or len(prompt) == 2


def test_llama_cpp_reads_long_prompts_of_many_sequences_in_slices() -> None:
    """200 tokens of five sequences are more than one batch of llama.cpp's holds."""
    rows = together([1, *(300 + position % 97 for position in range(199))], WIDTH)
    with ExitStack() as stack:
        model = _open(stack, "gguf", "f32", WIDTH, context=256)
        assert isinstance(model, Batched)
        steps = [list(tokens) for tokens in model.generate_batch(rows, 3)]
        alone = [list(model.generate(row, 3)) for row in rows]
    assert [list(answer) for answer in zip(*steps, strict=True)] == alone


@pytest.mark.parametrize("tokens", [2, 17, 300, 2000])
def test_a_prompt_of_a_length_is_as_long_and_starts_as_every_prompt_does(tokens: int) -> None:
    tokenizer = open_tokenizer(resolve("canary"))
    task = Task(prompts_name=f"tokens:{tokens}", prompts=("A short text.",), reference=None, tokens=tokens)
    [ids] = encode_prompts(tokenizer, task)
    assert len(ids) == tokens
    assert ids[:1] == tokenizer.encode("A short text.")[:1]


def test_prompts_of_no_length_are_as_long_as_their_text() -> None:
    tokenizer = open_tokenizer(resolve("canary"))
    task = Task(prompts_name="two", prompts=("One.", "And another."), reference=None)
    assert encode_prompts(tokenizer, task) == [tokenizer.encode("One."), tokenizer.encode("And another.")]
