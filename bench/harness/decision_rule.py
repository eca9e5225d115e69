"""Is the decision rule of comparisons worth its name? False alarms and power, from fresh runs of a small matrix.

    python bench/harness/decision_rule.py collect RESULTS [RUNS]     # RUNS fresh pytest runs, 45 s each on two cores
    python bench/harness/decision_rule.py evaluate RESULTS

Every run is a pytest of its own, in which every variant has a process of its own. An A/A trial takes three disjoint sets of
``PROCESSES`` runs as baseline, candidate and second measurement of what was flagged; nothing changed between them, so whatever
is reported is a false alarm. Sets are drawn at random, and as windows of consecutive runs, which a drifting machine tells
apart.
For the power the same trials are judged with one cell's figures slowed down.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING

from quantbench.core.verdict import Comparand, Rule, Side, Verdict, judge

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RUNS = 24
PROCESSES = 5
DRAWS = 2000
POWER_DRAWS = 100
SLOWDOWNS = (0.02, 0.05, 0.10, 0.20)
PHASES = {"prefill": ("prefill_tps", "prefill_ratio"), "decode": ("itl_s", "itl_ratio")}
"""What the rule looks at: the raw column and the ratio to the anchor."""
MATRIX = Path(__file__).with_name("decision.toml")

Runs = dict[str, list[tuple[float, float | None]]]
"""By cell, for each run the raw figure in tokens/s and its ratio to the anchor; None where the variant is its own anchor."""

Draw = tuple[Sequence[int], Sequence[int], Sequence[int]]


def collect(results: str, runs: int) -> None:
    """Measure the small matrix so often, each time from scratch."""
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [
        sys.executable, "-m", "pytest", "bench/test_latency.py", "-q", "-p", "no:cacheprovider", "--quantbench-no-probes",
        f"--quantbench-matrix={MATRIX}", f"--quantbench-results={Path(results).absolute()}",
    ]  # fmt: skip
    for number in range(runs):
        code = subprocess.run(
            command, cwd=MATRIX.parents[2], env=environment, check=False, stdout=subprocess.DEVNULL
        ).returncode
        print(f"run {number + 1} of {runs}: exit code {code}", flush=True)


def evaluate(results: str) -> None:
    """Print noise, false alarms, power and the minimum detectable effect."""
    import numpy as np

    from quantbench.results.store import load

    runs = by_cell(load(results))
    count = len(next(iter(runs.values())))
    rng = np.random.default_rng(0)
    print(f"{count} fresh runs, {len(runs)} cells, {PROCESSES} processes a side; rule: {Rule()}\n")
    noise(runs)
    shuffled, windows = list(draws(count, DRAWS, rng)), list(consecutive(count))
    print("\n| A/A trials | matrices | flagged at first | false alarms | share |\n|---|---|---|---|---|")
    for name, chosen in (("random sets", shuffled), ("windows of consecutive runs", windows)):
        flagged, false = alarms(runs, chosen)
        print(f"| {name} | {len(chosen)} | {flagged} | {false} | {false / len(chosen):.2%} |")
    power(runs, shuffled[:POWER_DRAWS])


def by_cell(frame: pd.DataFrame) -> Runs:
    """The figures of every cell of the runs that have all cells, in the order the runs were started."""
    ok = frame[frame["status"] == "ok"].sort_values("started_at")
    counts = ok.groupby("run_id")["scenario_id"].transform("count")
    ok = ok[counts == counts.max()]
    found: Runs = {}
    for name, rows in ok.groupby("scenario_id", sort=True):
        own = (rows["anchor"] == rows["method"] + "/" + rows["precision"]).iloc[0]
        for phase, (raw, ratio) in PHASES.items():
            ratios = [None] * len(rows) if own else rows[ratio].tolist()
            raws = rows[raw].tolist()
            found[f"{name} {phase}"] = list(zip([1 / each for each in raws] if raw == "itl_s" else raws, ratios, strict=True))
    return found


def noise(runs: Runs) -> None:
    """Spread between fresh processes, raw and as a ratio."""
    print("| cell | tokens/s | raw, s.d. | raw, largest/smallest | ratio, s.d. | ratio, largest/smallest |")
    print("|---|---|---|---|---|---|")
    for name, values in runs.items():
        raws = [raw for raw, _ in values]
        ratios = [ratio for _, ratio in values if ratio is not None]
        shown = f"{stdev(ratios) / fmean(ratios):.1%} | {max(ratios) / min(ratios):.2f}" if ratios else "its own anchor | "
        print(f"| {name} | {median(raws):.0f} | {stdev(raws) / fmean(raws):.1%} | {max(raws) / min(raws):.2f} | {shown} |")


def draws(count: int, number: int, rng: np.random.Generator) -> Iterator[Draw]:
    """Three disjoint random sets of runs, so many times."""
    for _ in range(number):
        order = rng.permutation(count).tolist()
        yield order[:PROCESSES], order[PROCESSES : 2 * PROCESSES], order[2 * PROCESSES : 3 * PROCESSES]


def consecutive(count: int) -> Iterator[Draw]:
    """Every three disjoint windows of consecutive runs, in any order."""
    starts = range(count - PROCESSES + 1)
    for first in starts:
        for second in starts:
            for third in starts:
                if min(abs(first - second), abs(first - third), abs(second - third)) >= PROCESSES:
                    yield tuple(list(range(start, start + PROCESSES)) for start in (first, second, third))  # type: ignore[misc]


def alarms(runs: Runs, chosen: Sequence[Draw]) -> tuple[int, int]:
    """In how many matrices a cell was flagged at first, and in how many one was still reported after the second look."""
    flagged = false = 0
    for draw in chosen:
        first, last = (judged(runs, draw, again=again) for again in (False, True))
        flagged += any(verdict not in (Verdict.SAME, Verdict.INSUFFICIENT) for verdict in first.values())
        false += any(verdict not in (Verdict.SAME, Verdict.INSUFFICIENT) for verdict in last.values())
    return flagged, false


def power(runs: Runs, chosen: Sequence[Draw]) -> None:
    """How often a slowdown of one cell is reported as worse, and one of everything including the anchors."""
    print(f"\n| slowed down by | {' | '.join(f'{each:.0%}' for each in SLOWDOWNS)} | minimum detectable, median |")
    print(f"|---|{'---|' * len(SLOWDOWNS)}---|")
    for name in runs:
        found = [detected(runs, chosen, slowdown, (name,), common=False) for slowdown in SLOWDOWNS]
        print(f"| {name} | {' | '.join(f'{each:.0%}' for each in found)} | {detectable(runs, chosen, name):.1%} |")
    found = [detected(runs, chosen, slowdown, tuple(runs), common=True) for slowdown in SLOWDOWNS]
    print(f"| all cells with their anchors, any found | {' | '.join(f'{each:.0%}' for each in found)} | |")


def detected(runs: Runs, chosen: Sequence[Draw], slowdown: float, names: Sequence[str], *, common: bool) -> float:
    """The share of trials in which one of the slowed cells is reported as worse."""
    hits = 0
    for draw in chosen:
        verdicts = judged(runs, draw, again=True, slowed=names, factor=1 / (1 + slowdown), common=common)
        hits += any(verdicts[name] == Verdict.WORSE for name in names)
    return hits / len(chosen)


def detectable(runs: Runs, chosen: Sequence[Draw], name: str) -> float:
    """The median of what the rule itself says it could have found."""
    found = [finding.mde for draw in chosen for finding in judge(cells(runs, draw)) if finding.name == name]
    return median(mde for mde in found if mde is not None)


def judged(
    runs: Runs, draw: Draw, *, again: bool, slowed: Sequence[str] = (), factor: float = 1.0, common: bool = False
) -> dict[str, Verdict]:
    """The rule's verdicts on a trial."""
    found = judge(cells(runs, draw, again=again, slowed=slowed, factor=factor, common=common))
    return {each.name: each.verdict for each in found}


