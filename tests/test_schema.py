"""The columns promised, their page in results/README.md, and files that an older or a newer version wrote."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import StoreError
from quantbench.core.machine import Machine
from quantbench.core.record import SCHEMA_VERSION, Output, Record, Sample, Status
from quantbench.core.scenario import Scenario, Variant
from quantbench.metrics import METRICS, all_columns
from quantbench.results.schema import DTYPES, MARKER, as_markdown, main, schema, table_columns
from quantbench.results.store import Run, Store, load

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("scenarios", "samples", "outputs", "runs")
WRITTEN_BEFORE = [Path(__file__).parent / "data" / "schema" / f"version-{version}" for version in range(1, SCHEMA_VERSION)]
NEWER = {
    2: {"scenarios": {"predicted_weight_bytes"}, "samples": {"tokens"}},
    3: {"scenarios": {"batch"}},
}
"""Some of the columns that a version added."""
README = Path(__file__).parents[1] / "results" / "README.md"
SCENARIO_COLUMNS = (
    "run_id", "started_at", "run_number", "scenario_id", "scenario_key", "model", "method", "precision",
    "artifact", "artifact_maker", "artifact_sha256", "artifact_audit", "artifact_note", "prompts",
    "repeat", "attempts", "status", "reason", "traceback", "control", "reference", "is_reference", "bits", "device",
    "device_found",
    "threads", "waiting", "context", "batch", "output_tokens", "answer_tokens", "continuation_tokens", "answered_prompts",
    "seed", "anchor", "kernel", "kv_dtype", "checkpoint_dtype", "predicted_weight_bytes", "instrument_check", "facts",
    "null_reasons", "machine", "cpu", "gpus", "isa", "versions", "schema_version", "scored_tokens", "kld_mean",
    "kld_mean_se", "kld_median", "kld_p99", "kld_max", "top1_agreement", "top1_agreement_se", "delta_p_rms",
    "delta_p_rms_se", "ppl", "ppl_se", "ppl_ratio", "ppl_ratio_se", "rounds", "prefill_s", "prefill_mad_s", "prefill_p90_s",
    "prefill_p99_s", "ttft_s", "ttft_mad_s", "ttft_p90_s", "ttft_p99_s", "tpot_p99_s", "e2e_p99_s", "tpot_s", "tpot_mad_s",
    "tpot_p90_s", "e2e_s", "e2e_mad_s", "e2e_p90_s", "prefill_tps", "prefill_tps_low", "prefill_tps_high", "decode_tps",
    "decode_tps_low", "decode_tps_high", "tps", "tps_low", "tps_high", "anchor_prefill_tps", "prefill_ratio",
    "prefill_ratio_low", "prefill_ratio_high", "anchor_decode_tps", "decode_ratio", "decode_ratio_low", "decode_ratio_high",
    "import_s", "load_s", "quantize_s", "parameters", "weight_bytes", "weight_bytes_running", "bits_per_weight",
    "footprint_bytes", "artifact_bytes", "peak_rss_bytes", "peak_rss_growth_bytes", "load_peak_rss_bytes", "rss_anon_bytes",
    "rss_file_bytes", "peak_device_allocated_bytes", "peak_device_reserved_bytes", "exact_match", "exact_match_se",
    "first_divergence", "first_divergence_se", "token_match", "token_match_se", "chrf", "chrf_se", "runs_on_cpu",
    "runs_on_cuda", "conversion", "finetunes", "finetune_loss_first", "finetune_loss_last", "saves_and_reloads",
    "capability_notes", "round_prompts", "state_dict_bytes", "nonzero_fraction", "sparse_bytes", "call_s", "call_mad_s",
    "call_p90_s", "call_ratio", "call_ratio_low", "call_ratio_high", "output_cosine", "output_max_abs_error", "concurrency",
    "concurrent_tps", "concurrent_ttft_s", "concurrency_tps", "top_logprob_positions", "top1_served", "topk_overlap",
    "topk_logprob_error", "native_decode_tps", "native_prefill_tps", "weight_kinds", "footprint_note", "clusters",
    "few_clusters", "kld_mean_low", "kld_mean_high", "top1_agreement_low", "top1_agreement_high", "ppl_low", "ppl_high",
    "ppl_ratio_low", "ppl_ratio_high", "chrf_low", "chrf_high", "memory_bandwidth_bps", "bytes_per_token", "mbu",
    "n_gpu_layers",
    "decode_path", "decode_difference", "decode_fallback", "compile_s", "device_step_s", "launch_share",
    "energy_per_token_j", "energy_window_s", "energy_source", "kld_min", "kld_p001", "kld_p01", "kld_p05", "kld_p10",
    "kld_p90", "kld_p95", "kld_p999", "kld_mean_se_iid", "delta_p_mean", "delta_p_mean_se", "delta_p_mean_se_iid",
    "delta_p_rms_se_iid", "delta_p_min", "delta_p_p001", "delta_p_p01", "delta_p_p05", "delta_p_p10", "delta_p_p25",
    "delta_p_median", "delta_p_p75", "delta_p_p90", "delta_p_p95", "delta_p_p99", "delta_p_p999", "delta_p_max",
    "top1_agreement_se_iid", "itl_s", "itl_ratio", "ppl_se_iid", "ppl_reference", "ppl_reference_se",
    "ppl_reference_se_iid", "nll_correlation", "ln_ppl_ratio", "ln_ppl_ratio_se", "ln_ppl_ratio_se_iid", "ppl_ratio_se_iid",
    "ppl_difference", "ppl_difference_se", "ppl_difference_se_iid", "scoring_tps", "score_positions", "kld_slicing",
    "top1_slicing", "fallback_tensors", "fallback_bytes", "load_peak_device_allocated_bytes", "peak_device_process_bytes",
    "peak_device_used_bytes", "device_context_bytes",
    "gpu_sm_clock_mhz", "gpu_sm_clock_min_mhz", "gpu_sm_clock_max_mhz", "gpu_memory_clock_mhz",
    "gpu_temperature_c", "gpu_throttle_reasons", "gpu_power_capped_s", "gpu_thermal_capped_s", "gpu_power_limit_w",
    "others_cpu_share", "steal_share", "others_gpu_share", "disturbed", "disturbance",
    "saturation_concurrency", "tpot_difference_s", "topk_kld", "topk_tail", "server_pss_bytes", "server_device_bytes",
    "ear", "ear_se", "ear_low", "ear_high", "confidence_median", "kld_confident", "kld_confident_se",
    *(f"kld_confidence_d{number}" for number in range(1, 11)),
    "kld_floor", "kld_floor_se", "top1_floor", "ear_floor",
)  # fmt: skip
"""Written down, so that a column that is renamed or dropped is noticed; columns are only ever added."""

RECORD = Record(
    scenario=Scenario(model="canary", variant=Variant(method="gguf", precision="q8_0"), prompts="ten"),
    scenario_key="c" * 64,
    status=Status.OK,
    predicted_weight_bytes=7,
    values={"weight_bytes": 8, "kld_mean": 0.5},
    samples=(Sample("e2e", 0, 0, 0.5, tokens=32),),
    outputs=(
        Output(
            index=0, prompt="p", prompt_tokens=(1,), reference_tokens=(2,), variant_tokens=(2,), reference_text="a",
            variant_text="a", exact_match=True, first_divergence=None, token_match=1.0, chrf=100.0,
        ),
    ),
)  # fmt: skip


def _write(results: Path, run_id: str = "new-run", *, day: int = 3, record: Record = RECORD) -> None:
    machine = Machine(cpu="Example CPU", cpus=2, memory_bytes=2**33, isa="avx2", system="Linux x86_64")
    run = Run(
        machine=machine, versions={}, command="", commit="", profile="quick", engine="inline", run_id=run_id,
        started_at=datetime(2026, 1, day, tzinfo=UTC),
    )  # fmt: skip
    opened = Store(str(results), run)
    opened.append(record, instrument_check=True)
    opened.finish(planned=1, finished=1, ok=1, interrupted=False)


def _kinds(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(dtype) for name, dtype in frame.dtypes.items()}


def _rewrite(results: Path, table: str, *, version: int | None = None, **columns: Any) -> Path:
    """Add ``columns`` to the newest file of a table, as another version of quantbench might have written it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = max((results / table).rglob("*.parquet"))
    found = pq.ParquetFile(path).read()
    metadata = dict(found.schema.metadata)
    if version is not None:
        metadata[b"quantbench_schema_version"] = str(version).encode()
    for name, value in columns.items():
        found = found.append_column(name, pa.array([value] * len(found)))
    pq.write_table(found.replace_schema_metadata(metadata), path)
    return path


