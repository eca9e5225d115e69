"""``quantbench pick`` on ten files beside measuring all of them at length: how long, and is it the same pick?

    python bench/harness/run.py pick

How long is measured. Whether the race puts out what the whole matrix would pick is repeated with seeds: each repetition draws a
first and a last figure for every file around those that were measured, a speed with what processes of one variant differ by
(a standard deviation of 5 %, between the 3 to 7 % of README.md, the decision rule), a KLD with its standard error. Both sides
get the same last figures, so that they differ only by whom the race put out.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fidelity import CANARY, gguf_file
from ratios import Result

from quantbench.advice.decision import Limits, as_candidate
from quantbench.advice.pareto import Candidate, choose
from quantbench.advice.race import of_any_process, out
from quantbench.results.rows import Group, Row
from quantbench.results.store import load

if TYPE_CHECKING:
    import numpy as np

KINDS = ("f16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0", "iq4_xs", "q3_k_m", "q2_k")
SEEDS = range(20)
LEAST_SAME = 19
LIMIT_S = 60
PROCESS_SD = 0.05


def pick() -> Iterator[Result]:
    """Seconds of a pick, and of the whole matrix; how often both pick the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "files")
        folder.mkdir()
        for kind in KINDS:
            (folder / f"canary-{kind}.gguf").symlink_to(gguf_file(CANARY, f"gguf/{kind}"))
        mine = _command(["pick", str(folder), "--results", str(folder.parent / "mine")])
        exact, *others = KINDS
        artifacts = [f"--artifact={kind}={folder}/canary-{kind}.gguf" for kind in others]
        usual = [f"--model={folder}/canary-{exact}.gguf", "--method=gguf", f"--precision={exact}", "--no-probes", "--no-energy"]
        asked = [*usual, f"--reference=gguf/{exact}", *artifacts, "--prompts=mixed"]
        whole = _command(["run", *asked, "--results", str(folder.parent / "whole")])
        first = _candidates(folder.parent / "mine", "ten")
        last = _candidates(folder.parent / "whole", "mixed")
    yield Result("pick among ten files (in s)", f"{mine:.0f} s", f"{whole:.0f} s", mine, f"<= {LIMIT_S}")
    same = sum(_same(first, last, seed) for seed in SEEDS)
    yield Result(f"the whole matrix's pick, of {len(SEEDS)}", str(same), "", same, f">= {LEAST_SAME}")


def _command(arguments: Sequence[str]) -> float:
    command = [sys.executable, "-c", "from quantbench.cli import main; main()", *arguments]
    started = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTEST_ADDOPTS": ""})
    if ended.returncode not in (0, 4):  # 4: other work beside it, so that nothing can be picked
        raise SystemExit(f"{arguments[0]} failed: {ended.stderr[-2000:]}")
    return time.perf_counter() - started


def _candidates(results: Path, prompts: str) -> Mapping[str, Candidate]:
    rows = [Row(values) for values in load(str(results)).to_dict("records")]
    wanted = [row for row in rows if row.text("prompts") == prompts and not row.flag("control")]
    found = [as_candidate(row, Group((row,))) for row in wanted]
    return {each.name: replace(each, disturbed=False) for each in found if isinstance(each, Candidate)}


def _same(first: Mapping[str, Candidate], last: Mapping[str, Candidate], seed: int) -> bool:
    import numpy as np

    rng = np.random.default_rng(seed)
    limits = Limits.asked(memory_bytes=None, max_kld=None, min_tps=None)
    gone = out([of_any_process(_drawn(each, last[name].tps, rng)) for name, each in first.items()], limits)
    ended = [_drawn(each, each.tps, rng) for each in last.values()]
    return _picked(ended, limits) == _picked([each for each in ended if each.name not in gone], limits)


def _drawn(measured: Candidate, tps: float, rng: np.random.Generator) -> Candidate:
    """Another process's figures, of a variant that decodes ``tps`` tokens/s, with the widths of the measured intervals."""
    speed = tps * math.exp(rng.normal(0, PROCESS_SD))
    moved = float(rng.normal(0, measured.kld_se or 0))
    assert measured.tps_low is not None and measured.tps_high is not None  # noqa: PT018 - for the types
    assert measured.kld_low is not None and measured.kld_high is not None  # noqa: PT018
    return replace(
        measured,
        tps=speed,
        tps_low=measured.tps_low * speed / measured.tps,
        tps_high=measured.tps_high * speed / measured.tps,
        kld=max(0.0, measured.kld + moved),
        kld_low=max(0.0, measured.kld_low + moved),
        kld_high=max(0.0, measured.kld_high + moved),
    )


def _picked(candidates: Sequence[Candidate], limits: Limits) -> str:
    chosen = choose([each for each in candidates if not limits.broken(each)])
    return chosen.name if chosen else ""
