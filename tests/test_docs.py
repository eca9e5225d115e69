"""The documentation: what it shows parses, what it links to exists, and what it writes from the code is all there."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
import unicodedata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
import yaml

from quantbench.cli.app import app
from quantbench.export import EXPORTERS
from quantbench.methods import METHODS, Method
from quantbench.planning.matrix_file import read_matrix
from quantbench.planning.options import OPTIONS
from quantbench.results.schema import TABLES, table_columns
from quantbench.tables import ALL, KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = sorted((ROOT / "bench" / "examples").glob("*.py"))
PAGES = sorted(path for path in DOCS.rglob("*.md") if "template" not in path.relative_to(DOCS).parts)
SHOWN = [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", ROOT / "results" / "README.md", *PAGES]
LINKING = [*SHOWN, ROOT / ".github" / "SECURITY.md", *sorted((ROOT / "bench").rglob("README.md")), DOCS / "llms.txt"]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / ".mkdocs.yml").read_text(encoding="utf-8"))

BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ENTRY = re.compile(r"- \[([^\]]+)\]\(([^)]+)\): \S.*")
ENDS = {">", ">>", "<", "|", "||", "&&", ";"}
OUR_OPTIONS = {f"--quantbench-{option.name}" for option in OPTIONS}
NAMES = [str(path.relative_to(ROOT)) for path in SHOWN]


def _module(path: Path) -> Any:
    spec = spec_from_file_location(f"documented_{path.stem}", path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


generate, outputs = _module(DOCS / "generate.py"), _module(DOCS / "outputs.py")


def _methods() -> dict[str, set[str]]:
    """The precisions of every method that pages may name: quantbench's own and those of the examples."""
    examples = [each for path in EXAMPLES for each in vars(_module(path)).values() if isinstance(each, Method)]
    return {method.name: {each.name for each in method.precisions} for method in (*METHODS, *examples)}


def _blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [body for found, body in BLOCK.findall(text) if found == language]


def _commands(block: str) -> Iterator[list[str]]:
    """Each command of a block as words, without variables set in front of it and up to where its output goes."""
    text = ""
    for line in block.replace("\\\n", " ").splitlines():
        text += line
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # a quotation goes on in the next line
            text += "\n"
            continue
        text = ""
        while words:
            end = next((index for index, word in enumerate(words) if word in ENDS), len(words))
            yield [word for index, word in enumerate(words[:end]) if index or not re.match(r"\w+=", word)]
            words = words[end + 1 :]
    assert not text, f"a quotation does not end: {text}"


def _calls(program: str) -> list[tuple[str, list[str]]]:
    """The arguments of every shown call of a program, each with its page."""
    commands = [(name, words) for name in NAMES for block in _blocks(name, "console") for words in _commands(block)]
    return [(name, words[1:]) for name, words in commands if words and words[0] == program]


# --- what is shown


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_quantbench_parses(name: str) -> None:
    commands: Any = typer.main.get_command(app)
    known = _methods()
    for command, *words in [words for page, words in _calls("quantbench") if page == name]:
        parsed = commands.commands[command].make_context(command, words).params  # a usage error is raised here
        methods, precisions = (_named(parsed.get(key)) for key in ("method", "precision"))
        offered = set().union(*(known[each] for each in methods or known))
        assert set(precisions) <= offered, words
        assert parsed.get("kind") in (None, ALL, *(kind.name for kind in KINDS)), words
        assert parsed.get("form") in (None, *(each.name for each in EXPORTERS)), words


def _named(value: str | list[str] | None) -> list[str]:
    parts = [value] if isinstance(value, str) else value or []
    return [each for part in parts for each in part.split(",")]


def test_every_option_of_pytest_exists(pytestconfig: pytest.Config) -> None:
    calls = [words for _, words in _calls("pytest")]
    calls += [words[words.index("--") + 1 :] for _, words in _calls("python3") if "tox" in words and "--" in words]
    asked = {word.partition("=")[0] for words in calls for word in words if word.startswith("--")}
    assert {"--quantbench-matrix", "--quantbench-compare", "--benchmark-json"} <= asked
    for option in asked:
        assert option in OUR_OPTIONS or not option.startswith("--quantbench-"), option
        pytestconfig.getoption(option)  # ValueError for one that is unknown


@pytest.mark.parametrize("name", NAMES)
def test_code_compiles(name: str) -> None:
    for block in _blocks(name, "python"):
        if not generate.INCLUDED.search(block):
            compile(block, name, "exec")


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_toml_and_matrices_can_be_read(name: str, tmp_path: Path) -> None:
    for block in _blocks(name, "toml"):
        if tomllib.loads(block).keys() & {"models", "methods"}:
            path = tmp_path / "matrix.toml"
            path.write_text(block, encoding="utf-8")
            read_matrix(path)


def test_examples_are_included_and_not_copied() -> None:
    texts = [path.read_text(encoding="utf-8") for path in SHOWN]
    included = {found for text in texts for found in generate.INCLUDED.findall(text)}
    assert included == {str(path.relative_to(ROOT)) for path in EXAMPLES}
    functions = {line for path in EXAMPLES for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("def ")}
    assert [line for line in functions if any(line in text for text in texts)] == []


# --- what leads somewhere


