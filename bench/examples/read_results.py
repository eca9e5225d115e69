"""What stored results say, in plain pandas. Copy what you need.

    python bench/examples/read_results.py [RESULTS]

It loads the tables, picks the last run, and prints: which variants no smaller one beats (Pareto), latencies from the raw
samples beside the stored medians, KL divergence prompt by prompt, where answers part, and a tutorial's table as a DataFrame.
"""

from __future__ import annotations

import sys

import pandas as pd  # noqa: TID253 - a script may start slowly

import quantbench

KEYS = ["run_id", "scenario_id", "repeat"]
"""What a row of ``samples`` and ``outputs`` shares with its row of ``scenarios``."""


def last_run(scenarios: pd.DataFrame) -> pd.DataFrame:
    """The measured rows of the run that started last, named ``method/precision``; the control is left out."""
    last = scenarios.loc[scenarios["started_at"].idxmax(), "run_id"]
    rows = scenarios[(scenarios["run_id"] == last) & (scenarios["status"] == "ok") & ~scenarios["control"]]
    return rows.assign(variant=rows["method"] + "/" + rows["precision"])


def pareto(rows: pd.DataFrame) -> pd.DataFrame:
    """Per model and prompt set the variants that have a lower mean KLD than every smaller one."""
    measured = rows.dropna(subset=["weight_bytes", "kld_mean"]).sort_values(["weight_bytes", "kld_mean"])
    best_so_far = measured.groupby(["model", "prompts"])["kld_mean"].transform(lambda kld: kld.cummin().shift())
    front = measured[~(measured["kld_mean"] >= best_so_far)]
    return front[["model", "prompts", "variant", "weight_bytes", "bits_per_weight", "kld_mean", "kld_mean_se", "decode_tps"]]


def latencies(rows: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Seconds between tokens from the raw samples, beside the median that the run stored."""
    gaps = samples[samples["phase"] == "gap"].merge(rows[[*KEYS, "model", "variant", "itl_s"]], on=KEYS)
    grouped = gaps.groupby(["model", "variant"])
    return pd.DataFrame(
        {
            "samples": grouped.size(),
            "median_s": grouped["value_s"].median(),
            "p90_s": grouped["value_s"].quantile(0.9),
            "itl_s": grouped["itl_s"].median(),
        }
    )


def kld_by_prompt(rows: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
    """Mean KLD in nats: a row per variant, a column per prompt."""
    joined = outputs.merge(rows[[*KEYS, "model", "prompts", "variant"]], on=KEYS)
    return joined.pivot_table(index=["model", "prompts", "variant"], columns="index", values="kld_mean")


def kld_by_position(rows: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
    """Percentiles of the KLD over all scored positions, in nats."""
    joined = outputs.merge(rows[[*KEYS, "model", "variant"]], on=KEYS).dropna(subset="kld")
    positions = joined[["model", "variant", "kld"]].explode("kld").astype({"kld": "float64"})
    grouped = positions.groupby(["model", "variant"])["kld"]
    return pd.DataFrame({f"p{percent}": grouped.quantile(percent / 100) for percent in (50, 90, 99)})


def first_differences(rows: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
    """Answers that differ, the earliest first; texts are what models wrote, so they are shown escaped."""
    joined = outputs.merge(rows[[*KEYS, "variant"]], on=KEYS)
    differing = joined[~joined["exact_match"]].sort_values("first_divergence")
    texts = {name: differing[name].map(lambda text: ascii(text)[:40]) for name in ("reference_text", "variant_text")}
    return differing.assign(**texts)[["variant", "index", "first_divergence", *texts]]


def main(results: str = "results") -> None:
    """Print it all."""
    scenarios = quantbench.load(results)
    samples = quantbench.load(results, table="samples")
    outputs = quantbench.load(results, table="outputs")
    rows = last_run(scenarios)
    precision = quantbench.tables.precision(rows)
    shown = {
        "No smaller variant is nearer to the reference": pareto(rows),
        "Time between tokens": latencies(rows, samples),
        "KLD by prompt": kld_by_prompt(rows, outputs),
        "KLD by position, percentiles": kld_by_position(rows, outputs),
        "Answers that part first": first_differences(rows, outputs).head(),
        "Precision levels": precision[[each for each in precision if each.startswith(("name", "claimed_", "weight_", "kld_"))]],
    }
    for title, frame in shown.items():
        print(f"\n{title}\n{frame.to_string()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
