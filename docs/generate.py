"""The reference, written from the code while the site is built: a hook of MkDocs.

A page asks for a part by a comment, ``<!-- generated: methods -->``, and holds the part in its place once it is built. None is
kept in the repository, so none can be out of date, and none needs torch. The hook also takes files along that pages link to
outside ``docs``, and puts each page's Markdown beside its HTML, for readers that follow ``llms.txt``.
"""

from __future__ import annotations

import json
import posixpath
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

import typer.main
from typer.cli import get_docs_for_click

from quantbench.advice.words import Scale, words
from quantbench.claims.claimed import claims, prose
from quantbench.cli import catalogue, guard
from quantbench.cli.app import app
from quantbench.core import errors
from quantbench.core.record import SCHEMA_VERSION, Column
from quantbench.core.scenario import PROFILES, Conditions, Effort, Precision
from quantbench.core.text import escape_markdown
from quantbench.export import EXPORTERS
from quantbench.methods import METHODS, Method
from quantbench.metrics import METRICS
from quantbench.models import MODELS, dummy_configs
from quantbench.planning.options import OPTIONS, Option
from quantbench.results.schema import DTYPES, IDENTITY_COLUMNS, table_columns
from quantbench.running.engines import ENGINES
from quantbench.tables import KINDS

ROOT = Path(__file__).resolve().parents[1]
ASKED = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\]\(([^)#\s:]+)((?:#[^)\s]*)?)\)")
"""The target and the anchor of a link without a scheme."""

COPIES = "repository/"
"""Where the site has files of the repository that are no pages."""

INCLUDED = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
_CODES = {
    0: "done, and everything was measured",
    guard.FAILED: "a scenario failed, nothing was measured, or quantbench itself went wrong",
    guard.USAGE: "bad input: an option, a name, a file or a model; one sentence says which, why, and what to do",
    guard.REGRESSION: "a comparison found a regression",
    guard.INSUFFICIENT: "not enough data to answer: no results, too few processes, nothing within the limits",
    guard.INTERRUPTED: "stopped by Ctrl-C; what was measured is stored",
}


def columns() -> Iterator[str]:
    """The columns of every metric, metric by metric."""
    for metric in METRICS:
        yield f"## {metric.name}"
        yield f"{escape_markdown(metric.about)}."
        yield from map(_column, metric.columns)


def schema() -> Iterator[str]:
    """The columns of the four tables, without those of metrics."""
    yield f"These are the columns of schema version {SCHEMA_VERSION}."
    yield "## Table scenarios { #scenarios }"
    yield "The columns of [every metric](columns.md) follow these."
    yield from map(_column, IDENTITY_COLUMNS)
    for table in ("samples", "outputs", "runs"):
        yield f"## Table {table} {{ #{table} }}"
        yield from (_column(each, f"{table}-") for each in table_columns(table))


def options() -> Iterator[str]:
    """Every setting of a run."""
    yield from map(_option, OPTIONS)


def conditions() -> Iterator[str]:
    """What a matrix file may hold under ``[conditions]``."""
    yield _table(["key", "default"], [[f"`{each.name}`", f"`{each.default!r}`"] for each in fields(Conditions)])


def profiles() -> Iterator[str]:
    """What each profile means."""
    names = [each.name for each in fields(Effort) if each.name not in ("untimed", "energy")]  # which no profile says
    rows = [[f"`{name}`", *(_setting(getattr(effort, each)) for each in names)] for name, effort in PROFILES.items()]
    yield _table(["profile", *(f"`{each}`" for each in names)], rows)


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    command: Any = typer.main.get_command(app)
    with command.make_context("quantbench", [], resilient_parsing=True) as context:
        written = get_docs_for_click(obj=command, ctx=context, name="quantbench")
    yield written[written.index("\n## ") :].strip()  # what comes before is the page's own affair


def methods() -> Iterator[str]:
    """Every method with its precisions."""
    for method in METHODS:
        yield f"## {method.name}"
        yield f"{escape_markdown(method.about)}."
        yield "\n".join(f"* {each}" for each in _method_facts(method))
        yield _table(["precision", "bits", "what"], map(_precision, method.precisions))


def models() -> Iterator[str]:
    """The built-in models, and the other ways to name one."""
    yield _table(["built-in model", "what"], [[f"`{each.name}`", escape_markdown(each.about)] for each in MODELS])
    with redirect_stdout(StringIO()) as said:
        catalogue.models("json")
    forms = json.loads(said.getvalue())["forms"]
    rows = [[f"`{_cell(each['form'])}`", escape_markdown(each["meaning"])] for each in forms]
    yield _table(["`--model` takes", "what"], rows)
    yield f"Names of a dummy, and of `quantbench plan`: {', '.join(f'`{each}`' for each in dummy_configs())}."


def engines() -> Iterator[str]:
    """What starts the workers."""
    yield _table(["engine", "what"], [[f"`{each.name}`", escape_markdown(each.about)] for each in ENGINES])


def tables() -> Iterator[str]:
    """Every table, in the order in which all are shown."""
    ordered = sorted(KINDS, key=lambda kind: kind.place)
    yield _table(["table", "what it shows"], [[f"`{each.name}`", escape_markdown(each.about)] for each in ordered])


def exports() -> Iterator[str]:
    """Every export format, as its module describes it."""
    for each in EXPORTERS:
        about = (sys.modules[each.write.__module__].__doc__ or "").replace("<", "&lt;")
        yield f"### {each.name}"
        yield re.sub(r"::\n\n((?:    .*\n?)+)", _python, about).strip()


def exit_codes() -> Iterator[str]:
    """What a command's exit code means, and the errors behind them."""
    yield _table(["code", "meaning"], [[f"`{code}`", meaning] for code, meaning in _CODES.items()])


def error_classes() -> Iterator[str]:
    """The tree of errors."""
    tree = (errors.__doc__ or "").partition("\n\n")[2].strip()
    yield f"```text\n{tree}\n```"


def claimed() -> Iterator[str]:
    """What the guides claim, word for word."""
    for table in claims().values():
        yield f"### {table.source}"
        rows = [[escape_markdown(row.cells[key]) for key in table.headings] for row in table.rows]
        yield _table([*table.headings.values()], rows)
    yield "### Outside tables"
    yield _table(["where", "claim"], [[escape_markdown(each.source), f"`{_cell(_one_line(each.text))}`"] for each in prose()])


def scales() -> Iterator[str]:
    """The words for figures, and the published figures that they are anchored on."""
    found = words()
    for title, scale in (("Quality", found.quality), ("Quality loss", found.quality_loss), ("Speed", found.inference_speed)):
        yield f"### {title}: by `{scale.figure}`"
        yield _table(["word", "anchor", "what was published", "up to"], [[*each] for each in _anchors(scale)])
    yield "\n".join(
        f"* *{name}*: {escape_markdown(each.title)}{f', {each.date}' if each.date else ''}. {escape_markdown(each.note)}."
        for name, each in found.sources.items()
    )


PARTS: Mapping[str, Callable[[], Iterable[str]]] = {
    "claims": claimed, "columns": columns, "commands": commands, "conditions": conditions, "engines": engines,
    "errors": error_classes, "exit-codes": exit_codes, "exports": exports, "methods": methods, "models": models,
    "options": options, "profiles": profiles, "schema": schema, "tables": tables, "words": scales,
}  # fmt: skip


def expanded(markdown: str) -> str:
    """A page with the parts that it asks for; KeyError for one that does not exist."""
    return ASKED.sub(lambda asked: "\n\n".join(PARTS[asked[1]]()), markdown)


def outside(page: str, target: str) -> str:
    """The path, from the repository's root, of what a page of the site links to outside the pages; empty if that is a page.

    Files outside stand in the site under ``repository``, so a page from there is taken for what it is in the repository.
    """
    source = page.removeprefix(COPIES) if page.startswith(COPIES) else f"docs/{page}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return "" if path.startswith("docs/") and not path.startswith("docs/template/") else path


def on_files(files: Any, *, config: Any) -> Any:
    """Called by MkDocs with the files of the site: adds those that pages link to outside ``docs``, and what these link to."""
    from mkdocs.structure.files import File, InclusionLevel

    unread = [file.src_uri for file in files.documentation_pages()]
    while unread:
        page = unread.pop()
        for link in LINK.finditer(files.get_file_from_path(page).content_string):
            path = outside(page, link[1])
            if not path or files.get_file_from_path(COPIES + path):
                continue
            if not (ROOT / path).is_file():
                raise FileNotFoundError(f"{page} links to {link[1]}, and the repository has no file {path}")
            included = InclusionLevel.NOT_IN_NAV if path.endswith(".md") else InclusionLevel.INCLUDED
            files.append(File.generated(config, COPIES + path, abs_src_path=str(ROOT / path), inclusion=included))
            unread += [COPIES + path] * path.endswith(".md")
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001 - MkDocs passes them by name
    """Called by MkDocs with each page's source: the source with its generated parts, and links as the site has them."""
    here = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        path = outside(here, link[1])
        if path:
            return f"]({posixpath.relpath(COPIES + path, posixpath.dirname(here))}{link[2]})"
        if here.startswith(COPIES):
            target = posixpath.normpath(posixpath.join("/", posixpath.dirname(here.removeprefix(COPIES)), link[1]))
            return f"]({posixpath.relpath(target.removeprefix('/docs/'), posixpath.dirname(here))}{link[2]})"
        return link[0]

    page.meta["markdown"] = LINK.sub(moved, expanded(markdown))
    return str(page.meta["markdown"])


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Called by MkDocs with each page's HTML: writes its Markdown, with included files, beside it.

    The HTML gets what the theme leaves out for readers of a screen: the search has a name, and an empty heading is none.
    """
    target = Path(config.site_dir) / page.file.src_uri
    target.parent.mkdir(parents=True, exist_ok=True)
    text = INCLUDED.sub(lambda found: (ROOT / found[1]).read_text(encoding="utf-8").rstrip("\n"), page.meta["markdown"])
    target.write_text(text, encoding="utf-8")
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1).replace("<th></th>", "<td></td>")


def _column(column: Column, prefix: str = "") -> str:
    """A column as an entry of a list, with an anchor of its name."""
    facts = [column.unit, DTYPES[column.kind], f"{column.better} is better" if column.better else ""]
    entry = [escape_markdown(column.doc), f"*{escape_markdown(', '.join(filter(None, facts)))}*"]
    entry += [f"= `{_one_line(column.formula)}`"] if column.formula else []
    entry += [f"source: {escape_markdown(column.source)}"] if column.source else []
    return _entry(f"`{column.name}` {{ #{prefix}{column.name} }}", entry)


def _option(option: Option) -> str:
    """A setting as an entry of a list, with an anchor of its name."""
    kinds = {"list": "separated by commas, or repeated", "int": "a whole number", "float": "a number", "flag": "a flag"}
    facts = [kinds.get(option.kind, ""), f"default: {option.default}" if option.default else ""]
    about = ", ".join(filter(None, facts))
    name = " ".join(filter(None, (f"--{option.name}", option.metavar)))
    entry = [escape_markdown(option.help), *([f"*{about}*"] if about else [])]
    return _entry(f"`{name}` {{ #{option.name} }}", entry)


def _entry(term: str, lines: Sequence[str]) -> str:
    return f"{term}\n:   " + "<br>\n    ".join(lines)


def _method_facts(method: Method) -> Iterator[str]:
    opens = {"hf": "checkpoints", "gguf": "`.gguf` files", "module": "modules without tokens", "server": "servers"}
    yield "opens " + ", ".join(opens[each] for each in method.kinds)
    yield f"needs {', '.join(f'`{each}`' for each in method.requires)}: the extra `{method.extra}`"
    if method.reads:
        yield f"also reads checkpoints quantized as {', '.join(method.reads)}"
    if method.anchor:
        yield f"its timed rounds alternate with `{method.anchor}`"
    if method.saver:
        yield "`quantbench quantize` can write its files"
    if reason := method.costly or method.costly_on_cpu:
        where = "" if method.costly else " on a CPU"
        yield f"left out for your own model{where} unless it is named: {reason}"


def _precision(precision: Precision) -> Sequence[str]:
    bits = "" if precision.bits is None else f"{precision.bits:g}"
    return f"`{precision.name}`", bits, escape_markdown(precision.title)


def _anchors(scale: Scale) -> Iterator[Sequence[str]]:
    edges = [*(f"{edge:.3g}" for edge in scale.edges), ""]
    for anchor, edge in zip(scale.anchors, edges, strict=True):
        yield anchor.word, f"{anchor.value:.3g}", f"{anchor.published} ({anchor.source})", edge


def _setting(value: float) -> str:
    return "all" if value == sys.maxsize else f"{value:g}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows))


def _cell(code: str) -> str:
    """Code in a cell of a table."""
    return code.replace("|", r"\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _python(indented: re.Match[str]) -> str:
    """An indented block of a docstring as a block of Markdown."""
    code = "\n".join(line.removeprefix("    ") for line in indented[1].strip("\n").splitlines())
    return f":\n\n```python\n{code}\n```\n"
