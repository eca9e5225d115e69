"""The four tables: their columns with units, and the explicit parquet schema made from them.

``python -m quantbench.results.schema FILE`` writes the list of all columns below the marker in FILE, as in
``results/README.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quantbench.core.errors import StoreError
from quantbench.core.record import SCHEMA_VERSION, Column
from quantbench.metrics import METRICS, all_columns

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = ("scenarios", "samples", "outputs", "runs")
VERSION_KEY = b"quantbench_schema_version"
DTYPES: Mapping[str, str] = {
    "float": "float64", "int": "Int64", "string": "str", "bool": "boolean", "time": "datetime64[us, UTC]",
    "ids": "object", "floats": "object",
}  # fmt: skip
"""The pandas dtype of each kind of column; each value of ``ids`` and ``floats`` is an array of int32 or float32."""

MARKER = "<!-- below: written by python -m quantbench.results.schema results/README.md -->"

IDENTITY_COLUMNS = (
    Column("run_id", "", kind="string", doc="one pytest session, or several where it was resumed"),
    Column("started_at", "UTC", kind="time", doc="start of the run"),
    Column("run_number", "", kind="int", doc="counts the runs of a store, independent of the clock: the highest is the latest"),
    Column("scenario_id", "", kind="string", doc="model/method-precision/prompts: the pytest id"),
    Column("scenario_key", "", kind="string", doc="sha256 of all settings that affect the measurement"),
    Column("model", "", kind="string", doc="as asked for"),
    Column("method", "", kind="string", doc="what quantizes and runs it"),
    Column("precision", "", kind="string", doc="one of the method's precisions"),
    Column("artifact", "", kind="string", doc="the name given to a quantization that somebody published; null for others"),
    Column("artifact_maker", "", kind="string", doc="who made it: the hub's organization, or whom the file's header names"),
    Column("artifact_sha256", "", kind="string", doc="sha256 of its content"),
    Column("artifact_audit", "", kind="string", doc="what is wrong with a GGUF file: its conversion, weights or types"),
    Column("artifact_note", "", kind="string", doc="in what its files differ from the original's, besides the weights"),
    Column("prompts", "", kind="string", doc="prompt set"),
    Column("repeat", "", kind="int", doc="counts the fresh processes of a scenario from 0"),
    Column("attempts", "", kind="int", doc="how many times it was measured: again if disturbed; the last one counts"),
    Column("status", "", kind="string", doc="ok, skipped, oom, timeout, crashed or error"),
    Column("reason", "", kind="string", doc="why the status is not ok"),
    Column("traceback", "", kind="string", doc="of the error, where Python raised one"),
    Column("control", "", kind="bool", doc="the reference measured a second time: the noise floor"),
    Column("reference", "", kind="string", doc="the variant that this one is compared with"),
    Column("is_reference", "", kind="bool", doc="the model's other variants are compared with this one"),
    Column("bits", "bits", doc="nominal bits per weight of the precision"),
    Column("device", "", kind="string", doc="as asked for"),
    Column("device_found", "", kind="string", doc="where the weights were found: cpu or cuda:N; always the device asked for"),
    Column("threads", "", kind="int", doc="as used"),
    Column("waiting", "", kind="string", doc="how OpenMP's threads wait: spins before sleep; (user): set by the user"),
    Column("context", "tokens", kind="int", doc="as used"),
    Column("batch", "sequences", kind="int", doc="answered together while timed; all tokens/s are of all of them"),
    Column("output_tokens", "tokens", kind="int", doc="timed answer length"),
    Column("answer_tokens", "tokens", kind="int", doc="greedy answer length at most"),
    Column("continuation_tokens", "tokens", kind="int", doc="positions scored per prompt at most"),
    Column("answered_prompts", "prompts", kind="int", doc="only the first of a set are timed and answered; 0: all"),
    Column("seed", "", kind="int", doc="seed for all sampling"),
    Column("anchor", "", kind="string", doc="what the rounds alternated with"),
    Column("kernel", "", kind="string", doc="kernel class found in use"),
    Column("kv_dtype", "", kind="string", doc="dtype of the KV cache found in use"),
    Column("checkpoint_dtype", "", kind="string", doc="dtype of the checkpoint: a bf16 one loses nothing in bf16"),
    Column("predicted_weight_bytes", "bytes", kind="int", doc="weight_bytes as planned from shapes before loading"),
    Column("instrument_check", "", kind="bool", doc="the model serves only to check the instrument"),
    Column("facts", "", kind="string", doc="JSON: whatever else was found rather than set"),
    Column("null_reasons", "", kind="string", doc="JSON: why each null metric of an ok row is null"),
    Column("machine", "", kind="string", doc="fingerprint of the hardware"),
    Column("cpu", "", kind="string", doc="model name of the CPU"),
    Column("gpus", "", kind="string", doc="names of the GPUs, joined by commas"),
    Column("isa", "", kind="string", doc="vector instruction sets of the CPU"),
    Column("versions", "", kind="string", doc="JSON: library versions"),
    Column("schema_version", "", kind="int", doc="of the quantbench that wrote the row"),
)
_HANGS_ON = (
    Column("run_id", "", kind="string", doc="with scenario_id and repeat: the row of scenarios that this one belongs to"),
    Column("scenario_id", "", kind="string", doc="as in scenarios"),
    Column("scenario_key", "", kind="string", doc="as in scenarios"),
    Column("repeat", "", kind="int", doc="as in scenarios"),
)
SAMPLE_COLUMNS = (
    *_HANGS_ON,
    Column("phase", "", kind="string", doc="prefill, gap, e2e, call, and the same of the anchor; score, by prompt or chunk"),
    Column("round", "", kind="int", doc="counts the timed rounds from 0"),
    Column("index", "", kind="int", doc="prompt; for gaps prompt x (output_tokens - 1) + position"),
    Column("value_s", "s", "lower", doc="how long it took"),
    Column("tokens", "tokens", kind="int", doc="for e2e those of the answer, for prefill those that came first; else null"),
)
OUTPUT_COLUMNS = (
    *_HANGS_ON,
    Column("index", "", kind="int", doc="counts the prompts from 0"),
    Column("prompt", "", kind="string", doc="the prompt's text; of a conversation of several messages, each after its role"),
    Column("prompt_tokens", "", kind="ids", doc="the ids that every variant is given"),
    Column("reference_tokens", "", kind="ids", doc="greedy answer of the reference"),
    Column("variant_tokens", "", kind="ids", doc="greedy answer of the variant; null where it comes as text only"),
    Column("reference_text", "", kind="string", doc="model output: untrusted"),
    Column("variant_text", "", kind="string", doc="model output: untrusted"),
    Column("exact_match", "", kind="bool", doc="whether the answers are equal"),
    Column("first_divergence", "tokens", kind="int", doc="null when the answers are equal, or have no token ids"),
    Column("token_match", "ratio", "higher", doc="equal positions over the length of the longer answer"),
    Column("chrf", "chrF", "higher", doc="chrF of the variant's text against the reference's"),
    Column("scored_tokens", "tokens", kind="int", doc="positions of the continuation compared with the reference"),
    Column("kld", "nats", "lower", kind="floats", doc="KL(reference || variant) at each of them, in their order"),
    Column("kld_mean", "nats", "lower", doc="mean of kld"),
    Column("top1_agreement", "ratio", "higher", doc="share of positions where both put the same token first"),
    Column("nll_mean", "nats", "lower", doc="mean negative log-likelihood of the continuation"),
)
RUN_COLUMNS = (
    Column("run_id", "", kind="string", doc="as in the other tables"),
    Column("run_number", "", kind="int", doc="as in scenarios"),
    Column("started_at", "UTC", kind="time", doc="start of the run"),
    Column("finished_at", "UTC", kind="time", doc="end of the run; null while it runs, or where the process was killed"),
    Column("command", "", kind="string", doc="as typed; every command of a run that was resumed"),
    Column("commit", "", kind="string", doc="checked out where it ran, with -dirty when files differ"),
    Column("planned", "scenarios", kind="int", doc="how many were planned, repeats included"),
    Column("finished", "scenarios", kind="int", doc="how many have a row; null like finished_at"),
    Column("ok", "scenarios", kind="int", doc="how many of these were measured; null like finished_at"),
    Column("interrupted", "", kind="bool", doc="whether it stopped early; true where the process was killed"),
    Column("profile", "", kind="string", doc="brief, quick, default or thorough"),
    Column("engine", "", kind="string", doc="what started the workers"),
    Column("machine", "", kind="string", doc="fingerprint of the hardware"),
    Column("machine_facts", "", kind="string", doc="JSON: what the fingerprint was made of"),
    Column("versions", "", kind="string", doc="JSON: library versions"),
    Column("schema_version", "", kind="int", doc="of the quantbench that wrote the row"),
)


def table_columns(table: str) -> tuple[Column, ...]:
    """The columns of one of the four tables."""
    match table:
        case "scenarios":
            return IDENTITY_COLUMNS + all_columns()
        case "samples":
            return SAMPLE_COLUMNS
        case "outputs":
            return OUTPUT_COLUMNS
        case "runs":
            return RUN_COLUMNS
        case _:
            raise StoreError(f"there is no table {table!r}; the tables are {', '.join(TABLES)}")


@cache
def timed_columns() -> frozenset[str]:
    """Columns of ``scenarios`` that depend on timed rounds: rates, latencies and their ratios."""
    return frozenset(column.name for column in all_columns() if column.timed)


@cache
def shown_columns(where: Literal["report", "overview"]) -> tuple[Column, ...]:
    """The metrics' columns shown in the report's table of all rows, or in the overview of a run, in their order."""
    shown = [column for column in all_columns() if column.shown and where in ("report", column.shown)]
    return tuple(sorted(shown, key=lambda column: column.place))


@cache
def column_of(name: str) -> Column:
    """The column of ``scenarios`` with that name; KeyError where there is none."""
    return {column.name: column for column in table_columns("scenarios")}[name]


@cache
def schema(table: str) -> pa.Schema:
    """The explicit parquet schema of a table; each field's metadata describes its column."""
    import pyarrow as pa

    types = {
        "float": pa.float64(), "int": pa.int64(), "string": pa.string(), "bool": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"), "ids": pa.list_(pa.int32()),
        "floats": pa.list_(pa.float32()),
    }  # fmt: skip
    fields = [pa.field(column.name, types[column.kind], metadata=_described(column)) for column in table_columns(table)]
    return pa.schema(fields, metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})


