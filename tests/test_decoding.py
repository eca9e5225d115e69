"""The ways to decode of the transformers runtime: all answer as ``generate`` does; what cannot is eager, with the reason."""

from __future__ import annotations

from itertools import count, islice
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import UsageError
from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.runtimes.transformers.decoding import WAYS, Eager, Static, try_way
from quantbench.runtimes.transformers.model import TransformersModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROMPTS = ((3, 1, 4, 1, 5), (9, 2, 6, 5, 3))
LIMIT, POSITIONS = 12, 32


@pytest.fixture(scope="module")
def causal() -> Any:
    """A Llama of odd sizes whose layers differ in what they keep: grouped heads, and a vocabulary that is prime."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=131, hidden_size=36, intermediate_size=50, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
        max_position_embeddings=64, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return LlamaForCausalLM(config).eval()


def generated(causal: Any, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """What transformers' own ``generate`` answers."""
    import torch

    ids = torch.tensor(prompts)
    length = {"max_new_tokens": limit, "min_new_tokens": limit}
    said = causal.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **length)
    found: list[list[int]] = said[:, ids.shape[1] :].tolist()
    return found


def answered(way: Eager | Static, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """The answers that a way gives, by prompt."""
    steps = way.steps(prompts, limit, lambda logits: logits.argmax(dim=-1, keepdim=True))
    return [list(each) for each in zip(*(ids[:, 0].tolist() for ids in steps), strict=True)]


@pytest.mark.parametrize("name", ["eager", "static"])
@pytest.mark.parametrize("batch", [1, 2])
def test_answers_are_those_of_generate_again_and_again(causal: Any, name: str, batch: int) -> None:
    way = WAYS[name](causal, POSITIONS)
    for prompts in (PROMPTS[:batch], [prompt[:3] for prompt in PROMPTS[:batch]], PROMPTS[:batch]):
        assert answered(way, prompts, LIMIT) == generated(causal, prompts, LIMIT)


def test_a_compiled_step_answers_as_generate_does_and_says_what_it_took(causal: Any) -> None:
    model = TransformersModel(causal, kernel="torch")
    decoding = model.decode_by("compiled", PROMPTS[:1], LIMIT, POSITIONS)

    assert (decoding.path, decoding.reason) == ("compiled", "")
    assert decoding.compile_s is not None
    assert decoding.compile_s > 0
    assert list(model.generate(PROMPTS[1], LIMIT)) == generated(causal, PROMPTS[1:], LIMIT)[0]


def test_a_way_holds_for_so_many_sequences(causal: Any) -> None:
    model = TransformersModel(causal, kernel="torch")
    assert model.decode_by("static", PROMPTS, LIMIT, POSITIONS).path == "static"
    assert model.decode_by("", PROMPTS[:1], LIMIT, POSITIONS).path == "eager"
    assert [list(each) for each in zip(*model.generate_batch(PROMPTS, LIMIT), strict=True)] == generated(causal, PROMPTS, LIMIT)


class Fails(Static):
    """What cannot take a step."""

    name = "fails"

    def _step(self, ids: Any, cache: Any) -> Any:
        raise ValueError("no such kernel\nand much more")


class Differs(Static):
    """What errs from the fourth token on."""

    name = "differs"
    prepared = True

    def steps(self, prompts: Sequence[Sequence[int]], limit: int, choose: Any) -> Iterator[Any]:
        turns = count()
        return super().steps(prompts, limit, lambda logits: choose(logits if next(turns) < 3 else logits.roll(1, dims=-1)))


@pytest.mark.parametrize(
    ("way", "reason"),
    [(Fails, "fails failed: ValueError: no such kernel"), (Differs, "differs answered otherwise than eager from token 4 on")],
)
def test_what_cannot_answer_alike_is_eager_with_the_reason(causal: Any, way: type[Static], reason: str) -> None:
    found, decoding = try_way(way(causal, POSITIONS), PROMPTS[:1], LIMIT)

    assert isinstance(found, Eager)
    assert (decoding.path, decoding.reason, decoding.compile_s) == ("eager", reason, None)


@pytest.mark.parametrize(("roundings", "path"), [(2, "prefers"), (20, "eager"), (float("nan"), "eager")])
def test_two_tokens_that_are_as_likely_within_rounding_are_no_difference(causal: Any, roundings: float, path: str) -> None:
    """Other kernels add in another order: the second likeliest token is lifted above the likeliest by so many roundings."""

    class Prefers(Static):
        name = "prefers"

        def steps(self, prompts: Sequence[Sequence[int]], limit: int, choose: Any) -> Iterator[Any]:
            return super().steps(prompts, limit, lambda logits: choose(lifted(logits)))

    def lifted(logits: Any) -> Any:
        best, second = logits.topk(2).indices.split(1, dim=-1)
        rounding = logits.abs().amax(-1, keepdim=True) * 2**-23
        return logits.scatter(-1, second, logits.gather(-1, best) + roundings * rounding)

    found, decoding = try_way(Prefers(causal, POSITIONS), PROMPTS, LIMIT)
    assert (found.name, decoding.path) == (path, path)
    assert bool(decoding.reason) == (path == "eager")


def test_memory_that_ran_out_is_no_reason_to_go_on(causal: Any) -> None:
    class Bursts(Static):
        def _step(self, ids: Any, cache: Any) -> Any:
            raise MemoryError("out of memory")

    with pytest.raises(MemoryError):
        try_way(Bursts(causal, POSITIONS), PROMPTS[:1], LIMIT)


def test_two_answers_cannot_share_one_cache(causal: Any) -> None:
    way = Static(causal, POSITIONS)
    first, second = (way.steps([prompt], LIMIT, lambda logits: logits.argmax(dim=-1, keepdim=True)) for prompt in PROMPTS)
    list(islice(first, 2))
    list(islice(second, 2))
    with pytest.raises(RuntimeError, match="another answer was begun"):
        next(first)


def test_a_path_that_was_asked_for_is_part_of_the_key_and_none_is_not() -> None:
    variant = Variant(method="torch", precision="fp32")
    usual, static = (
        Scenario(model="canary", variant=variant, prompts="two", conditions=Conditions(decode_path=path))
        for path in ("", "static")
    )
    assert usual.key({}) != static.key({})
    assert "decode_path" not in usual.heeded()


@pytest.mark.parametrize(
    ("path", "device", "reason"),
    [("grahp", "cuda", "decode path 'grahp'.*graph"), ("graph", "cpu", "is a CUDA graph, and the device is cpu")],
)
def test_a_path_that_there_is_not_is_bad_input(path: str, device: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Conditions(decode_path=path, device=device)
