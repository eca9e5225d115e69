"""What any export format has in common: names, tables, the choice of metrics, and each consumer's schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest

from quantbench.core.errors import UsageError
from quantbench.export import EXPORTERS, export
from quantbench.results.schema import table_columns

SCHEMAS = Path(__file__).parents[1] / "data" / "export"
BROKEN: dict[str, list[Callable[[Any], Any]]] = {
    "github-action-benchmark": [
        lambda found: found[0].update(value=None),
        lambda found: found[0].update(value="1"),
        lambda found: found[0].pop("unit"),
        lambda found: found[0].update(range=[1, 2]),
        lambda found: found.clear(),
    ],
    "bmf": [
        lambda found: found[_NF4]["decode_tps"].pop("value"),
        lambda found: found[_NF4]["decode_tps"].update(lower_value=None),
        lambda found: found.update({"n" * 1025: found[_NF4]}),
        lambda found: found[_NF4].update({"m" * 65: {"value": 1}}),
    ],
    "pytorch-hud": [
        lambda found: found[0].pop("metric"),
        lambda found: found[0]["metric"].update(benchmark_values=1.0),
        lambda found: found[0]["metric"].update(benchmark_values=[None]),
        lambda found: found[0]["metric"]["extra_info"].update(low=1.0),
        lambda found: found[0]["benchmark"]["extra_info"].update(threads=2),
        lambda found: found[0]["dependencies"].update(torch="2.13.0"),
    ],
}
_NF4 = "canary/bitsandbytes-nf4/ten"


def _validator(name: str) -> Any:
    schema = json.loads((SCHEMAS / f"{name.replace('-', '_')}.schema.json").read_text(encoding="utf-8"))
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


@pytest.mark.parametrize("better", ["lower", "higher"])
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_written_is_what_the_consumer_reads(
    name: str, better: str, frame: pd.DataFrame, parsed: Callable[..., Any]
) -> None:
    _validator(name).validate(parsed(name, frame, better=better))


@pytest.mark.parametrize("name", BROKEN)
def test_the_consumers_schema_refuses_what_the_consumer_would(
    name: str, frame: pd.DataFrame, parsed: Callable[..., Any]
) -> None:
    found = parsed(name, frame, better="higher")
    for spoil in BROKEN[name]:
        spoiled = copy.deepcopy(found)
        spoil(spoiled)
        with pytest.raises(jsonschema.ValidationError):
            _validator(name).validate(spoiled)


def test_the_formats_by_name() -> None:
    assert [each.name for each in EXPORTERS] == ["bmf", "csv", "github-action-benchmark", "jsonl", "model-card", "pytorch-hud"]


def test_an_unknown_format_is_told_from_the_known(frame: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match="unknown export format 'pytorch-hub'; did you mean 'pytorch-hud'"):
        export("pytorch-hub", frame)


@pytest.mark.parametrize("name", ["bmf", "pytorch-hud", "github-action-benchmark"])
def test_figures_are_of_scenarios(name: str, frame: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match=f"{name} takes figures of the table 'scenarios', not of 'samples'"):
        export(name, frame, "samples")


@pytest.mark.parametrize("name", ["csv", "jsonl"])
@pytest.mark.parametrize("options", [{"better": "lower"}, {"metrics": ["decode_tps"]}], ids=["better", "metrics"])
def test_a_table_is_written_as_it_is(name: str, options: Any, frame: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match="omit --better and --metric"):
        export(name, frame, **options)


def test_a_metric_needs_a_direction_to_be_exported(frame: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match="unknown metric with a direction 'decode_tsp'; did you mean 'decode_tps'"):
        export("bmf", frame, metrics=["decode_tsp"])
    with pytest.raises(UsageError, match="unknown metric with a direction 'parameters'"):
        export("bmf", frame, metrics=["parameters"])
    with pytest.raises(UsageError, match="none of kld_mean is better when higher"):
        export("bmf", frame, better="higher", metrics=["kld_mean"])


def test_every_figure_has_a_direction_and_a_unit(frame: pd.DataFrame, parsed: Callable[..., Any]) -> None:
    directed = {column.name: column for column in table_columns("scenarios") if column.better}
    found = parsed("bmf", frame)
    names = {name for metrics in found.values() for name in metrics}
    assert {"decode_tps", "kld_mean", "weight_bytes", "ln_ppl_ratio"} <= names <= set(directed)
    assert all(column.unit and column.kind in ("float", "int") for column in directed.values())


def test_metrics_come_in_the_order_they_are_named(frame: pd.DataFrame, parsed: Callable[..., Any]) -> None:
    found = parsed("bmf", frame, metrics=["weight_bytes", "decode_tps", "weight_bytes"])
    assert list(found[_NF4]) == ["weight_bytes", "decode_tps"]


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_columns_that_are_not_known_here_come_last(name: str, frame: pd.DataFrame) -> None:
    newer = frame.assign(newest_tps=1.5, newest_note="=1")
    newer.loc[1:, "newest_tps"] = float("nan")
    text = "".join(export(name, newer))
    if name == "csv":
        back = pd.read_csv(StringIO(text), keep_default_na=False, na_values=[""])
    else:
        back = pd.read_json(StringIO(text), lines=True)
    assert list(back)[:-2] == [column.name for column in table_columns("scenarios")]
    assert list(back)[-2:] == ["newest_tps", "newest_note"]
    assert back["newest_tps"].dropna().tolist() == [1.5]
    assert set(back["newest_note"]) == {"'=1" if name == "csv" else "=1"}


@pytest.mark.parametrize("name", BROKEN)
def test_figures_are_of_known_metrics(name: str, frame: pd.DataFrame, parsed: Callable[..., Any]) -> None:
    assert parsed(name, frame.assign(newest_tps=1.5), better="higher") == parsed(name, frame, better="higher")
