"""Every option of every command, as the app declares them: a new one is covered by being there."""

from __future__ import annotations

import json
import os
import shutil
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import typer
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.cli.complete import completion
from quantbench.core.text import MOST
from quantbench.methods import METHODS
from quantbench.models import MODELS
from quantbench.planning.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hypothesis.strategies import SearchStrategy

_FEW = {"doctor": 1, "tables": 3, "report": 3}
"""Examples of what takes long, in the short form."""

COMMANDS: Mapping[str, Any] = get_command(app).commands  # type: ignore[attr-defined]  # a group has them
ODD = (
    "", " ", ",", "x", "-", "--", "=", "a=b", "0", "-1", "1.5", "nan", "inf", "1e999", "9" * 5000, "1000000000",
    "99999999999999999999", "y" * 90_000, "~nosuchuser", "~nosuchuser/x.gguf", "~", "a/b", "a/b:c", "a\nb",
    "\x1b[31m\u202e", "é" * 300, "[" * 3000, "{}",
    "tokens:" + "9" * 5000, "ten@" + "9" * 5000, "text:", "seeded", "cuda:" + "9" * 5000, "cuda", "http://[::1",
    "http://x:99999/v1", "bogus://x", "://", "file:///nonesuch", "dummy:", "dummy:x", "gguf:--x", "vllm/", "last",
    "1" * 400 + "GB", "8GiB", "METRIC=5",
)  # fmt: skip
FILES = (
    "fifo", "fifo.json", "fifo.html", "folder", "empty", "text.txt", "m.toml", "config.json", "c.jsonl", "b.json",
    "odd.parquet", "odd.gguf", "results", "/dev/zero", "/dev/full", "/dev/null", "text:/dev/zero", "text:fifo", "text:text.txt",
    "mine=odd.gguf", "new.html", "new.gguf", "new/er", "secret",
)  # fmt: skip
"""What the working folder has, or may get: nothing outside it is ever named as what to write."""


def _values(parameter: Any) -> SearchStrategy[str]:
    """What is given to a parameter: a name that the shell would offer, an odd text, a file of each kind."""
    dashed = parameter.name.replace("_", "-")
    offers = completion({"kind": "table", "names": "column", "form": "to"}.get(dashed, dashed))
    declared = getattr(parameter, "type_descriptor", None) or getattr(parameter, "type", None)  # depends on typer's version
    offered = tuple(getattr(declared, "choices", None) or ()) or (tuple(offers("")) if offers else ())
    usual = st.sampled_from([str(each) for each in offered]) if offered else st.nothing()
    return usual | st.sampled_from(FILES) | st.sampled_from(ODD) | usual


def _given(parameter: Any) -> SearchStrategy[list[str]]:
    """A parameter as words of a command line."""
    if parameter.param_type_name == "argument":
        count = 2 if parameter.nargs == -1 else 1
        return st.lists(_values(parameter), min_size=int(parameter.required), max_size=count)
    name = st.sampled_from([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return name.map(lambda each: [each])
    return st.tuples(name, _values(parameter)).map(lambda pair: [*pair])


def _lines(name: str) -> SearchStrategy[list[str]]:
    """Command lines of one command with all arguments and some options."""
    parameters = [each for each in COMMANDS[name].params if each.name not in ("help", "install_completion", "show_completion")]
    needed = [_given(each) for each in parameters if each.required or each.param_type_name == "argument"]
    others = st.lists(st.one_of([_given(each) for each in parameters] or [st.just([])]), max_size=3)
    return st.tuples(others, st.tuples(*needed)).map(lambda both: [name, *chain(*both[0], *both[1])])


@pytest.fixture
def workplace(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of every kind, and nothing that measures, quantizes or draws."""
    for name in ("fifo", "fifo.json", "fifo.html"):
        os.mkfifo(world / name)
    (world / "folder").mkdir()
    (world / "empty").touch()
    (world / "text.txt").write_text("Once upon a time\n" * 20)
    (world / "m.toml").write_text('models = ["canary"]\n[methods]\ntorch = ["fp32"]\n')
    shutil.copy(MODELS["canary"].folder() / "config.json", world)
    (world / "c.jsonl").write_text('{"messages": [{"role": "user", "content": "Why?"}]}\n')
    (world / "b.json").write_text(json.dumps({"benchmarks": [{"name": "a", "extra_info": {}}]}))
    (world / "odd.parquet").write_bytes(b"PAR1odd")
    (world / "odd.gguf").write_bytes(b"GGUF\x03\0\0\0")
    shutil.copytree(Path(__file__).parents[1] / "data" / "schema" / "version-2", world / "results")
    (world / "secret").write_text("s")
    for method in METHODS:
        if method.saver:
            monkeypatch.setattr(method, "saver", lambda _spec, _settings, out: (out / "model.gguf").write_bytes(b"GGUF"))
    monkeypatch.setattr("quantbench.cli.racing.Race.run", _nothing)
    monkeypatch.setattr("quantbench.report.picture", lambda *_: b"")
    monkeypatch.setattr(pytest, "main", _only_plan)
    return world


def _nothing(*_: object) -> None:
    raise typer.Exit(0)


def _only_plan(arguments: Sequence[str], plugins: Sequence[Any]) -> int:
    """Stands for pytest's main: the options are read and planned as by the plugin, and nothing is collected."""
    given: dict[str, Any] = {}
    for option in OPTIONS:
        start = f"--quantbench-{option.name}"
        values = [word.partition("=")[2] for word in arguments if word.startswith(f"{start}=")]
        given[f"quantbench_{option.key}"] = values if option.kind == "list" and values else values[-1] if values else None
        if option.kind == "flag" and start in arguments:
            given[f"quantbench_{option.key}"] = True
    config = SimpleNamespace(
        getoption=given.__getitem__, getini=lambda _key: "", rootpath=Path.cwd(), stash=pytest.Stash(),
        invocation_params=SimpleNamespace(dir=Path.cwd(), args=arguments),
    )  # fmt: skip
    try:
        plugins[0].pytest_configure(config)
    except pytest.UsageError:
        return int(pytest.ExitCode.USAGE_ERROR)
    plugins[0].pytest_unconfigure(config)
    return int(pytest.ExitCode.OK)


@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.usefixtures("workplace")
def test_command(fuzz: Any, name: str) -> None:
    def check(line: list[str]) -> None:
        result = CliRunner().invoke(app, line)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        assert "quantbench: unexpected " not in result.stderr[: 2 * MOST], result.stderr[: 2 * MOST]
        assert result.exit_code in (0, 2, 3, 4), (result.exit_code, result.output[: 2 * MOST])
        assert len(result.stderr) <= 8 * MOST, len(result.stderr)

    fuzz(_lines(name), check, short=_FEW.get(name, 12))
