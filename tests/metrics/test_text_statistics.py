"""llama-perplexity's statistics against a transcription of its C++, float for float, and the columns made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantbench.core import llama_perplexity
from quantbench.core.record import Missing
from quantbench.metrics import METRICS
from quantbench.metrics.distribution import distribution
from quantbench.metrics.divergence import divergence
from quantbench.metrics.perplexity import perplexity
from quantbench.metrics.scoring import scoring

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from quantbench.core.record import Value
    from quantbench.core.trace import Trace

Columns = dict[str, "NDArray[Any]"]
OURS = (divergence, perplexity, distribution)
NO_REFERENCE = Missing("no reference to compare with: it cannot open this checkpoint here")


def _columns(seed: int, size: int, prompts: int = 4, noise: float = 0.2) -> Columns:
    """Likelihoods, divergences and equal tops of a variant that differs by ``noise`` nats."""
    rng = np.random.default_rng(seed)
    nll_reference = rng.gamma(2.0, 1.0, size)
    return {
        "prompt": np.sort(np.arange(size, dtype=np.int32) % prompts),
        "nll": np.abs(nll_reference + rng.normal(0.02, noise, size)),
        "nll_reference": nll_reference,
        "kld": rng.gamma(0.5, 0.02, size) - 1e-6,
        "top1": rng.random(size) < 0.9,
    }


def _write(path: Path, columns: Columns) -> Path:
    np.savez(path, **columns)
    return path


def _values(trace: Trace, columns: Columns, folder: Path) -> dict[str, Value]:
    """All columns of the three metrics."""
    seen = replace(trace, columns=_write(folder / "scored.npz", columns))
    return {name: value for each in OURS for name, value in each.compute(seen, None).items()}


def _transcribed(columns: Columns) -> dict[str, float]:
    """``kl_divergence()`` of perplexity.cpp in its own steps: float32 values, double sums of values and of their squares."""
    f32 = np.float32
    nll, base = columns["nll"].astype(f32), columns["nll_reference"].astype(f32)
    change = np.exp(-nll) - np.exp(-base)
    count = len(nll)

    def uncertain(values: NDArray[Any], squares: NDArray[Any]) -> tuple[float, float]:
        mean = math.fsum(values.tolist()) / count
        spread = math.fsum(squares.tolist()) / count - mean * mean
        return mean, math.sqrt(spread / (count - 1)) if spread > 0 and count > 10 else 0.0

    def percentile(ordered: NDArray[Any], fraction: float) -> float:
        place = f32(f32(fraction) * f32(count - 1))
        index = int(place)
        place = f32(place - f32(index))
        return float(f32(f32(f32(1) - place) * ordered[index]) + f32(place * ordered[min(index + 1, count - 1)]))

    def middle(ordered: NDArray[Any]) -> float:
        return float(ordered[count // 2]) if count % 2 else 0.5 * float(ordered[count // 2] + ordered[count // 2 - 1])

    (m, u), (mb, ub) = uncertain(nll, nll * nll), uncertain(base, base * base)
    cov = (math.fsum((nll * base).tolist()) / count - m * mb) / (count - 1)
    ppl, ppl_base, ratio = math.exp(m), math.exp(mb), math.exp(m - mb)
    ratio_error = math.sqrt(max(u * u + ub * ub - 2 * cov, 0.0))
    difference_error = math.sqrt(max((ppl * u) ** 2 + (ppl_base * ub) ** 2 - 2 * ppl * ppl_base * cov, 0.0))
    square = (change * change).astype(np.float64)
    (mse, mse_error), (dp, dp_error) = uncertain(square, square * square), uncertain(change, square)
    kld, kld_error = uncertain(columns["kld"], columns["kld"] ** 2)
    top = np.count_nonzero(columns["top1"]) / count
    klds, changes = np.sort(columns["kld"].astype(f32)), np.sort(change)
    fractions = {"p999": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.9, "p10": 0.1, "p05": 0.05, "p01": 0.01, "p001": 0.001}
    return {
        "ppl": ppl, "ppl_se_iid": ppl * u, "ppl_reference": ppl_base, "ppl_reference_se_iid": ppl_base * ub,
        "nll_correlation": cov / (u * ub), "ln_ppl_ratio": m - mb, "ln_ppl_ratio_se_iid": ratio_error,
        "ppl_ratio": ratio, "ppl_ratio_se_iid": ratio * ratio_error,
        "ppl_difference": ppl - ppl_base, "ppl_difference_se_iid": difference_error,
        "kld_mean": kld, "kld_mean_se_iid": kld_error, "kld_max": float(klds[-1]), "kld_min": float(klds[0]),
        "kld_median": middle(klds), **{f"kld_{name}": percentile(klds, each) for name, each in fractions.items()},
        "delta_p_mean": dp, "delta_p_mean_se_iid": dp_error, "delta_p_median": middle(changes),
        "delta_p_max": float(changes[-1]), "delta_p_min": float(changes[0]),
        **{f"delta_p_{name}": percentile(changes, each) for name, each in {**fractions, "p75": 0.75, "p25": 0.25}.items()},
        "delta_p_rms": math.sqrt(mse), "delta_p_rms_se_iid": 0.5 / math.sqrt(mse) * mse_error,
        "top1_agreement": top, "top1_agreement_se_iid": math.sqrt(top * (1 - top) / (count - 1)),
    }  # fmt: skip


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(100, 400))
@settings(max_examples=40)
def test_every_statistic_is_llama_perplexitys(seed: int, size: int) -> None:
    columns = _columns(seed, size)
    expected = _transcribed(columns)
    found = llama_perplexity.statistics(columns)
    assert set(found) == set(expected)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(100, 300), fraction=st.sampled_from([0.999, 0.95, 0.5, 0.1, 0.001]))
@settings(max_examples=40)
def test_percentiles_are_numpys_to_float32(seed: int, size: int, fraction: float) -> None:
    values = np.sort(np.random.default_rng(seed).gamma(0.5, 0.02, size).astype(np.float32))
    assert llama_perplexity.percentile(values, fraction) == pytest.approx(float(np.quantile(values, fraction)), rel=1e-4)


def test_columns_hold_what_is_printed_and_clustered_errors_beside_it(trace: Trace, tmp_path: Path) -> None:
    """Each printed statistic has a column; the errors under ``_se_iid``, ours under ``_se``."""
    columns = _columns(1, 12_000)
    values = _values(trace, columns, tmp_path)
    printed = llama_perplexity.statistics(columns)
    assert {name: values[name] for name in printed} == pytest.approx(printed, rel=1e-6, abs=1e-9)
    uncertain = {name.removesuffix("_iid") for name in printed if name.endswith("_se_iid")}
    assert len(uncertain) == 9
    assert uncertain <= {column.name for each in METRICS for column in each.columns}


def test_clustered_errors_of_tokens_that_are_their_own_prompt_are_llama_perplexitys(trace: Trace, tmp_path: Path) -> None:
    """Then both estimators are one: the paired difference's delta method included."""
    columns = {**_columns(2, 300), "prompt": np.arange(300, dtype=np.int32)}
    values = _values(trace, columns, tmp_path)
    pairs = [name for name in values if name.endswith("_se") and f"{name}_iid" in values]
    assert len(pairs) == 9
    for name in pairs:
        assert values[name] == pytest.approx(values[f"{name}_iid"], rel=1e-6), name