def cells(
    runs: Runs, draw: Draw, *, again: bool = False, slowed: Sequence[str] = (), factor: float = 1.0, common: bool = False
) -> list[Comparand]:
    """A trial's cells; ``slowed`` have candidates multiplied by ``factor``, their ratios too unless it is ``common``."""
    baseline, candidate, second = draw
    found = []
    for name, values in runs.items():
        scale = factor if name in slowed else 1.0
        sides = [side(values, candidate, scale, common), side(values, second, scale, common)]
        found.append(
            Comparand(
                name=name, better="higher", baseline=side(values, baseline, 1.0, common), candidate=sides[0],
                again=sides[1] if again else None,
            )
        )  # fmt: skip
    return found


def side(values: Sequence[tuple[float, float | None]], chosen: Sequence[int], factor: float, common: bool) -> Side:
    """The processes of the chosen runs."""
    ratios = [values[index][1] for index in chosen]
    return Side(
        raws=tuple(values[index][0] * factor for index in chosen),
        ratios=tuple(ratio * (1.0 if common else factor) for ratio in ratios if ratio is not None and math.isfinite(ratio)),
    )


def main() -> int:
    """Collect or evaluate."""
    match sys.argv[1:]:
        case ["collect", results, *rest]:
            collect(results, int(rest[0]) if rest else RUNS)
        case ["evaluate", results]:
            evaluate(results)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
