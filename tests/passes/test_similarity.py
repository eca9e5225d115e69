"""The similarity pass on models with known logits, against scipy's log_softmax and rel_entr."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import ModelError
from quantbench.core.job import Checkpoint, Task
from quantbench.core.scenario import Conditions
from quantbench.core.trace import Reference
from quantbench.measuring.passes.reference import make_reference
from quantbench.measuring.passes.similarity import LOGPROBS_FILE, REFERENCE_FILE, answer_greedily, log_softmax, score_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from quantbench.methods import Sampling

VOCABULARY = 11
PROMPTS = ((1, 2), (3,), (4, 5, 6))
LENGTH = 7


@dataclass
class FakeModel:
    """The next token depends on the last one only: row t of ``table`` holds the logits after token t. Scores in chunks."""

    table: NDArray[Any]
    chunk: int = 3

    def generate(self, prompt: Sequence[int], limit: int, sampling: Sampling | None = None) -> Iterator[int]:
        import numpy as np
        from scipy.special import softmax

        rng = np.random.default_rng(sampling.seed) if sampling else None
        token = prompt[-1]
        for _ in range(limit):
            row = self.table[token]
            token = int(rng.choice(len(row), p=softmax(row.astype(np.float64)))) if rng else int(row.argmax())
            yield token

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[Any]]:
        import numpy as np

        rows = np.array([self.table[token] for token in tokens[first:]], dtype=np.float32)
        buffer = np.empty((self.chunk, rows.shape[1]), np.float32)
        for start in range(0, len(rows), self.chunk):
            part = rows[start : start + self.chunk]
            buffer[: len(part)] = part
            yield buffer[: len(part)]  # one buffer for all: a chunk is valid until the next one only


class FakeTokenizer:
    """A letter a token."""

    ends = frozenset({0})
    context_limit = 64

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    encode_literal = encode

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(ord("a") + token) for token in tokens)

    def backend(self) -> None:
        """Nothing that could be saved."""


def _table(seed: int, scale: float = 2.0, vocabulary: int = VOCABULARY) -> NDArray[Any]:
    import numpy as np

    return np.random.default_rng(seed).normal(0.0, scale, (vocabulary, vocabulary)).astype(np.float32)


def _reference(folder: Path, table: NDArray[Any], seed: int = 0) -> Reference:
    """The reference's artifact, its log-probabilities by scipy."""
    import numpy as np
    from scipy.special import log_softmax as oracle

    rng = np.random.default_rng(seed)
    continuations = tuple(tuple(rng.integers(0, table.shape[1], LENGTH).tolist()) for _ in PROMPTS)
    lines = [oracle(table[_seen(index, continuations)].astype(np.float64), axis=1) for index in range(len(PROMPTS))]
    np.save(folder / LOGPROBS_FILE, np.concatenate(lines).astype(np.float32))
    return Reference(
        parameters=1, checkpoint_dtype="fp32", context_limit=64, prompt_tokens=PROMPTS, continuations=continuations, answers=()
    )


def _seen(index: int, continuations: Sequence[Sequence[int]]) -> list[int]:
    """The last token before each scored position of a prompt."""
    return [PROMPTS[index][-1], *continuations[index][:-1]]


def _scored(reference: Reference) -> list[tuple[Sequence[int], Sequence[int]]]:
    return list(zip(reference.prompt_tokens, reference.continuations, strict=True))


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 300), rows=st.integers(1, 6), vocabulary=st.integers(2, 300))
def test_log_softmax_is_scipys(seed: int, scale: float, rows: int, vocabulary: int) -> None:
    import numpy as np
    from scipy.special import log_softmax as oracle

    logits = np.random.default_rng(seed).normal(0.0, scale, (rows, vocabulary)).astype(np.float32)
    found = log_softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, oracle(logits.astype(np.float64), axis=1), rtol=1e-6, atol=1e-6)


def test_log_softmax_holds_for_large_and_forbidden_logits() -> None:
    """No overflow at 1e4, and the smallest float32 stands for a forbidden token."""
    import numpy as np

    found = log_softmax(np.array([[1e4, 1e4, np.finfo(np.float32).min]], np.float32))
    np.testing.assert_allclose(np.exp(found), [[0.5, 0.5, 0.0]], atol=1e-7)


