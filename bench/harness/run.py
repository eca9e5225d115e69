"""What the harness itself costs: each figure beside its bare counterpart, alternating, as a ratio within one run.

    python bench/harness/run.py [NAME ...]

Prints one line a figure with its limit; the exit code is 1 when a limit is missed.
"""

from __future__ import annotations

import sys

import checks

WIDTH = 46


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
        for result in checks.ALL[name]():
            missed += not result.holds
            verdict = "" if result.holds else "  MISSED"
            print(
                f"{result.name:<{WIDTH}} {result.ours:>12} {result.bare:>12} {result.figure:>9.3f}  {result.limit}{verdict}",
                flush=True,
            )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
