"""``quantbench run`` and ``demo``: the shipped benchmarks through pytest; the options come from the one table of settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from quantbench.cli.complete import completion
from quantbench.cli.guard import FAILED, INSUFFICIENT, INTERRUPTED, REGRESSION, USAGE
from quantbench.cli.output import message
from quantbench.planning.options import OPTIONS, Option

_PLUGIN = "quantbench.plugin"
_TYPES: Mapping[str, Any] = {
    "text": str | None, "list": list[str] | None, "int": int | None, "float": float | None, "flag": bool,
}  # fmt: skip

# A surrounding project's pytest settings are meant for its own tests; only its quantbench_* keys count here. Two of them reach
# beyond tests: pythonpath has modules of the current folder shadow libraries, and log_file empties the file that it names.
_ISOLATED = (
    "--noconftest", "--import-mode=importlib", "--assert=plain", "-p", "no:cacheprovider", "-o", "addopts=",
    "-o", "pythonpath=", "-o", "log_file=", "-o", "filterwarnings=default",
    "-o", "python_files=test_*.py", "-o", "python_functions=test_*",
)  # fmt: skip


_DEMO: Mapping[str, Any] = {
    "method": ["torch,torch-dynamic,gguf"], "precision": ["fp32,int8,q8_0,q4_k_m"], "prompts": ["ten"], "profile": "quick",
    "no_probes": True,
}  # fmt: skip
"""What takes little time to make: nothing is calibrated or trained."""


class _Watch:
    """Plans before pytest prints anything, and notes at the end of the session whether only the comparison failed it."""

    failed = ""
    error: Exception | None = None
    planned: Sequence[str] = ()

    def pytest_configure(self, config: Any) -> None:
        import pytest

        from quantbench.plugin import session_of

        try:
            self.planned = [scenario.id for scenario in session_of(config).planned.values()]
        except Exception as error:  # noqa: BLE001 - pytest would print a traceback, and this command one sentence
            self.error = error
            raise pytest.UsageError from None  # no text: this command prints the message itself

    def pytest_unconfigure(self, config: Any) -> None:
        from quantbench.plugin import FAILED_COMPARISON

        self.failed = config.stash.get(FAILED_COMPARISON, "")


def run(expression: str | None, benchmark_json: Path | None, **values: Any) -> None:
    """Measure scenarios and store the results."""
    import pytest

    given = {option.key: values[option.key] for option in OPTIONS if _is_given(values[option.key])}
    watch = _Watch()
    code = pytest.main(_arguments(given, expression, benchmark_json), plugins=[watch])
    if watch.error:
        raise watch.error
    if watch.failed:
        raise typer.Exit(REGRESSION if watch.failed == "regression" else INSUFFICIENT)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        example = f"; an example of a scenario's name is {watch.planned[0]}" if watch.planned else ""
        message(f"nothing was selected by -k {expression!r}{example}" if expression else "there is nothing to measure")
    raise typer.Exit(_exit_code(code))


def demo(
    *,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="another model than the built-in canary")] = "canary",
    results: Annotated[str, typer.Option("--results", metavar="PATH", help="folder or URI of the parquet tables")] = "results",
) -> None:
    """Measure four variants in about a minute."""
    asked = {"model": [model], "results": results, **_DEMO}
    run(None, None, **{option.key: asked.get(option.key) for option in OPTIONS})


def _arguments(given: Mapping[str, Any], expression: str | None, benchmark_json: Path | None) -> list[str]:
    """The command line for pytest: options not given are left out, so that ini keys apply."""
    installed = [point.name for point in entry_points(group="pytest11") if point.value == _PLUGIN]
    arguments = ["--pyargs", "quantbench.suite", "-p", *(installed[:1] or [_PLUGIN]), *_ISOLATED]
    for option in OPTIONS:
        if option.key in given:
            arguments += _spelled(f"--quantbench-{option.name}", given[option.key])
    if expression:
        arguments += ["-k", expression]
    if benchmark_json:
        arguments += [f"--benchmark-json={benchmark_json}"]
    return arguments


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != []


def _spelled(name: str, value: Any) -> list[str]:
    if value is True:
        return [name]
    return [f"{name}={each}" for each in (value if isinstance(value, list) else [value])]


def _exit_code(code: int) -> int:
    """Pytest's exit code as this command's: 1 for failures, 2 for usage errors, 130 for Ctrl-C."""
    return {0: 0, 1: FAILED, 2: INTERRUPTED, 3: FAILED, 4: USAGE, 5: USAGE}.get(code, FAILED)


def _parameter(option: Option) -> inspect.Parameter:
    """A setting as a parameter that typer turns into an option; its default is shown but not passed on."""
    default_text = f" (default: {option.default})" if option.default else ""
    info = typer.Option(
        f"--{option.name}", metavar=option.metavar or None, help=option.help + default_text,
        autocompletion=completion(option.name),
    )  # fmt: skip
    default = False if option.kind == "flag" else None
    return inspect.Parameter(
        option.key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[_TYPES[option.kind], info]
    )


def _own(name: str, kind: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, info])


run.__signature__ = inspect.Signature([  # type: ignore[attr-defined]  # functions take it, their stub does not say so
    *(_parameter(option) for option in OPTIONS),
    _own("expression", str | None, typer.Option("-k", metavar="EXPR", help="only scenarios and phases whose name matches")),
    _own("benchmark_json", Path | None, typer.Option("--benchmark-json", metavar="FILE", help="pytest-benchmark's report")),
])  # fmt: skip
