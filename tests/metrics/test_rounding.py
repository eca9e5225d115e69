"""The rounding floor's columns: the means of what was scored with noise, or why there are none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from quantbench.core.record import Missing
from quantbench.metrics.divergence import divergence
from quantbench.metrics.rounding import rounding

if TYPE_CHECKING:
    from pathlib import Path

    from quantbench.core.trace import Trace

NAMES = [column.name for column in rounding.columns]


def test_they_are_the_divergences_own_figures_of_the_noisy_positions(trace: Trace, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    path = tmp_path / "rounded-0.npz"
    kld, nll = rng.gamma(0.5, 1e-4, 60), rng.gamma(2.0, 1.0, 60)
    ear, top1 = 1 - rng.beta(1.0, 90.0, 60), rng.random(60) < 0.9
    prompt = np.repeat(np.arange(3, dtype=np.int32), 20)
    np.savez(path, prompt=prompt, kld=kld, nll=nll, nll_reference=nll, ear=ear, top1=top1)
    values = rounding.compute(replace(trace, rounded=path), None)
    same = divergence.compute(replace(trace, columns=path), None)
    assert [values[name] for name in NAMES] == pytest.approx(
        [same["kld_mean"], same["kld_mean_se"], same["top1_agreement"], ear.mean()]
    )


def test_where_there_are_none_the_reason_stands(trace: Trace) -> None:
    def why(trace: Trace) -> Missing:
        (reason,) = set(rounding.compute(trace, None).values())
        assert isinstance(reason, Missing)
        return reason

    assert why(trace) == Missing("the rounding floor is measured with the reference's control only: see its row")
    assert why(replace(trace, absent={"rounded": "no layers"})) == Missing("no layers")
    none = "no reference to compare with: it cannot open this checkpoint here"
    assert why(replace(trace, columns=None)) == Missing(none)
    assert why(replace(trace, columns=None, absent={"columns": "a server"})) == Missing("a server")