def test_clustered_errors_of_the_difference_follow_the_covariance_of_chunks(trace: Trace, tmp_path: Path) -> None:
    """Delta method on the covariance matrix of both chunk means, chunks of one length."""
    columns = _columns(3, 400, prompts=8)
    values = _values(trace, columns, tmp_path)
    means = [columns[name].reshape(8, 50).mean(axis=1) for name in ("nll", "nll_reference")]
    covariance = np.cov(means) / 8
    ours, theirs = math.exp(columns["nll"].mean()), math.exp(columns["nll_reference"].mean())
    for name, gradient in {
        "ppl_reference": (0.0, theirs), "ln_ppl_ratio": (1.0, -1.0), "ppl_difference": (ours, -theirs), "ppl": (ours, 0.0),
    }.items():  # fmt: skip
        assert values[f"{name}_se"] == pytest.approx(math.sqrt(gradient @ covariance @ np.array(gradient)), rel=1e-9), name
    assert values["ppl_reference"] == pytest.approx(theirs)
    assert values["ppl_difference"] == pytest.approx(ours - theirs)
    assert values["ln_ppl_ratio"] == pytest.approx(math.log(ours / theirs))


def test_chunks_that_differ_as_a_whole_are_less_sure_than_independent_tokens(trace: Trace, tmp_path: Path) -> None:
    """Why both errors are kept."""
    columns = _columns(4, 400, prompts=8)
    columns["kld"] = columns["kld"] + np.repeat(np.linspace(0, 0.1, 8), 50)
    values = _values(trace, columns, tmp_path)
    assert values["kld_mean_se"] > 3 * values["kld_mean_se_iid"]


