"""How the length of a forward pass affects the similarity figures: the first prompts are scored again in passes half as long.

A low-precision kernel rounds differently with other positions in the pass (scales, outliers): int8's KLD changed by 2 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantbench.core.trace import Slicing
from quantbench.measuring.passes.similarity import Scored, score_columns
from quantbench.methods import SCORE_POSITIONS, LoadedModel, Sliced

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROMPTS = 4
"""Prompts, or chunks of a text, that are scored again; only the first few, to keep it cheap."""

UNSLICED = "the length of this method's forward passes cannot be chosen: its model has no score_sliced()"


@dataclass(frozen=True, slots=True)
class _Halved:
    """Reads each sequence in passes half as long as those of ``score``, so in at least two."""

    model: Sliced

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        whole = min(SCORE_POSITIONS, len(tokens))
        return self.model.score_sliced(tokens, first, -(-whole // 2))


def measure_slicing(
    model: LoadedModel, scored: Scored, reference: Path | None, columns: Path, again: Path, *, threads: int = 1
) -> Slicing | str:
    """Score the first prompts again and compare the figures with those of the same positions in ``columns``.

    ``reference`` is the folder with the reference's log-probabilities, without which there is nothing to compare; the new
    columns are written to ``again``. A string says why not even the length of a pass is known.
    """
    import numpy as np

    if not isinstance(model, Sliced):
        return UNSLICED
    if reference is None:
        return Slicing(positions=SCORE_POSITIONS)
    score_columns(_Halved(model), scored[:PROMPTS], reference, again, threads=threads)
    with np.load(columns, allow_pickle=False) as whole, np.load(again, allow_pickle=False) as halved:
        count = len(halved["kld"])
        kld, top1 = (abs(float(whole[name][:count].mean() - halved[name].mean())) for name in ("kld", "top1"))
    return Slicing(positions=SCORE_POSITIONS, kld=kld, top1=top1)
