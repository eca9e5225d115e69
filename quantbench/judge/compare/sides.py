"""The rows of one side of a comparison: a results folder, parquet files, runs by their ids, or pytest-benchmark's JSON."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.core.errors import StoreError, UsageError
from quantbench.core.outside import is_file, is_folder, parse_json, read_text

if TYPE_CHECKING:
    import pandas as pd

    from quantbench.results.runs import Runs

_REPEAT = re.compile(r"#(\d+)\]$")


def load_side(
    text: str, results: str, *, window: int = 1, exclude: Sequence[str] = (), listed: dict[str, Runs] | None = None
) -> pd.DataFrame:
    """Rows of ``scenarios``: of a folder or URI the last ``window`` runs except ``exclude``, else all that is named.

    ``text`` is a folder, a URI, a ``.parquet`` file, a ``.json`` file of pytest-benchmark, or ids of runs in the folder
    ``results``, joined by commas. Files of other runs are not opened. ``listed`` holds the stores of other sides by their
    paths, which are not listed again, and gets this one's. UsageError for anything else, StoreError for what cannot be read.
    """
    if text.endswith(".json") and is_file(text):
        return _of_benchmark(Path(text))
    if text.endswith(".parquet") and is_file(text):
        return _of_file(Path(text))
    if "://" in text or is_folder(text):
        return _last_runs(_runs(text, listed), window, exclude, text)
    if text.endswith((".json", ".parquet")) or "/" in text or not text.strip(", "):
        raise UsageError(f"{text!r} does not exist; give a results folder, a file, or the id of a run in {results!r}")
    runs = _runs(results, listed)
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if missing := [run for run in wanted if run not in runs]:
        first = min(runs.ids, default="")
        raise UsageError(f"no run {missing[0]!r} in {results!r} and no such file; the first run there is {first!r}")
    return runs.of(wanted)


def is_whole(side: pd.DataFrame, text: str, results: str) -> bool:
    """Whether the runs of ``side`` have a row for every scenario they planned, as far as is stored.

    What a whole run lacks was not selected. False where the runs' own rows cannot be read, such as for a single file.
    """
    from quantbench.results.store import load

    place = text if "://" in text or is_folder(text) else results
    if text.endswith((".json", ".parquet")):
        return False
    try:
        runs = load(place, "runs", run=side["run_id"].unique())
    except StoreError:
        return False
    planned = dict(zip(runs["run_id"], runs["planned"], strict=True))
    counts = side["run_id"].value_counts()
    return all(run in planned and int(count) >= int(planned[run]) for run, count in counts.items())


def _runs(path: str, listed: dict[str, Runs] | None) -> Runs:
    from quantbench.results.runs import Runs

    known = {} if listed is None else listed
    if path not in known:
        known[path] = Runs(path)
    return known[path]


def _last_runs(runs: Runs, window: int, exclude: Sequence[str], text: str) -> pd.DataFrame:
    if runs.ids and not set(runs.ids).difference(exclude):
        raise StoreError(f"{text!r} holds no run but the one compared; measure a baseline first, or name another")
    return runs.latest(window, exclude=exclude)


def _of_file(path: Path) -> pd.DataFrame:
    from pyarrow import fs

    from quantbench.results.reading import as_frame, read_files

    rows, sentences = read_files(fs.LocalFileSystem(), [str(path)], "scenarios")
    if rows is None:
        raise StoreError(f"{'; '.join(sentences)}; give a file of the table scenarios")
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=2)
    return as_frame(rows)


def _of_benchmark(path: Path) -> pd.DataFrame:
    """Rows from the ``extra_info`` of each scenario, which the plugin writes; its tests share one row."""
    import pandas as pd

    try:
        body = parse_json(read_text(path))
        machine = body.get("machine_info", {}).get("quantbench", {})
        started = str(body.get("datetime", ""))
        rows = dict(_row(each, machine, started) for each in body["benchmarks"] if "scenario_id" in each["extra_info"])
        frame = pd.DataFrame(list(rows.values()))  # which refuses half a surrogate pair
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is not a report of pytest-benchmark ({error!r}); --benchmark-json writes one") from error
    if not rows:
        raise StoreError(f"{path} holds no scenario of quantbench; give a report that pytest bench/ --benchmark-json wrote")
    return frame


def _row(benchmark: dict[str, Any], machine: dict[str, Any], started: str) -> tuple[tuple[str, int], dict[str, Any]]:
    found = _REPEAT.search(str(benchmark["name"]))
    repeat = int(found[1]) - 1 if found else 0
    info = benchmark["extra_info"]
    base = {
        "run_id": started,
        "started_at": started,
        "repeat": repeat,
        "machine": machine.get("fingerprint"),
        "cpu": machine.get("cpu"),
    }
    return (str(info["scenario_id"]), repeat), {**base, **info}
