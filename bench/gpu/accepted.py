"""What the first run on a GPU has to show, each with its figure, from the parquet tables and what ``beside.py`` wrote.

    python accepted.py RESULTS BESIDE.jsonl

RESULTS holds a folder of parquet tables for each stage, such as RESULTS/table/scenarios. Exit code 1 where something was not
reached or was not measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd  # noqa: TID253 - a script of its own, not imported by the package

BASE = "torch/bf16"
LEAST_GAIN = 3.0
LEAST_OF_LOOP = 0.95
LEAST_MBU = 0.6
MOST_LAUNCHING = 0.2
BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Line:
    """One demand: the figure and whether it is reached; None where it was not measured, and ``note`` says why.

    ``judged``: whether it decides; the others are told because figures depend on them.
    """

    what: str
    figure: str
    reached: bool | None
    note: str = ""
    judged: bool = True

    def __str__(self) -> str:
        """A line of the table."""
        mark = {True: "pass", False: "FAIL", None: "not measured"}[self.reached] if self.judged else "told"
        return f"{mark:12}  {self.what}: {self.figure or '-'}" + (f" ({self.note})" if self.note else "")


def main() -> int:
    """Print every line."""
    results, beside = Path(sys.argv[1]), Path(sys.argv[2])
    lines = [*demands(rows_of(results), ways_of(beside))]
    print(*lines, sep="\n")
    return int(any(line.judged and not line.reached for line in lines))


def rows_of(results: Path) -> pd.DataFrame:
    """The latest row of each scenario of all stages, by ``stage`` and ``variant``; empty where there are none."""
    frames = [
        pd.read_parquet(folder).assign(stage=folder.parent.name)
        for folder in sorted(results.glob("*/scenarios"))
        if any(folder.rglob("*.parquet"))
    ]
    if not frames:
        return pd.DataFrame(columns=["stage", "variant", "status", "batch"])
    rows = pd.concat(frames, ignore_index=True).sort_values("started_at", kind="stable")
    rows["variant"] = rows["method"] + "/" + rows["precision"]
    return rows.drop_duplicates(["stage", "scenario_id"], keep="last")


def ways_of(path: Path) -> list[dict[str, Any]]:
    """The lines of ``beside.py``; none where it did not run."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def demands(rows: pd.DataFrame, ways: list[dict[str, Any]]) -> Iterator[Line]:
    """All lines in order."""
    yield gain(rows)
    yield of_loop(ways)
    yield from bandwidth(rows)
    yield weights(rows)
    yield from fallbacks(rows)
    yield from launching(rows)
    yield from others(rows)


def gain(rows: pd.DataFrame) -> Line:
    """The table's CUDA graph over the eager rows, at batch 1."""
    what = f"{BASE} at batch 1, decode as a CUDA graph over eager (>= {LEAST_GAIN:g})"
    eager, graph = one(rows, "eager", BASE), one(rows, "table", BASE)
    for stage, row, path in (("eager", eager, "eager"), ("table", graph, "graph")):
        if row is None:
            return Line(what, "", None, f"no row of the stage {stage} is ok")
        if row["decode_path"] != path:
            why = f"the row of {stage} decoded by {row['decode_path']}"
            return Line(what, "", None, ": ".join(filter(None, (why, text(row, "decode_fallback")))))
    assert eager is not None
    assert graph is not None
    ratio = graph["decode_tps"] / eager["decode_tps"]
    return Line(what, f"{ratio:.2f}", bool(ratio >= LEAST_GAIN), f"{graph['decode_tps']:.1f} and {eager['decode_tps']:.1f} tokens/s")