# --- the columns


def test_the_columns_of_scenarios_are_those_written_down() -> None:
    """A third party's metric may add more."""
    names = schema("scenarios").names
    assert [name for name in SCENARIO_COLUMNS if name not in names] == []
    ours = [metric for metric in METRICS if metric.compute.__module__.startswith("quantbench.")]
    theirs = {column.name for metric in METRICS if metric not in ours for column in metric.columns}
    assert set(names) - theirs == set(SCENARIO_COLUMNS), "write the new column down here"
    assert len(SCENARIO_COLUMNS) == len(set(SCENARIO_COLUMNS))


@pytest.mark.parametrize("table", TABLES)
def test_every_column_says_its_unit_and_occurs_once(table: str) -> None:
    found = schema(table)
    assert len(set(found.names)) == len(found.names)
    for field in found:
        assert set(field.metadata) == {b"unit", b"better", b"doc", b"formula", b"source"}, field.name
        assert field.metadata[b"better"] in (b"", b"lower", b"higher"), field.name


def test_every_metric_has_a_unit_that_its_name_does_not_contradict() -> None:
    units = {"_s": "s", "_bytes": "bytes", "_tps": "tokens/s", "_se": None, "_ratio": "ratio"}
    for column in all_columns():
        assert column.unit or column.kind in ("bool", "string"), column.name
        assert column.doc, column.name
        for ending, unit in units.items():
            if unit and column.name.endswith(ending):
                assert column.unit == ("nats" if column.name.startswith("ln_") else unit), column.name


