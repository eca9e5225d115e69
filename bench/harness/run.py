"""What the harness itself costs: each figure beside its bare counterpart, alternating, as a ratio within one run.

    python bench/harness/run.py [NAME ...]

Prints one line a figure with its limit; the exit code is 1 when a limit is missed or a check cannot run. Those beside
llama.cpp's own tools look for llama-bench and llama-perplexity in the folder that QUANTBENCH_LLAMA_CPP_BIN names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import checks
from ratios import CannotRunError

if TYPE_CHECKING:
    from ratios import Result

WIDTH = 48


def main() -> int:
    """Run the named checks, or all."""
    wanted = sys.argv[1:] or list(checks.ALL)
    unknown = [name for name in wanted if name not in checks.ALL]
    if unknown:
        print(f"unknown check {unknown[0]!r}; known: {', '.join(checks.ALL)}", file=sys.stderr)
        return 2
    missed = 0
    print(f"{'check':<{WIDTH}} {'ours':>12} {'bare':>12} {'figure':>9}  limit")
    for name in wanted:
        try:
            missed += _print_results(checks.ALL[name]())
        except CannotRunError as reason:
            missed += 1
            print(f"{name}: not run, {reason}", flush=True)
    return 1 if missed else 0


def _print_results(results: Iterable[Result]) -> int:
    """Print each result as it comes; how many missed their limit."""
    missed = 0
    for each in results:
        missed += not each.holds
        verdict = "" if each.holds else "  MISSED"
        print(f"{each.name:<{WIDTH}} {each.ours:>12} {each.bare:>12} {each.figure:>9.3f}  {each.limit}{verdict}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
