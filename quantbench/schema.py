"""The four tables: their columns with units, and the explicit parquet schema that is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantbench.errors import StoreError
from quantbench.metrics import all_columns
from quantbench.record import SCHEMA_VERSION, Column

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = ("scenarios", "samples", "outputs", "runs")
_VERSION_KEY = b"quantbench_schema_version"

IDENTITY_COLUMNS = (
    Column("run_id", "", kind="string", doc="one pytest session"),
    Column("started_at", "UTC", kind="time", doc="start of the run"),
    Column("scenario_id", "", kind="string", doc="model/method-precision/prompts: the pytest id"),
    Column("scenario_key", "", kind="string", doc="sha256 of what was asked and changes what is measured"),
    Column("model", "", kind="string", doc="as asked for"),
    Column("method", "", kind="string"),
    Column("precision", "", kind="string"),
    Column("prompts", "", kind="string", doc="prompt set"),
    Column("repeat", "", kind="int"),
    Column("status", "", kind="string", doc="ok, skipped, oom, timeout, crashed or error"),
    Column("reason", "", kind="string", doc="why the status is not ok"),
    Column("traceback", "", kind="string"),
    Column("control", "", kind="bool", doc="the reference measured once more: the noise floor"),
    Column("reference", "", kind="string", doc="the variant compared with"),
    Column("is_reference", "", kind="bool"),
    Column("bits", "bits", doc="nominal"),
    Column("device", "", kind="string", doc="as asked for"),
    Column("device_found", "", kind="string", doc="where the weights were found: cpu or cuda:N; never another than asked for"),
    Column("threads", "", kind="int", doc="as used"),
    Column("context", "tokens", kind="int", doc="as used"),
    Column("output_tokens", "tokens", kind="int", doc="timed answer length"),
    Column("answer_tokens", "tokens", kind="int", doc="greedy answer length at most"),
    Column("continuation_tokens", "tokens", kind="int", doc="teacher-forced positions per prompt"),
    Column("seed", "", kind="int"),
    Column("anchor", "", kind="string", doc="what the rounds alternated with"),
    Column("kernel", "", kind="string", doc="kernel class found in use"),
    Column("kv_dtype", "", kind="string"),
    Column("checkpoint_dtype", "", kind="string", doc="a bf16 checkpoint loses nothing in bf16 by construction"),
    Column("predicted_weight_bytes", "bytes", kind="int", doc="weight_bytes as planned from shapes before loading"),
    Column("instrument_check", "", kind="bool", doc="the model only checks the instrument"),
    Column("facts", "", kind="string", doc="JSON: whatever else was found rather than asked"),
    Column("null_reasons", "", kind="string", doc="JSON: why each null metric of an ok row is null"),
    Column("machine", "", kind="string", doc="fingerprint of the hardware"),
    Column("cpu", "", kind="string"),
    Column("gpus", "", kind="string"),
    Column("isa", "", kind="string"),
    Column("versions", "", kind="string", doc="JSON: library versions"),
    Column("schema_version", "", kind="int"),
)
SAMPLE_COLUMNS = (
    Column("run_id", "", kind="string"),
    Column("scenario_id", "", kind="string"),
    Column("scenario_key", "", kind="string"),
    Column("repeat", "", kind="int"),
    Column("phase", "", kind="string", doc="prefill, gap, e2e, call, and the same of the anchor; score, by prompt or chunk"),
    Column("round", "", kind="int"),
    Column("index", "", kind="int", doc="prompt; for gaps prompt x (output_tokens - 1) + position"),
    Column("value_s", "s", "lower"),
)
OUTPUT_COLUMNS = (
    Column("run_id", "", kind="string"),
    Column("scenario_id", "", kind="string"),
    Column("scenario_key", "", kind="string"),
    Column("repeat", "", kind="int"),
    Column("index", "", kind="int", doc="prompt"),
    Column("prompt", "", kind="string"),
    Column("prompt_tokens", "", kind="ids"),
    Column("reference_tokens", "", kind="ids"),
    Column("variant_tokens", "", kind="ids"),
    Column("reference_text", "", kind="string", doc="model output: untrusted"),
    Column("variant_text", "", kind="string", doc="model output: untrusted"),
    Column("exact_match", "", kind="bool"),
    Column("first_divergence", "tokens", kind="int", doc="null when the answers are equal, or have no token ids"),
    Column("token_match", "ratio", "higher"),
    Column("chrf", "chrF", "higher"),
    Column("scored_tokens", "tokens", kind="int", doc="positions of the continuation compared with the reference"),
    Column("kld", "nats", "lower", kind="floats", doc="KL(reference || variant) at each of them, in their order"),
    Column("kld_mean", "nats", "lower", doc="mean of kld"),
    Column("top1_agreement", "ratio", "higher", doc="share of positions where both put the same token first"),
    Column("nll_mean", "nats", "lower", doc="mean negative log-likelihood of the continuation"),
)
RUN_COLUMNS = (
    Column("run_id", "", kind="string"),
    Column("started_at", "UTC", kind="time"),
    Column("finished_at", "UTC", kind="time"),
    Column("command", "", kind="string"),
    Column("commit", "", kind="string"),
    Column("planned", "scenarios", kind="int"),
    Column("finished", "scenarios", kind="int"),
    Column("ok", "scenarios", kind="int"),
    Column("interrupted", "", kind="bool"),
    Column("profile", "", kind="string"),
    Column("engine", "", kind="string"),
    Column("machine", "", kind="string"),
    Column("machine_facts", "", kind="string", doc="JSON"),
    Column("versions", "", kind="string", doc="JSON"),
    Column("schema_version", "", kind="int"),
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


def schema(table: str) -> pa.Schema:
    """The explicit parquet schema of a table; each field carries what there is to know of its column as metadata."""
    import pyarrow as pa

    types = {
        "float": pa.float64(), "int": pa.int64(), "string": pa.string(), "bool": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"), "ids": pa.list_(pa.int32()),
        "floats": pa.list_(pa.float32()),
    }  # fmt: skip
    fields = [pa.field(column.name, types[column.kind], metadata=_described(column)) for column in table_columns(table)]
    return pa.schema(fields, metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()})


def _described(column: Column) -> dict[str, str]:
    return {
        "unit": column.unit, "better": column.better or "", "doc": column.doc,
        "formula": column.formula, "source": column.source,
    }  # fmt: skip
