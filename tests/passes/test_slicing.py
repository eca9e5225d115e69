"""What other forward passes do to the figures, on a model whose logits hang on the length of a pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from quantbench.core.record import Missing
from quantbench.core.trace import Slicing
from quantbench.measuring.passes.similarity import LOGPROBS_FILE, score_columns
from quantbench.measuring.passes.slicing import PROMPTS, UNSLICED, measure_slicing
from quantbench.metrics.slicing import slicing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

VOCABULARY = 13
RNG = np.random.default_rng(3)
CLEAN, WHOLE, HALVED = (RNG.normal(0, 2, (VOCABULARY, VOCABULARY)).astype(np.float32) for _ in range(3))
SCORED = [((1, 2), (3, 4, 5)), ((6,), (7, 8)), ((1, 9, 2), (3,)), ((4,), (4, 4, 1)), ((5,), (6, 7))]


class Unsliced:
    """Row t of a table are the logits after token t."""

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        yield WHOLE[list(tokens[first:])]


class Fickle(Unsliced):
    """Says something else as soon as a sequence is read in more than one pass."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def score_sliced(self, tokens: Sequence[int], first: int, positions: int) -> Iterator[NDArray[np.float32]]:
        self.asked.append((len(tokens), positions))
        yield (WHOLE if positions >= len(tokens) else HALVED)[list(tokens[first:])]


def _seen() -> list[list[int]]:
    return [[prompt[-1], *rest[:-1]] for prompt, rest in SCORED]


def _measured(model: Unsliced, folder: Path, reference: Path | None) -> Slicing | str:
    score_columns(model, SCORED, reference, folder / "columns.npz")
    return measure_slicing(model, SCORED, reference, folder / "columns.npz", folder / "again.npz")  # type: ignore[arg-type]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    from scipy.special import log_softmax

    np.save(tmp_path / LOGPROBS_FILE, log_softmax(CLEAN[np.concatenate(_seen())], axis=1))
    return tmp_path


def test_the_figures_of_the_first_prompts_in_passes_half_as_long(tmp_path: Path, reference: Path) -> None:
    """Against scipy, over the positions of the first four prompts; each is read in two passes at least."""
    from scipy.special import rel_entr, softmax

    model = Fickle()
    found = _measured(model, tmp_path, reference)
    seen = np.concatenate(_seen()[:PROMPTS])
    tables = [softmax(table.astype(np.float64), axis=1)[seen] for table in (CLEAN, WHOLE, HALVED)]
    kld = [rel_entr(tables[0], other).sum(axis=1).mean() for other in tables[1:]]
    top1 = [(tables[0].argmax(axis=1) == other.argmax(axis=1)).mean() for other in tables[1:]]
    assert isinstance(found, Slicing)
    assert (found.kld, found.top1) == pytest.approx((abs(kld[0] - kld[1]), abs(top1[0] - top1[1])), rel=1e-5)
    assert found.kld
    assert model.asked == [(4, 2), (2, 1), (3, 2), (3, 2)]


def test_without_a_reference_only_the_length_of_a_pass_is_known(tmp_path: Path) -> None:
    assert _measured(Fickle(), tmp_path, None) == Slicing(positions=256)


def test_a_method_that_cannot_slice_says_so_and_is_measured_all_the_same(tmp_path: Path, reference: Path) -> None:
    assert _measured(Unsliced(), tmp_path, reference) == UNSLICED


def test_columns_hold_the_figures_or_the_reason() -> None:
    from types import SimpleNamespace

    def columns(seen: Slicing | None, **absent: str) -> list[object]:
        trace = SimpleNamespace(slicing=seen, absent=absent)
        values = slicing.compute(trace, None)  # type: ignore[arg-type]  # it looks at nothing else
        return [values[name] for name in ("score_positions", "kld_slicing", "top1_slicing")]

    none = Missing("no reference to compare with: it cannot open this checkpoint here")
    assert columns(Slicing(positions=256, kld=0.25, top1=0.5)) == [256, 0.25, 0.5]
    assert columns(Slicing(positions=256)) == [256, none, none]
    assert columns(None, slicing=UNSLICED) == [Missing(UNSLICED)] * 3
    assert columns(None, columns="a server") == [Missing("a server")] * 3