def test_a_standard_error_has_the_unit_of_its_figure() -> None:
    by_name = {column.name: column for column in all_columns()}
    for name, column in by_name.items():
        for ending in ("_se", "_low", "_high"):
            if name.endswith(ending):
                assert column.unit == by_name[name.removesuffix(ending)].unit, name
                assert column.better is None, name


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(StoreError, match=r"^there is no table 'scenario'; the tables are scenarios, samples, outputs, runs$"):
        schema("scenario")


@pytest.mark.parametrize("table", TABLES)
def test_every_file_says_its_version_and_what_its_columns_are(table: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    _write(tmp_path)
    [path] = (tmp_path / table).rglob("*.parquet")
    found = pq.read_schema(path)
    assert found.metadata[b"quantbench_schema_version"] == str(SCHEMA_VERSION).encode()
    assert found.equals(schema(table))
    assert [field.metadata for field in found] == [field.metadata for field in schema(table)]


@pytest.mark.parametrize("table", TABLES)
def test_loaded_dtypes_are_those_of_the_schema(table: str, tmp_path: Path) -> None:
    _write(tmp_path)
    assert _kinds(load(str(tmp_path), table)) == {column.name: DTYPES[column.kind] for column in table_columns(table)}


# --- their page


def test_the_page_in_results_is_up_to_date() -> None:
    """``python -m quantbench.results.schema results/README.md`` writes it."""
    prose, marker, columns = README.read_text(encoding="utf-8").partition(MARKER)
    assert "quantbench.load" in prose
    assert marker + columns == as_markdown()


def test_the_page_has_every_column_with_what_is_known_of_it() -> None:
    page = as_markdown()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for table in TABLES:
        for column in table_columns(table):
            [row, *_] = [row for row in rows if row.startswith(f"| `{column.name}` |")]
            cells = [cell.strip() for cell in row.split("|")[1:]]  # no bar comes before the formula
            assert column.doc, f"{table}.{column.name} has no meaning"
            told = [column.unit, DTYPES[column.kind], column.better or ""]
            assert cells[1:4] == told or table != "scenarios", column.name
    assert len(rows) == sum(len(table_columns(table)) for table in TABLES)


def test_a_cell_of_the_page_is_one_cell() -> None:
    """Formulas hold bars, and texts what a browser would take for a tag."""
    tables = [block.splitlines() for block in as_markdown().split("\n\n") if block.startswith("| column")]
    assert len(tables) > len(TABLES)
    for head, _, *rows in tables:
        for row in rows:
            assert row.replace(r"\|", "").count("|") == head.count("|"), row


def test_the_page_is_written_below_its_marker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"# mine\n\n{MARKER}\nold\n")
    assert main([str(page)]) == 0
    assert page.read_text() == f"# mine\n\n{as_markdown()}"
    assert main([]) == 0
    assert capsys.readouterr().out == as_markdown() + "\n"


