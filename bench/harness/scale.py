"""A hundred thousand scenarios: planned, collected by pytest, and read back by the commands; seconds and memory of each."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import many_rows
from spent import quantbench, spent

if TYPE_CHECKING:
    from ratios import Result

PROMPT_FILES = 12_500
"""Each is a scenario of eight variants."""

SCENARIOS = 8 * PROMPT_FILES
PLAN_LIMITS = {"seconds": 20, "megabytes": 1000}
READ_LIMITS = {"seconds": 5, "megabytes": 1000}

SESSION = """
import sys
from pathlib import Path
from quantbench.planning.options import RunOptions
from quantbench.running.session import Session
given = {"matrix": "matrix.toml", "results": "results"}
session = Session(RunOptions.read(lambda option: given.get(option.name, option.default)), command="harness", root=Path())
if "start" in sys.argv:
    session.start(list(session.planned), verbosity=0)
    session.finish(interrupted=True)
print(len(session.planned))
"""


def planning() -> Iterator[Result]:
    """100,000 scenarios planned, made ready to be measured, and collected by pytest with a test each; a fresh process each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _matrix(folder)
        for what, more in (("planned", []), ("planned and made ready", ["start"])):
            found = spent([sys.executable, "-c", SESSION, *more], folder, QUANTBENCH_CACHE=str(folder / "cache"))
            _require(found.text.split()[-1] == str(SCENARIOS), found.text)
            yield from found.results(f"100,000 scenarios {what}", **PLAN_LIMITS)
        pytest = [sys.executable, "-m", "pytest", "--collect-only", "-qqq", "-p", "no:cacheprovider", "test_each.py"]
        found = spent([*pytest, "--quantbench-matrix=matrix.toml"], folder)
        _require(found.text.strip() == f"test_each.py: {SCENARIOS}", found.text)
        yield from found.results("100,000 scenarios collected", **PLAN_LIMITS)


def _matrix(folder: Path) -> None:
    """A matrix of so many scenarios, and a test for each."""
    prompts = [f"set{index}.txt" for index in range(PROMPT_FILES)]
    for path in prompts:
        (folder / path).write_text("one prompt\n")
    (folder / "matrix.toml").write_text(
        f'prompts = {json.dumps(prompts)}\ncontrol = true\n[methods]\ntorch = ["fp32", "fp16", "bf16"]\n'
        'bitsandbytes = ["int8", "nf4", "nf4-dq", "fp4"]\n'
    )
    (folder / "test_each.py").write_text("from quantbench.suite.test_latency import test_decode\n")


def reading() -> Iterator[Result]:
    """``tables``, ``compare`` and ``report`` on 100,000 rows of 1,000 runs, as stored and as somebody merged them."""
    runs = many_rows.RUNS
    latest, before = (many_rows.run_id(number) for number in (runs - 1, runs - 2))
    commands = {
        "tables": (["tables"], "1 of 25 not measured"),
        "tables all": (["tables", "all", "--format", "json"], latest),
        "compare": (["compare", before, latest], "figures stayed the same"),
        "report": (["report"], f"run {latest}, 100 rows"),
    }
    for layout in ("stored", "merged"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            made = Path(many_rows.__file__)
            spent([sys.executable, str(made), str(folder / "results"), layout], folder)
            for title, (arguments, said) in commands.items():
                found = spent(quantbench(*arguments), folder, codes=(0, 3, 4))
                _require(said in found.text, found.text)
                yield from found.results(f"{title}, 100,000 rows {layout}", **READ_LIMITS)


def _require(right: bool, text: str) -> None:
    if not right:
        raise SystemExit(f"the command did not do its work, its figures say nothing: {text[-2000:]}")