@pytest.mark.parametrize(
    ("size", "missing"),
    [
        (99, {"kld_p95", "delta_p_median", "kld_mean_se_iid", "ppl_se_iid", "nll_correlation", "delta_p_p01", "kld_p001"}),
        (100, {"delta_p_p01", "kld_p01", "delta_p_p99", "kld_p999", "delta_p_p001"}),
        (1000, {"kld_p999", "delta_p_p999", "kld_p001", "delta_p_p001"}),
        (10_000, set()),
    ],
)
def test_what_few_positions_cannot_say_is_missing(size: int, missing: set[str], trace: Trace, tmp_path: Path) -> None:
    """Ten positions must lie beyond a percentile in the tails; below 100 llama-perplexity prints nothing."""
    values = _values(trace, _columns(5, size), tmp_path)
    found = {name for name, value in values.items() if isinstance(value, Missing)}
    assert missing <= found
    assert (found == set()) == (size == 10_000)
    assert not {"ppl_reference", "ln_ppl_ratio_se", "ppl_difference_se", "delta_p_mean", "delta_p_mean_se"} & found
    if size == 100:
        assert values["kld_p01"] == Missing("a p99 or p01 needs 1000 scored tokens")


def test_a_scored_text_without_a_reference_has_its_perplexity(trace: Trace, tmp_path: Path) -> None:
    """Everything that compares says why it is not there."""
    columns = {name: values for name, values in _columns(6, 200).items() if name in ("prompt", "nll")}
    values = _values(trace, columns, tmp_path)
    known = {name: value for name, value in values.items() if not isinstance(value, Missing)}
    assert set(known) == {"ppl", "ppl_se", "ppl_se_iid", "scored_tokens"}
    assert known["ppl"] == pytest.approx(math.exp(columns["nll"].mean()))
    assert known["scored_tokens"] == 200
    assert {value for name, value in values.items() if name not in known} == {NO_REFERENCE}


def test_where_nothing_was_scored_every_column_says_so(trace: Trace) -> None:
    for each in OURS:
        assert set(each.compute(replace(trace, columns=None), None).values()) == {NO_REFERENCE}


def test_the_reference_against_itself_has_no_error_and_a_full_correlation(trace: Trace, tmp_path: Path) -> None:
    columns = _columns(7, 200)
    columns |= {"nll": columns["nll_reference"], "kld": np.zeros(200), "top1": np.ones(200, dtype=bool)}
    values = _values(trace, columns, tmp_path)
    assert values["nll_correlation"] == pytest.approx(1.0)
    for name in ("ln_ppl_ratio", "ppl_difference", "delta_p_mean", "kld_p95", "delta_p_min", "delta_p_max"):
        assert values[name] == 0.0, name
    for name in ("kld_mean_se_iid", "delta_p_rms_se_iid", "top1_agreement_se_iid", "ppl_difference_se", "delta_p_mean_se"):
        assert values[name] == pytest.approx(0.0, abs=1e-12), name


def test_likelihoods_that_never_vary_have_no_correlation(trace: Trace, tmp_path: Path) -> None:
    columns = {**_columns(8, 200), "nll_reference": np.ones(200)}
    assert _values(trace, columns, tmp_path)["nll_correlation"] == Missing("a likelihood that never varies has no correlation")


def test_a_hopeless_variant_loses_only_what_a_float_cannot_hold(trace: Trace, tmp_path: Path) -> None:
    from quantbench.metrics import evaluate

    columns = {**_columns(9, 200), "nll": np.full(200, 900.0) + np.arange(200)}
    values = evaluate(replace(trace, columns=_write(tmp_path / "broken.npz", columns)), None)
    for name in ("ppl", "ppl_se_iid", "ppl_difference", "ppl_difference_se", "ppl_ratio", "ppl_ratio_se_iid"):
        assert isinstance(values[name], Missing), name
    assert values["ppl_reference"] == pytest.approx(math.exp(columns["nll_reference"].mean()))
    assert values["ln_ppl_ratio"] > 900


def test_scoring_speed_is_tokens_read_over_the_seconds_of_all_chunks(trace: Trace) -> None:
    seen = replace(trace, score_s=(0.5, 1.5), score_tokens=1022)
    assert scoring.compute(seen, None) == {"scoring_tps": 511.0}
    assert scoring.compute(replace(trace, columns=None), None) == {"scoring_tps": Missing("nothing was scored")}


@pytest.mark.parametrize("name", ["divergence", "perplexity", "distribution", "scoring"])
def test_every_column_has_unit_meaning_formula_and_source(name: str) -> None:
    for column in METRICS[name].columns:
        assert all((column.unit, column.doc, column.formula, column.source)), column.name
        assert column.formula.isascii()
        assert len(column.doc) < 140


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 400))
@settings(max_examples=50)
def test_the_reference_has_no_perplexity_difference_from_itself(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int
) -> None:
    """Exactly none: numpy's pairwise sum and an exact one differ in the last bit."""
    columns = _columns(seed, size)
    columns["nll"] = columns["nll_reference"]
    seen = SimpleNamespace(columns=_write(tmp_path_factory.mktemp("columns") / "scored.npz", columns))
    values = perplexity.compute(seen, None)  # type: ignore[arg-type]  # it looks at the columns only
    assert (values["ppl_difference"], values["ppl_difference_se"], values["ln_ppl_ratio"]) == (0, 0, 0)