def _described(column: Column) -> dict[str, str]:
    return {
        "unit": column.unit, "better": column.better or "", "doc": column.doc,
        "formula": column.formula, "source": column.source,
    }  # fmt: skip


def as_markdown() -> str:
    """All columns of the four tables as Markdown; of metrics, only those that come with quantbench."""
    metrics = [each for each in METRICS if each.compute.__module__.startswith("quantbench.")]
    lines = [
        MARKER, "", "## Columns", "",
        f"Schema version {SCHEMA_VERSION}. dtype: as `quantbench.load` gives it; better: the direction of an improvement.", "",
        *_section("`scenarios`: what was measured, where, and how it ended", IDENTITY_COLUMNS),
        *(line for each in metrics for line in _section(f"`scenarios`, metric `{each.name}`: {each.about}", each.columns)),
        *_section("`samples`", SAMPLE_COLUMNS),
        *_section("`outputs`", OUTPUT_COLUMNS),
        *_section("`runs`", RUN_COLUMNS),
    ]  # fmt: skip
    return "\n".join(lines)


def _section(title: str, columns: Sequence[Column]) -> Iterator[str]:
    yield f"### {title}"
    yield ""
    defined = any(column.formula or column.source for column in columns)
    cells = [
        [f"`{column.name}`", column.unit, DTYPES[column.kind], column.better or "", _text(column.doc)]
        + ([f"`{_cell(column.formula)}`" if column.formula else "", _text(column.source)] if defined else [])
        for column in columns
    ]
    titles = ["column", "unit", "dtype", "better", "meaning", *(["formula", "source"] if defined else [])]
    for row in [titles, ["---"] * len(titles), *cells]:
        yield f"| {' | '.join(row)} |"
    yield ""


def _cell(text: str) -> str:
    """Code in a cell of a Markdown table."""
    return text.replace("|", r"\|")


def _text(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return _cell(text).replace("<", "&lt;")


def main(arguments: Sequence[str]) -> int:
    """Write the columns below the marker in the named file; without a name, print them."""
    if not arguments:
        print(as_markdown())
        return 0
    page = Path(arguments[0])
    page.write_text(page.read_text(encoding="utf-8").partition(MARKER)[0] + as_markdown(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
