"""Look up the versions that are tested together (the extra ``tested``) among known vulnerabilities, by pip-audit.

Exit code 1 where one of them is vulnerable. Where the service cannot be asked one sentence says so, and that is a failure only
with the word ``required``: nothing is known then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def main(*arguments: str) -> int:
    """Print what was found; 0 or 1."""
    pins = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]["tested"]
    with tempfile.TemporaryDirectory() as place:
        requirements, report = Path(place, "tested.txt"), Path(place, "report.json")
        requirements.write_text("\n".join(pins))
        command = [
            sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip",
            "--progress-spinner", "off", "--format", "json", "--output", str(report),
        ]  # fmt: skip
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        found = json.loads(report.read_text())["dependencies"] if report.is_file() else []
    known = [each for each in found if "vulns" in each]
    for each in known:
        for flaw in each["vulns"]:
            mended = f"mended in {', '.join(flaw['fix_versions'])}" if flaw["fix_versions"] else "not mended yet"
            print(f"{each['name']} {each['version']}: {flaw['id']} ({mended}): {' '.join(flaw['description'].split())[:200]}")
    if any(each["vulns"] for each in known):
        return 1
    if len(known) < len(pins):
        last = (asked.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        reasons = [each["skip_reason"] for each in found if "skip_reason" in each]
        print(f"{len(pins) - len(known)} of {len(pins)} versions could not be looked up among known vulnerabilities: "
              f"{' '.join((reasons or [last])[0].split())[:300]}")  # fmt: skip
        return int("required" in arguments)
    print(f"no known vulnerability in {len(known)} tested versions")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
