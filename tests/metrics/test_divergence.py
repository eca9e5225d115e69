"""Divergence columns against numpy and an independent clustered error, on known per-position columns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.record import Missing
from quantbench.metrics.divergence import divergence

if TYPE_CHECKING:
    from pathlib import Path

    from quantbench.core.record import Value
    from quantbench.core.trace import Trace

STANDARD_ERRORS = ("kld_mean_se", "top1_agreement_se", "delta_p_rms_se", "ppl_se", "ppl_ratio_se")


def _sandwich(values: object, prompt: object) -> float:
    """Cluster-robust error of a mean by group sums: sqrt(C/(C-1) sum_c (S_c - n_c m)^2) / n, over a table of sums."""
    import numpy as np

    values, prompt = np.asarray(values, dtype=float), np.asarray(prompt)
    sums = np.bincount(prompt, weights=values)
    sizes = np.bincount(prompt)
    count = np.count_nonzero(sizes)
    residuals = sums - sizes * values.mean()
    return float(np.sqrt(count / (count - 1) * (residuals**2).sum()) / len(values))


@given(seed=st.integers(0, 2**32 - 1), prompts=st.integers(2, 6), positions=st.integers(1, 30))
def test_means_errors_and_extremes_agree_with_numpy(
    tmp_path_factory: pytest.TempPathFactory, seed: int, prompts: int, positions: int
) -> None:
    import numpy as np

    rng = np.random.default_rng(seed)
    size = prompts * positions
    prompt = np.sort(rng.integers(0, prompts, size).astype(np.int32))
    prompt[0], prompt[-1] = 0, prompts - 1
    nll_reference = rng.gamma(2.0, 1.0, size)
    nll = np.abs(nll_reference + rng.normal(0.01, 0.3, size))
    kld = rng.gamma(0.5, 0.05, size)
    top1 = rng.random(size) < 0.9
    path = tmp_path_factory.mktemp("columns") / "columns-0.npz"
    np.savez(path, prompt=prompt, kld=kld, nll=nll, nll_reference=nll_reference, top1=top1)
    values = _compute(path)
    delta_p = np.exp(-nll) - np.exp(-nll_reference)
    ppl, ratio, rms = np.exp(nll.mean()), np.exp(nll.mean()) / np.exp(nll_reference.mean()), np.sqrt((delta_p**2).mean())
    expected = {
        "scored_tokens": size,
        "kld_mean": kld.mean(),
        "kld_mean_se": _sandwich(kld, prompt),
        "kld_median": np.quantile(kld, 0.5),
        "kld_max": kld.max(),
        "top1_agreement": np.count_nonzero(top1) / size,
        "top1_agreement_se": _sandwich(top1, prompt),
        "delta_p_rms": rms,
        "delta_p_rms_se": _sandwich(delta_p**2, prompt) / (2 * rms),
        "ppl": ppl,
        "ppl_se": ppl * _sandwich(nll, prompt),
        "ppl_ratio": ratio,
        "ppl_ratio_se": ratio * _sandwich(nll - nll_reference, prompt),
    }
    found = {name: value for name, value in values.items() if name != "kld_p99"}
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def _compute(path: Path | None) -> dict[str, Value]:
    """The metric looks at the columns only."""
    from types import SimpleNamespace

    return dict(divergence.compute(SimpleNamespace(columns=path), None))  # type: ignore[arg-type]


def test_the_reference_against_itself_is_exactly_nothing(tmp_path: Path) -> None:
    import numpy as np

    nll = np.array([0.5, 1.0, 2.0, 0.1])
    path = tmp_path / "columns-0.npz"
    np.savez(
        path, prompt=np.array([0, 0, 1, 1], np.int32), kld=np.zeros(4), nll=nll, nll_reference=nll, top1=np.ones(4, dtype=bool)
    )
    values = _compute(path)
    assert (values["kld_mean"], values["kld_max"], values["delta_p_rms"]) == (0.0, 0.0, 0.0)
    assert (values["top1_agreement"], values["ppl_ratio"]) == (1.0, 1.0)
    assert (values["kld_mean_se"], values["delta_p_rms_se"], values["ppl_ratio_se"]) == (0.0, 0.0, 0.0)
    assert values["ppl"] == pytest.approx(math.exp(0.9))


def test_the_paired_ratio_is_far_surer_than_the_perplexity(trace: Trace) -> None:
    """The prompts' own difficulty is in both and cancels."""
    values = divergence.compute(trace, None)
    assert values["ppl_ratio_se"] / values["ppl_ratio"] < 0.5 * values["ppl_se"] / values["ppl"]


@pytest.mark.parametrize(("size", "known"), [(999, False), (1000, True)])
def test_a_p99_takes_a_thousand_positions(size: int, known: bool, tmp_path: Path) -> None:
    import numpy as np

    kld = np.random.default_rng(3).gamma(0.5, 0.05, size)
    path = tmp_path / "columns-0.npz"
    np.savez(
        path, prompt=np.arange(size, dtype=np.int32) % 2, kld=kld, nll=kld, nll_reference=kld, top1=np.ones(size, dtype=bool)
    )
    found = _compute(path)["kld_p99"]
    assert found == (pytest.approx(float(np.quantile(kld, 0.99))) if known else Missing("a p99 needs 1000 scored tokens"))


def test_one_prompt_has_figures_without_errors_and_says_why(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "columns-0.npz"
    np.savez(
        path, prompt=np.zeros(3, np.int32), kld=np.array([0.1, 0.2, 0.3]), nll=np.ones(3), nll_reference=np.ones(3),
        top1=np.ones(3, dtype=bool),
    )  # fmt: skip
    values = _compute(path)
    assert values["kld_mean"] == pytest.approx(0.2)
    for name in STANDARD_ERRORS:
        assert values[name] == Missing("one prompt has no spread between prompts")


def test_without_a_reference_every_column_says_so(trace: Trace) -> None:
    values = divergence.compute(replace(trace, columns=None), None)
    assert values == {
        column.name: Missing("no reference to compare with: it cannot open this checkpoint here")
        for column in divergence.columns
    }


def test_a_hopeless_variant_has_an_infinite_perplexity_and_no_crash(tmp_path: Path) -> None:
    """A row is never lost because a broken model is too broken."""
    import numpy as np

    path = tmp_path / "columns-0.npz"
    np.savez(
        path, prompt=np.array([0, 1], np.int32), kld=np.full(2, 900.0), nll=np.full(2, 900.0), nll_reference=np.ones(2),
        top1=np.zeros(2, dtype=bool),
    )  # fmt: skip
    values = _compute(path)
    assert values["kld_mean"] == 900.0
    for name in ("ppl", "ppl_ratio"):
        assert isinstance(values[name], Missing) or values[name] == math.inf


def test_every_column_is_filled(trace: Trace) -> None:
    assert set(divergence.compute(trace, None)) == {column.name for column in divergence.columns}
