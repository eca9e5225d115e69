"""The command ``quantbench``: results go to stdout, messages to stderr.

Exit codes: 0 ok, 1 scenarios failed, 2 usage, 3 regression, 4 insufficient data, 130 Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from quantbench.cli.catalogue import methods, metrics, models
from quantbench.cli.compare import compare
from quantbench.cli.contrast import contrast
from quantbench.cli.doctor import doctor
from quantbench.cli.export import export
from quantbench.cli.guard import DEBUG, guarded
from quantbench.cli.pick import pick
from quantbench.cli.plan import plan
from quantbench.cli.quantize import quantize
from quantbench.cli.report import report
from quantbench.cli.results import recommend, tables
from quantbench.cli.run import demo, run
from quantbench.core.text import shortened

_GROUPS: Mapping[str, tuple[Callable[..., None], ...]] = {
    "Measure": (pick, run, plan, demo, quantize, doctor),
    "Read": (tables, recommend, compare, contrast, report, export),
    "Look up": (methods, metrics, models),
}


class _Grouped(TyperGroup):
    """The commands, which its help lists under the headings of ``_GROUPS``: typer's own panels take rich, which is slow."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - as it is called
        width = max(map(len, self.commands))
        for heading, group in _GROUPS.items():
            listed = [self.commands[command.__name__] for command in group]
            with formatter.section(heading):
                formatter.write_dl([(str(each.name).ljust(width), each.get_short_help_str(formatter.width)) for each in listed])

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _short_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _short_errors():
            return super().invoke(ctx)


@contextmanager
def _short_errors() -> Iterator[None]:
    """Cut the messages of typer's own errors, which quote what was given: it exports no class that all of them have."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):
            error.message = shortened(str(error.message))  # type: ignore[attr-defined]  # every such error has one
        raise


app = typer.Typer(name="quantbench", cls=_Grouped, no_args_is_help=True, rich_markup_mode=None)
for command in (command for group in _GROUPS.values() for command in group):
    app.command(command.__name__)(guarded(command))


def _show(requested: bool) -> None:
    """Print the version and exit."""
    if requested:
        typer.echo(f"quantbench {version('quantbench')}")
        raise typer.Exit


@app.callback()
def common(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
    _version: Annotated[bool, typer.Option("--version", callback=_show, is_eager=True, help="show the version")] = False,
) -> None:
    """What each quantization of your model costs and buys on your hardware.

    Exit codes: 0 ok, 1 scenarios failed, 2 usage, 3 regression, 4 insufficient data, 130 Ctrl-C.
    """
    DEBUG.set(debug)