@given(seed=st.integers(0, 2**16), noise=st.floats(0.0, 3.0), chunk=st.integers(1, 9))
def test_every_positions_columns_agree_with_scipy(
    tmp_path_factory: pytest.TempPathFactory, seed: int, noise: float, chunk: int
) -> None:
    import numpy as np
    from scipy.special import log_softmax as oracle
    from scipy.special import rel_entr, softmax

    folder = tmp_path_factory.mktemp("reference")
    theirs = _table(seed)
    ours = (theirs + noise * _table(seed + 1)).astype(np.float32)
    reference = _reference(folder, theirs, seed)
    score_columns(FakeModel(ours, chunk), _scored(reference), folder, folder / "columns.npz")
    found = _columns(folder / "columns.npz")
    before = [token for index in range(len(PROMPTS)) for token in _seen(index, reference.continuations)]
    targets = [token for continuation in reference.continuations for token in continuation]
    p, q = theirs[before].astype(np.float64), ours[before].astype(np.float64)
    lines = np.arange(len(targets))
    np.testing.assert_array_equal(found["prompt"], np.repeat(np.arange(len(PROMPTS)), LENGTH))
    np.testing.assert_allclose(found["kld"], rel_entr(softmax(p, axis=1), softmax(q, axis=1)).sum(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["nll"], -oracle(q, axis=1)[lines, targets], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["nll_reference"], -oracle(p, axis=1)[lines, targets], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["top1"], p.argmax(axis=1) == q.argmax(axis=1))
    shared = np.minimum(softmax(p, axis=1), softmax(q, axis=1)).sum(axis=1)
    np.testing.assert_allclose(found["ear"], shared, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["confidence"], softmax(p, axis=1).max(axis=1), rtol=1e-6)


@given(seed=st.integers(0, 2**16), noise=st.floats(0.0, 9.0), scale=st.floats(0.1, 9.0))
def test_the_share_of_equal_tokens_keeps_pinskers_inequality(
    tmp_path_factory: pytest.TempPathFactory, seed: int, noise: float, scale: float
) -> None:
    """What it lacks to 1 is the total variation, which is at most sqrt(KLD / 2); equal distributions share all."""
    import numpy as np

    folder = tmp_path_factory.mktemp("reference")
    theirs = _table(seed, scale)
    reference = _reference(folder, theirs, seed)
    for name, ours in (("other", theirs + noise * _table(seed + 1)), ("same", theirs)):
        score_columns(FakeModel(ours.astype(np.float32)), _scored(reference), folder, folder / f"{name}.npz")
    other, same = (_columns(folder / f"{name}.npz") for name in ("other", "same"))
    assert (other["ear"] <= 1).all()
    assert (other["ear"] >= 1 - np.sqrt(np.maximum(other["kld"], 0) / 2) - 1e-3).all()  # a KLD is exact to about 1e-6
    assert same["ear"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("block", [1, 2 * VOCABULARY, 3 * VOCABULARY])
def test_neither_blocks_nor_threads_change_a_figure(
    block: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = _reference(tmp_path, _table(0))
    score_columns(FakeModel(_table(1), LENGTH), _scored(reference), tmp_path, tmp_path / "whole.npz")
    monkeypatch.setattr("quantbench.measuring.passes.similarity.BLOCK_VALUES", block)
    score_columns(FakeModel(_table(1), LENGTH), _scored(reference), tmp_path, tmp_path / "parts.npz", threads=threads)
    whole, parts = _columns(tmp_path / "whole.npz"), _columns(tmp_path / "parts.npz")
    assert {name: values.tolist() for name, values in parts.items()} == {name: each.tolist() for name, each in whole.items()}


def test_columns_have_the_types_that_the_trace_promises(tmp_path: Path) -> None:
    reference = _reference(tmp_path, _table(0))
    score_columns(FakeModel(_table(1)), _scored(reference), tmp_path, tmp_path / "columns.npz")
    types = {name: str(array.dtype) for name, array in _columns(tmp_path / "columns.npz").items()}
    floats = dict.fromkeys(("kld", "nll", "nll_reference", "ear", "confidence"), "float64")
    assert types == {"prompt": "int32", "top1": "bool", **floats}


def test_a_forbidden_token_of_the_reference_adds_nothing(tmp_path: Path) -> None:
    import numpy as np
    from scipy.special import rel_entr, softmax

    theirs, ours = _table(0), _table(1)
    theirs[:, 3] = ours[:, 3] = np.finfo(np.float32).min
    reference = _reference(tmp_path, theirs)
    score_columns(FakeModel(ours), _scored(reference), tmp_path, tmp_path / "columns.npz")
    before = [token for index in range(len(PROMPTS)) for token in _seen(index, reference.continuations)]
    p, q = (softmax(np.delete(table[before], 3, axis=1).astype(np.float64), axis=1) for table in (theirs, ours))
    found = _columns(tmp_path / "columns.npz")
    np.testing.assert_allclose(found["kld"], rel_entr(p, q).sum(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["ear"], np.minimum(p, q).sum(axis=1), rtol=0, atol=1e-6)


def test_padding_of_the_variants_vocabulary_is_left_out(tmp_path: Path) -> None:
    """Some runtimes pad the vocabulary; what is compared are the reference's entries."""
    import numpy as np

    theirs = _table(0)
    reference = _reference(tmp_path, theirs)
    padded = np.hstack([theirs, np.full((VOCABULARY, 5), 9.0, np.float32)])
    score_columns(FakeModel(padded), _scored(reference), tmp_path, tmp_path / "columns.npz")
    assert _columns(tmp_path / "columns.npz")["kld"] == pytest.approx(0.0, abs=1e-6)


def test_a_smaller_vocabulary_cannot_be_compared(tmp_path: Path) -> None:
    reference = _reference(tmp_path, _table(0))
    with pytest.raises(ModelError, match=r"^the variant has 9 vocabulary entries and the reference 11"):
        score_columns(FakeModel(_table(0)[:, :-2]), _scored(reference), tmp_path, tmp_path / "columns.npz")


def test_without_a_reference_the_likelihood_is_all_that_is_kept(tmp_path: Path) -> None:
    """A text is scored even where nothing can be compared; every prompt has the seconds that it took."""
    reference = _reference(tmp_path, _table(0))
    seconds = score_columns(FakeModel(_table(1)), _scored(reference), None, tmp_path / "alone.npz")
    score_columns(FakeModel(_table(1)), _scored(reference), tmp_path, tmp_path / "compared.npz")
    alone, compared = _columns(tmp_path / "alone.npz"), _columns(tmp_path / "compared.npz")
    assert set(alone) == {"prompt", "nll"}
    for name, values in alone.items():
        assert values.tolist() == compared[name].tolist()
    assert len(seconds) == len(PROMPTS)
    assert all(each >= 0 for each in seconds)


def test_the_full_logits_of_a_variant_are_never_kept(tmp_path: Path) -> None:
    """Seven numbers a position."""
    reference = _reference(tmp_path, _table(0))
    score_columns(FakeModel(_table(1)), _scored(reference), tmp_path, tmp_path / "columns.npz")
    assert {array.shape for array in _columns(tmp_path / "columns.npz").values()} == {(len(PROMPTS) * LENGTH,)}


def _make(folder: Path, model: FakeModel, seed: int = 0, text: str = "", context: int = 0) -> Reference:
    """A reference made by the package itself, of three prompts or of a text."""
    folder.mkdir()
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}).encode()
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    make_reference(
        model,
        FakeTokenizer(),
        checkpoint=Checkpoint(name="tiny", kind="hf", path=checkpoint, revision="local", content_hash="c"),
        task=Task(
            prompts_name="text:some.txt" if text else "three",
            prompts=(text,) if text else ("bc", "d", "efg"),
            reference=None,
            is_text=bool(text),
        ),
        conditions=Conditions(continuation_tokens=LENGTH, answer_tokens=5, seed=seed, context=context),
        folder=folder,
    )
    return Reference.load(folder / REFERENCE_FILE)


def test_the_reference_against_itself_is_exactly_nothing(tmp_path: Path) -> None:
    model = FakeModel(_table(5))
    reference = _make(tmp_path / "made", model)
    score_columns(model, _scored(reference), tmp_path / "made", tmp_path / "columns.npz")
    found = _columns(tmp_path / "columns.npz")
    assert (found["kld"] == 0).all()
    assert found["top1"].all()
    assert (found["nll"] == found["nll_reference"]).all()
    assert found["ear"] == pytest.approx(1.0, abs=1e-6)


def test_a_text_is_read_in_chunks_whose_second_halves_are_scored(tmp_path: Path) -> None:
    """Nothing is sampled or answered, and the log-probabilities are those after each id of a second half but the last."""
    import numpy as np
    from scipy.special import log_softmax as oracle

    table = _table(5)
    reference = _make(tmp_path / "made", FakeModel(table), text="abcdefghijk" * 2, context=8)
    assert reference.answers == ()
    assert reference.prompt_tokens == ((0, 1, 2, 3, 4), (8, 9, 10, 0, 1))
    assert reference.continuations == ((5, 6, 7), (2, 3, 4))
    logprobs = np.load(tmp_path / "made" / LOGPROBS_FILE)
    np.testing.assert_allclose(logprobs, oracle(table[[4, 5, 6, 1, 2, 3]].astype(np.float64), axis=1), rtol=1e-6, atol=1e-6)


def test_log_probabilities_that_do_not_fit_on_the_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are written: 6 positions of 11 float32 are 264 bytes, and 90 % of 200 may be used."""
    from types import SimpleNamespace

    monkeypatch.setattr("shutil.disk_usage", lambda _folder: SimpleNamespace(free=200))
    with pytest.raises(ModelError, match=r"6 positions x vocabulary of 11 x 4 bytes.* at most --chunks 1"):
        _make(tmp_path / "made", FakeModel(_table(5)), text="abcdefghijk" * 2, context=8)
    assert not (tmp_path / "made" / LOGPROBS_FILE).exists()


def test_a_made_reference_holds_ids_sampled_continuations_and_greedy_answers(tmp_path: Path) -> None:
    import numpy as np
    from scipy.special import log_softmax as oracle

    table = _table(5)
    reference = _make(tmp_path / "made", FakeModel(table))
    assert (reference.parameters, reference.checkpoint_dtype, reference.context_limit) == (6, "bf16", 64)
    assert reference.prompt_tokens == ((1, 2), (3,), (4, 5, 6))
    for continuation in reference.continuations:  # up to and with the first end of sequence, or as long as asked for
        assert 0 not in continuation[:-1]
        assert len(continuation) == LENGTH or continuation[-1] == 0
    before = [token for index in range(len(PROMPTS)) for token in _seen(index, reference.continuations)]
    logprobs = np.load(tmp_path / "made" / LOGPROBS_FILE)
    assert logprobs.dtype == np.float32
    np.testing.assert_allclose(logprobs, oracle(table[before].astype(np.float64), axis=1), rtol=1e-6, atol=1e-6)
    for answer, prompt in zip(reference.answers, reference.prompt_tokens, strict=True):
        token = prompt[-1]
        for said in answer.tokens:
            assert said == table[token].argmax()
            token = said


def test_continuations_are_repeatable_and_follow_the_seed(tmp_path: Path) -> None:
    model = FakeModel(_table(5, scale=0.5))
    first, again, other = _make(tmp_path / "a", model), _make(tmp_path / "b", model), _make(tmp_path / "c", model, seed=1)
    assert first == again
    assert first.continuations != other.continuations
    assert first.answers == other.answers


def test_nothing_is_scored_after_an_end_of_sequence(tmp_path: Path) -> None:
    """Of seven tokens asked for: three with the end, the end at once, and all where no end comes."""
    import numpy as np

    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    for before, token in ((2, 5), (5, 4), (4, 0), (0, 9), (3, 0), (6, 7), (7, 8), (8, 9), (9, 10), (10, 1), (1, 6)):
        table[before, token] = 60.0
    model = FakeModel(table)
    reference = _make(tmp_path / "made", model)
    assert reference.continuations == ((5, 4, 0), (0,), (7, 8, 9, 10, 1, 6, 7))
    assert len(np.load(tmp_path / "made" / LOGPROBS_FILE)) == 11
    score_columns(FakeModel(table + _table(3)), _scored(reference), tmp_path / "made", tmp_path / "columns.npz")
    found = _columns(tmp_path / "columns.npz")
    assert found["prompt"].tolist() == [0] * 3 + [1] + [2] * 7
    assert (found["nll_reference"] < 1e-6).all()  # every row is held against the token that came


def test_a_reference_that_says_nothing_is_refused(tmp_path: Path) -> None:
    class Silent(FakeModel):
        def generate(self, prompt: Sequence[int], limit: int, sampling: Sampling | None = None) -> Iterator[int]:
            return iter(())

    with pytest.raises(ModelError, match="generated nothing after a prompt"):
        _make(tmp_path / "made", Silent(_table(5)))


def _said(*tokens: int) -> FakeModel:
    """A model that says these tokens, each determined by the one before."""
    import numpy as np

    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    for before, token in zip((1, *tokens), tokens, strict=False):
        table[before, token] = 9.0
    return FakeModel(table)


def test_answers_end_with_the_first_end_of_sequence() -> None:
    (answer,) = answer_greedily(_said(2, 3, 0, 4), [("b", (1,))], 6, FakeTokenizer())
    assert (answer.prompt, answer.prompt_tokens) == ("b", (1,))
    assert (answer.tokens, answer.text) == ((2, 3, 0), "cda")


def test_answers_without_an_end_have_the_length_asked_for() -> None:
    (answer,) = answer_greedily(_said(2, 3, 4, 5, 6, 7), [("b", (1,))], 4, FakeTokenizer())
    assert answer.tokens == (2, 3, 4, 5)


@pytest.mark.parametrize(("begin", "end"), [(0, None), (None, -1)], ids=["all tokens", "one position short"])
def test_a_method_that_scores_other_positions_than_asked_is_refused(tmp_path: Path, begin: int | None, end: int | None) -> None:
    """Else every later position would be held against the wrong row of the reference."""
    reference = _reference(tmp_path, _table(0))

    class Careless(FakeModel):
        def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[Any]]:
            return super().score(tokens[:end], first if begin is None else begin)

    with pytest.raises(ModelError, match=f"did not score the {LENGTH} requested positions"):
        score_columns(Careless(_table(1)), _scored(reference), tmp_path, tmp_path / "columns.npz")
