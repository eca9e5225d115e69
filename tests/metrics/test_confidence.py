"""KL divergence by the reference's confidence, against pandas."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.record import Missing
from quantbench.metrics.confidence import LEAST_POSITIONS, confidence

if TYPE_CHECKING:
    from pathlib import Path

    from quantbench.core.record import Value
    from quantbench.core.trace import Trace

DECILES = [f"kld_confidence_d{number}" for number in range(1, 11)]


def _values(path: Path, **arrays: object) -> dict[str, Value]:
    """The metric looks at the columns only."""
    from types import SimpleNamespace

    np.savez(path, **arrays)  # type: ignore[arg-type]
    return dict(confidence.compute(SimpleNamespace(columns=path), None))  # type: ignore[arg-type]


def _drawn(seed: int, size: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    sure = rng.beta(0.7, 0.7, size)
    return {"prompt": np.arange(size, dtype=np.int32) * 5 // size, "kld": rng.gamma(0.5, 0.1 * (1 - sure)), "confidence": sure}


@given(seed=st.integers(0, 2**32 - 1), tenth=st.integers(LEAST_POSITIONS // 10, 60))
def test_deciles_are_those_of_pandas(tmp_path_factory: pytest.TempPathFactory, seed: int, tenth: int) -> None:
    drawn = _drawn(seed, 10 * tenth)
    values = _values(tmp_path_factory.mktemp("columns") / "scored.npz", **drawn)
    frame = pd.DataFrame(drawn)
    means = frame.groupby(pd.qcut(frame["confidence"], 10, labels=False))["kld"].mean()
    assert [values[name] for name in DECILES] == pytest.approx(means.tolist())
    sure = frame[frame["confidence"] > frame["confidence"].median()]
    assert values["confidence_median"] == pytest.approx(frame["confidence"].median())
    assert values["kld_confident"] == pytest.approx(sure["kld"].mean())
    residuals = sure.groupby("prompt")["kld"].apply(lambda kld: (kld - sure["kld"].mean()).sum())
    error = np.sqrt(len(residuals) / (len(residuals) - 1) * (residuals**2).sum()) / len(sure)
    assert values["kld_confident_se"] == pytest.approx(error)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(LEAST_POSITIONS, 300))
def test_no_position_is_lost_or_counted_twice(tmp_path_factory: pytest.TempPathFactory, seed: int, size: int) -> None:
    """Whatever their number, and however many have the same confidence: parts differ by one position, and sum up."""
    drawn = _drawn(seed, size)
    drawn["confidence"] = np.round(np.asarray(drawn["confidence"]), 1)
    values = _values(tmp_path_factory.mktemp("columns") / "scored.npz", **drawn)
    sizes = [size // 10 + (number < size % 10) for number in range(10)]
    total = sum(values[name] * count for name, count in zip(DECILES, sizes, strict=True))  # type: ignore[operator]
    assert total == pytest.approx(float(np.sum(drawn["kld"])))


def test_damage_where_the_reference_is_sure_shows_there(tmp_path: Path) -> None:
    """Two variants of one mean KLD: one is off where several tokens are as likely, the other where one token is certain."""
    sure = np.linspace(0.1, 1.0, 200)
    known = {"prompt": np.arange(200, dtype=np.int32) % 4, "confidence": sure}
    harmless = _values(tmp_path / "a.npz", kld=np.where(sure < 0.3, 0.2, 0.0), **known)
    harmful = _values(tmp_path / "b.npz", kld=np.where(sure > 0.8, 0.2, 0.0), **known)
    assert harmless["kld_confident"] == 0.0
    assert harmful["kld_confident"] == pytest.approx(0.2 * 2 * (sure > 0.8).mean())
    assert (harmless["kld_confidence_d1"], harmful["kld_confidence_d1"]) == (pytest.approx(0.2), 0.0)


def test_where_there_are_none_the_reason_stands(trace: Trace, tmp_path: Path) -> None:
    none = Missing("no reference to compare with: it cannot open this checkpoint here")
    assert set(confidence.compute(replace(trace, columns=None), None).values()) == {none}
    before = Missing("it was measured before quantbench kept this; run it again")
    assert set(confidence.compute(trace, None).values()) == {before}
    few = Missing("deciles of the reference's confidence need 100 scored tokens")
    values = _values(tmp_path / "few.npz", **_drawn(1, LEAST_POSITIONS - 1))
    assert isinstance(values.pop("confidence_median"), float)
    assert set(values.values()) == {few}
    assert set(values) | {"confidence_median"} == {column.name for column in confidence.columns}