@pytest.mark.parametrize("path", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", path.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        place = path.parent / target if target else path
        assert place.exists(), link
        assert not anchor or anchor in _anchors(place), link


def _anchors(page: Path) -> set[str]:
    """The anchors of a page, as MkDocs and as GitHub make them."""
    found = set()
    for line in generate.expanded(BLOCK.sub("", page.read_text(encoding="utf-8"))).splitlines():
        title = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", line)
        plain = unicodedata.normalize("NFKD", title.lstrip("# ")).encode("ascii", "ignore").decode().lower()
        if named := re.search(r"\{ #(\S+) \}$", line):
            found.add(named[1])
        elif line.startswith("#"):
            found |= {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain)), re.sub(r"[^\w-]", "", plain.replace(" ", "-"))}
    return found


def _navigated(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else _navigated(value)


def test_every_page_is_in_the_navigation_once() -> None:
    pages = list(_navigated(CONFIG["nav"]))
    assert len(pages) == len(set(pages))
    assert set(pages) == {str(path.relative_to(DOCS)) for path in PAGES}


def test_llms_txt_has_its_form_and_every_page() -> None:
    title, empty, summary, *lines = (DOCS / "llms.txt").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch("# .+", title)
    assert not empty
    assert summary.startswith("> ")
    start = next(index for index, line in enumerate(lines) if line.startswith("## "))
    listed = [line for line in lines[start:] if line and not line.startswith("## ")]
    entries = [ENTRY.fullmatch(line) for line in listed]
    assert all(entries), listed
    assert [entry[2] for entry in entries if entry] == list(_navigated(CONFIG["nav"]))


# --- what is written from the code


def test_every_part_is_on_one_page() -> None:
    asked = [name for path in PAGES for name in generate.ASKED.findall(path.read_text(encoding="utf-8"))]
    assert sorted(asked) == sorted(generate.PARTS)


def test_every_column_and_option_has_an_anchor_of_its_own() -> None:
    pages = {name: (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8") for name in ("columns", "schema", "options")}
    written = {name: generate.expanded(text) for name, text in pages.items()}
    found = {name: re.findall(r"\{ #(\S+) \}$", text, re.MULTILINE) for name, text in written.items()}
    for anchors in found.values():
        assert len(anchors) == len(set(anchors))
    scenarios = [column.name for column in table_columns("scenarios")]
    assert set(scenarios) <= {*found["columns"], *found["schema"]}
    for table in TABLES[1:]:
        assert {f"{table}-{column.name}" for column in table_columns(table)} <= set(found["schema"])
    assert found["options"] == [option.name for option in OPTIONS]


def test_every_command_method_and_precision_is_on_its_page() -> None:
    commands: Any = typer.main.get_command(app)
    page = generate.expanded("<!-- generated: commands -->")
    for name, command in commands.commands.items():
        assert f"`quantbench {name}`" in page
        for option in (each for parameter in command.params for each in parameter.opts if each.startswith("--")):
            assert f"`{option}" in page or f", {option}" in page, f"{name} {option}"
    methods = generate.expanded("<!-- generated: methods -->")
    for method in METHODS:
        assert f"## {method.name}\n" in methods
        assert all(f"| `{precision.name}` |" in methods for precision in method.precisions)


def test_links_that_leave_the_pages_are_told_from_those_that_stay() -> None:
    assert generate.outside("how-to/own-method.md", "../../bench/examples/own_method.py") == "bench/examples/own_method.py"
    assert generate.outside("how-to/own-method.md", "../reference/columns.md") == ""
    assert generate.outside("how-to/own-tests.md", "../template/README.md") == "docs/template/README.md"
    assert generate.outside("repository/bench/gpu/README.md", "prepare.sh") == "bench/gpu/prepare.sh"
    assert generate.outside("repository/results/README.md", "../docs/tutorial.md") == ""


# --- output that is shown

PAGE = """# Title

<!-- run: printf 'one\\ntwo\\nthree\\n' > "$CHECKOUT_COPY" -->

```console
cat counted
```
<!-- output, first 2 lines -->
old
<!-- end of output -->

```console
exit 9
```

```console
ls counted; exit 3
```
<!-- output, exit 3 -->
<!-- end of output -->
"""


def test_shown_output_is_made_by_running_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKOUT_COPY", str(tmp_path / "counted"))
    written = outputs.rewritten(PAGE, tmp_path)
    assert "\nold\n" not in written
    assert "\n```text\none\ntwo\n...\n```\n" in written
    assert "\n```text\ncounted\n```\n" in written
    assert outputs.rewritten(written, tmp_path) == written


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```console\nfalse\n```\n<!-- run -->\n", RuntimeError),
        ("```console\ntrue\n```\n<!-- output -->\n", ValueError),
        (f"```console\ntrue\n```\n<!-- output -->\n```console\ntrue\n```\n<!-- run -->\n{outputs.END}\n", ValueError),
    ],
)
def test_what_cannot_be_shown_is_an_error(page: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        outputs.rewritten(page, tmp_path)


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_output_on_a_page_belongs_to_commands(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    places = [step.place for step in outputs.steps(text) if step.place]
    assert len(places) == len(re.findall(r"^<!-- output(?:,.*)? -->$", text, re.MULTILINE))