# --- other versions


@pytest.fixture(params=WRITTEN_BEFORE, ids=lambda folder: folder.name)
def old_files(request: pytest.FixtureRequest) -> Path:
    """Rows that an older version wrote."""
    return Path(request.param)


def _version(folder: Path) -> int:
    return int(folder.name.removeprefix("version-"))


@pytest.mark.parametrize("table", TABLES)
def test_an_older_file_loads_with_todays_columns_and_dtypes(table: str, old_files: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    [*paths] = (old_files / table).rglob("*.parquet")
    wrote = b"%d" % _version(old_files)
    assert {pq.read_schema(path).metadata[b"quantbench_schema_version"] for path in paths} == {wrote}
    _write(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old = load(str(old_files), table)
    assert _kinds(old) == _kinds(load(str(tmp_path), table))
    lacking = set(old.columns) - set(pq.read_schema(paths[0]).names)
    assert all(old[name].isna().all() for name in lacking)
    for version, added in NEWER.items():
        assert lacking >= added.get(table, set()) or version <= _version(old_files)


def test_an_older_files_values_are_what_was_written(old_files: Path) -> None:
    """As ``data/schema/write.py`` has them."""
    scenarios, samples, outputs, runs = (load(str(old_files), table) for table in TABLES)
    assert scenarios["status"].tolist() == ["ok", "skipped"]
    assert scenarios["weight_bytes"].tolist()[0] == 2**53 + 1
    assert scenarios["kld_mean"].tolist()[0] == 0.25
    assert scenarios["runs_on_cpu"].tolist()[0] is True
    assert scenarios["schema_version"].tolist() == [_version(old_files)] * 2
    assert samples[["phase", "value_s"]].to_numpy().tolist() == [["prefill", 0.5], ["gap", 0.25]]
    assert [list(ids) for ids in outputs["variant_tokens"]] == [[3, 5]]
    assert outputs["kld"][0].tolist() == [0.125, 0.375]
    assert runs["planned"].tolist() == [2]


@pytest.mark.parametrize("day", [1, 3], ids=["the new file first", "the old file first"])
@pytest.mark.parametrize("table", TABLES)
def test_old_and_new_files_load_together(table: str, day: int, old_files: Path, tmp_path: Path) -> None:
    """The old ones are of the second of January."""
    _write(tmp_path / "new", day=day)
    for folder in (old_files, tmp_path / "new"):
        shutil.copytree(folder, tmp_path / "mixed", dirs_exist_ok=True)
    mixed, new, old = (load(str(folder), table) for folder in (tmp_path / "mixed", tmp_path / "new", old_files))
    assert _kinds(mixed) == _kinds(new)
    assert mixed["run_id"].is_monotonic_increasing == (day == 1)
    for name, part in (("new-run", new), ("old-run", old)):
        rows = mixed[mixed["run_id"] == name].reset_index(drop=True)
        assert len(rows) > 0
        assert rows.astype(object).where(rows.notna(), None).equals(part.astype(object).where(part.notna(), None))
    if table == "scenarios":
        assert mixed.set_index("run_id")["predicted_weight_bytes"].dropna().to_dict() == {"new-run": 7}


def test_a_newer_file_loads_with_a_warning_and_keeps_its_columns(tmp_path: Path) -> None:
    _write(tmp_path, "a-run")
    _write(tmp_path, "b-run")
    path = _rewrite(tmp_path, "scenarios", version=SCHEMA_VERSION + 1, joy=1.5, mood="bright")
    with pytest.warns(UserWarning, match="schema version") as caught:
        frame = load(str(tmp_path))
    [sentence] = [str(each.message) for each in caught]
    assert str(path) in sentence
    assert f"schema version {SCHEMA_VERSION + 1}" in sentence
    assert f"knows {SCHEMA_VERSION}" in sentence
    assert "joy, mood" in sentence
    assert "\n" not in sentence
    assert list(frame.columns) == [*schema("scenarios").names, "joy", "mood"]
    assert frame["run_id"].tolist() == ["a-run", "b-run"]
    assert frame["weight_bytes"].tolist() == [8, 8]
    assert frame["joy"].isna().tolist() == [True, False]
    assert frame["mood"].tolist()[1] == "bright"


def test_columns_of_a_metric_that_is_not_installed_are_kept(tmp_path: Path) -> None:
    """Somebody else's; the version is today's, and there is nothing to warn of."""
    _write(tmp_path, "a-run")
    _rewrite(tmp_path, "scenarios", theirs=3)
    _write(tmp_path, "b-run", record=replace(RECORD, predicted_weight_bytes=9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = load(str(tmp_path))
    assert frame["predicted_weight_bytes"].tolist() == [7, 9]
    assert str(frame["theirs"].dtype) == "Int64"
    assert frame["theirs"].tolist()[0] == 3
    assert frame["theirs"].isna().tolist() == [False, True]


def test_of_columns_that_contradict_each_other_the_later_file_is_left_out_with_a_warning(tmp_path: Path) -> None:
    _write(tmp_path, "a-run")
    _rewrite(tmp_path, "scenarios", theirs=3)
    _write(tmp_path, "b-run")
    path = _rewrite(tmp_path, "scenarios", theirs="three")
    with pytest.warns(UserWarning, match="left out") as caught:
        frame = load(str(tmp_path))
    assert [str(path) in str(each.message) for each in caught] == [True]
    assert frame["theirs"].tolist() == [3]


@pytest.mark.parametrize("cpus", [1, 3])
def test_of_many_files_only_the_broken_are_left_out_and_the_order_stays(
    cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small files are read in batches, each by a thread, and joined there; an old, a newer and a broken one lie among them."""
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    for number in range(40):
        _write(tmp_path, f"m-{number:02}")
    _rewrite(tmp_path, "scenarios", version=SCHEMA_VERSION + 1, joy=1.5)  # the last one
    paths = sorted((tmp_path / "scenarios").rglob("*.parquet"))
    paths[7].write_bytes(paths[7].read_bytes()[:-9])
    [old, _] = sorted((WRITTEN_BEFORE[-1] / "scenarios").rglob("*.parquet"))
    shutil.copy(old, paths[21])
    with pytest.warns(UserWarning, match="left out|upgrade quantbench") as caught:
        frame = load(str(tmp_path))
    assert [str(each.message).split()[0] for each in caught] == [str(paths[7]), str(paths[39])]
    expected = ["old-run" if number == 21 else f"m-{number:02}" for number in range(40) if number != 7]
    assert frame["run_id"].tolist() == expected
    assert frame["joy"].dropna().tolist() == [1.5]
    assert _kinds(frame)["weight_bytes"] == "Int64"
    assert frame["weight_bytes"].tolist() == [2**53 + 1 if name == "old-run" else 8 for name in expected]