def of_loop(ways: list[dict[str, Any]]) -> Line:
    """The graph of quantbench over the compiled loop of ``beside.py``, in one process."""
    what = f"{BASE} at batch 1, decode as a CUDA graph over a compiled loop of gpt-fast's kind (>= {LEAST_OF_LOOP:g})"
    mine = {way["way"]: way for way in ways if way.get("variant") == BASE and way.get("batch") == 1 and "way" in way}
    for name in ("graph", "loop"):
        if "tokens_per_second" not in mine.get(name, {}):
            return Line(what, "", None, f"{name}: {mine.get(name, {}).get('failed', 'beside.py has no such line')}")
    speeds = [mine[name]["tokens_per_second"] for name in ("graph", "loop")]
    same = [mine[name]["same_tokens"] for name in ("graph", "loop")]
    note = f"{speeds[0]:.1f} and {speeds[1]:.1f} tokens/s; {same[0]:.0%} and {same[1]:.0%} of the tokens are those of eager"
    return Line(what, f"{speeds[0] / speeds[1]:.3f}", speeds[0] >= LEAST_OF_LOOP * speeds[1], note)


def bandwidth(rows: pd.DataFrame) -> Iterator[Line]:
    """How much of the memory's speed bf16 uses."""
    for batch in BATCHES:
        what = f"{BASE} at batch {batch}, mbu (>= {LEAST_MBU:g})"
        row = one(rows, "table", BASE, batch)
        if row is None or pd.isna(row["mbu"]):
            yield Line(what, "", None, "no row is ok" if row is None else "the row has none")
        else:
            yield Line(what, f"{row['mbu']:.3f}", bool(row["mbu"] >= LEAST_MBU), f"decoded by {row['decode_path']}")


def weights(rows: pd.DataFrame) -> Line:
    """Whether every model takes as many bytes as was planned from shapes."""
    what = "weights as planned, in bytes"
    if "predicted_weight_bytes" not in rows:
        return Line(what, "", None, "there are no rows")
    both = rows[rows["status"] == "ok"].dropna(subset=["predicted_weight_bytes", "weight_bytes"])
    if both.empty:
        return Line(what, "", None, "no row has both")
    unlike = both[both["predicted_weight_bytes"] != both["weight_bytes"]]
    said = [f"{row['stage']}: {row['variant']} {row['weight_bytes']:.0f}, not {row['predicted_weight_bytes']:.0f}" for _, row in unlike.iterrows()]
    count, wrong = (len(each[["stage", "variant"]].drop_duplicates()) for each in (both, unlike))
    return Line(what, f"{count - wrong} of {count} variants", not said, "; ".join(dict.fromkeys(said)))


def fallbacks(rows: pd.DataFrame) -> Iterator[Line]:
    """What decoded eagerly though another path was to be taken."""
    if "decode_fallback" in rows:
        for (variant, reason), those in rows.dropna(subset=["decode_fallback"]).groupby(["variant", "decode_fallback"]):
            batches = ", ".join(map(str, sorted(set(those["batch"]))))
            yield Line(f"{variant} decodes eagerly", f"batch {batches}", None, reason, judged=False)


def launching(rows: pd.DataFrame) -> Iterator[Line]:
    """Rows whose steps wait for launches: tables print no ratio of their speeds."""
    if "launch_share" in rows:
        for _, row in rows[rows["launch_share"] > MOST_LAUNCHING].iterrows():
            if row["decode_path"] != "eager":
                what = f"{row['variant']} at batch {row['batch']} decodes by {row['decode_path']}"
                yield Line(what, f"launch share {row['launch_share']:.0%}", None, judged=False)


def others(rows: pd.DataFrame) -> Iterator[Line]:
    """What was not measured."""
    for _, row in rows[rows["status"] != "ok"].iterrows():
        yield Line(f"{row['stage']}: {row['scenario_id']}", row["status"], None, text(row, "reason"), judged=False)


def one(rows: pd.DataFrame, stage: str, variant: str, batch: int = 1) -> pd.Series | None:
    """A stage's row of a variant, if it is ok."""
    found = rows[(rows["stage"] == stage) & (rows["variant"] == variant) & (rows["batch"] == batch) & (rows["status"] == "ok")]
    return None if found.empty else found.iloc[-1]


def text(row: pd.Series, name: str) -> str:
    """A cell's first line; empty where it is null."""
    return "" if pd.isna(row[name]) else str(row[name]).splitlines()[0][:200]


if __name__ == "__main__":
    sys.exit(main())
