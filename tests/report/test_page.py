"""The page as text: decision first, self-contained, within its size, equal for equal results, and hostile text escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair as alt
import pytest
from typer.testing import CliRunner

from quantbench.advice.decision import RULE
from quantbench.advice.headline import headline, others
from quantbench.cli.app import app
from quantbench.core.errors import MissingDependency, UsageError
from quantbench.report import Results, html, page, picture, select
from quantbench.report.markup import data_block
from quantbench.report.sections import facts
from quantbench.report.sections.rows import NO_REASON, listing
from quantbench.results.rows import rows_of
from quantbench.results.store import load


class Reader(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[tuple[str, str]] = []
        self.styles: list[str] = []
        self.text = ""
        self._inside = ("", "")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = (tag, dict(attrs).get("type") or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ("", "")

    def handle_data(self, data: str) -> None:
        match self._inside:
            case ("script", kind):
                self.scripts.append((kind, data))
            case ("style", _):
                self.styles.append(data)
            case _:
                self.text += data


@pytest.fixture(scope="module")
def body(everything_page: Path) -> str:
    """The page of everything."""
    return everything_page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(body: str) -> Reader:
    """The same, parsed."""
    reader = Reader()
    reader.feed(body)
    return reader


def _words(text: str) -> str:
    return " ".join(text.split())


def test_the_decision_comes_first_and_whole(read: Reader, everything_results: Results) -> None:
    choice = everything_results.choice(everything_results.groups[0])
    assert choice is not None
    opening = _words(read.text).partition("Size against KLD")[0]
    assert opening.index(headline(choice)) < opening.index(RULE)
    assert len(others(choice)) > 4
    assert [other for other in others(choice) if other.name not in opening or other.reason not in opening] == []


def test_all_that_is_promised_is_there(read: Reader) -> None:
    text = _words(read.text)
    for said in (
        "Precision levels: canary, prompts ten", "GGUF quantization levels: canary, prompts ten",
        "Quantization methods: canary, prompts ten", "claimed", "planned", "measured", "Example CPU", "2.13.0", "8.59 GB",
        "18 planned, 18 finished, 16 ok", "it needs a CUDA device", "16 of 18 scenarios measured, 1 error, 1 skipped",
        "Latency distributions", "History", "Servers under load", "torch 2.13.0 → 2.14.0",
    ):  # fmt: skip
        assert said in text, said


def test_an_instrument_check_is_called_one_wherever_its_figures_are(body: str, read: Reader) -> None:
    titles = re.findall(r"<figcaption><strong>(.*?)</strong>", body)
    of_models = [title for title in titles if "prompts" in title]
    assert len(of_models) == 7
    assert all("(an instrument check)" in title for title in of_models)
    assert re.findall(r"<h3>canary.*?</h3>", body) == [
        '<h3>canary, prompts ten <span class="badge">instrument check</span></h3>',
        "<h3>canary (an instrument check), prompts ten</h3>",
    ]
    text = _words(read.text)
    assert text.count("Measured on canary (an instrument check) against torch/fp32") >= 3
    assert body.count(">canary (instrument check)</td>") == 15
    assert "canary is an instrument check: this holds for canary only" in text


def test_a_real_model_is_not_called_one(write: Any, record: Callable[..., Any]) -> None:
    body = page(write([record(name, model="some/model") for name in ("torch/fp32", "gguf/q8_0")], check=False))
    assert body.count("some/model") > 10
    assert 'class="badge"' not in body
    assert "some/model (an instrument" not in body
    assert "some/model (instrument" not in body


def test_nothing_is_loaded_and_nothing_else_may_run(body: str, read: Reader) -> None:
    (policy,) = [value for _, _, value in read.attributes if value.startswith("default-src")]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy
    programs = [text for kind, text in read.scripts if not kind]
    assert rules["script-src"].split() == [_hash(each) for each in programs]
    assert rules["style-src"].split() == [_hash(each) for each in read.styles]
    loading = [value for _, name, value in read.attributes if name in ("src", "srcset", "href", "data", "action")]
    assert {value[0] for value in loading} == {"#"}
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    assert "@import" not in read.styles[0]
    assert "url(" not in read.styles[0]
    assert body.count("<script") == len(read.scripts)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_hostile_text_is_escaped_and_visible(body: str, read: Reader) -> None:
    assert "img" not in read.tags
    before_programs = body.partition("<script>")[0]
    assert len(before_programs) > 100_000
    assert "<img" not in before_programs
    assert not {"\u2028", "\u202e", "\x00", "\x1b"} & set(before_programs)
    for _, text in (each for each in read.scripts if each[0]):
        assert json.loads(text)
        assert not set("<>&\u2028") & set(text)
        assert text.isascii()
    assert read.text.count('<script>window.pwned=1</script>"><img src=x onerror="window.pwned=1">') >= 10
    assert "<!--{{7*7}}" in read.text


def test_a_hostile_name_of_a_model_stays_text(write: Any, record: Callable[..., Any], hostile: str) -> None:
    reader = Reader()
    reader.feed(page(write([record(name, model=hostile) for name in ("torch/fp32", "gguf/q8_0")])))
    assert "img" not in reader.tags
    assert [kind for kind, _ in reader.scripts].count("") == 2
    assert "window.pwned=1</script>" in reader.text


@pytest.mark.parametrize("value", ["</script>", "<!--", "\u2028\u2029", "&lt;", "\ud800", '"'])
def test_data_in_a_page_cannot_end_their_element_and_come_back_equal(value: str) -> None:
    text = str(data_block({"a": value}))
    assert json.loads(text) == {"a": value}
    assert not set("<>&") & set(text)


def test_data_that_are_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        data_block([float("nan")])


def test_a_page_is_small_and_equal_for_equal_results(body: str, everything_results: Results) -> None:
    assert len(body.encode()) <= 3_000_000
    assert page(everything_results) == body


def test_the_command_writes_the_same_page_though_it_reads_less_of_other_runs(
    everything_folder: Path, everything_page: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    ended = CliRunner().invoke(app, ["report", "-o", str(path), "--results", str(everything_folder)])
    assert ended.exit_code == 0, ended.output
    assert path.read_bytes() == everything_page.read_bytes()


def test_every_chart_is_valid(read: Reader) -> None:
    """By Vega-Lite's schema, which altair holds."""
    data = [json.loads(text) for kind, text in read.scripts if kind == "application/json"]
    specs = [each for each in data if "$schema" in each]
    assert len(specs) > 5
    assert len(data) - len(specs) == 1  # the points of a history
    for spec in specs:
        alt.Chart.from_dict(spec)


def test_ids_are_unique_and_every_link_leads_somewhere(read: Reader) -> None:
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in read.attributes if name == "href"}
    specs = {value for _, name, value in read.attributes if name in ("data-spec", "data-points")}
    assert targets | specs <= set(ids)
    assert specs


def test_every_missing_figure_has_its_reason(everything_results: Results) -> None:
    shown = listing(rows_of(everything_results.rows), 1000)
    dashes = [entry for line in shown.lines for entry in line.entries[:-1] if not entry.text]
    assert dashes
    assert all(entry.reason for entry in dashes)
    assert all(shown.reasons[entry.why - 1] == entry.reason for entry in dashes if entry.why)
    of_ok = [entry for line in shown.lines if line.status == "ok" for entry in line.entries[:-1] if not entry.text]
    assert all(entry.why for entry in of_ok)
    assert "no counter here" not in shown.reasons, "a figure that no row has makes no column"


def test_a_figure_missing_without_a_reason_says_that(write: Any, record: Callable[..., Any]) -> None:
    results = write([record("torch/fp32"), record("gguf/q8_0", ttft_s=float("nan"))])
    assert NO_REASON in listing(rows_of(results.rows), 10).reasons


def test_a_page_of_too_much_is_cut_and_says_so(
    write: Any, record: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = write([record(name) for name in ("torch/fp32", "gguf/q8_0", "gguf/q2_k")])
    whole = page(results)
    assert "Only the first" not in whole
    assert "Dots: every sample." in whole
    first, *_ = html.DETAILS
    monkeypatch.setattr(html, "DETAILS", (first, html.Detail(answers=1, rows=2, samples=0, history=1)))
    monkeypatch.setattr(html, "LARGEST", len(whole.encode()) - 1)
    less = page(results)
    assert len(less.encode()) < len(whole.encode())
    for said in ("Only the first 2 of 3 rows", "Only the first 1 of 2 prompts", "Single samples are not drawn"):
        assert said in less


def test_a_run_without_samples_outputs_and_end_has_a_page(everything_folder: Path) -> None:
    results = replace(select(load(str(everything_folder)), run_id="run-3"), unread=2900)
    reader = Reader()
    reader.feed(page(results))
    for said in (
        "kept no single durations", "kept no answers", "not recorded: the run was cut short", "Example CPU",
        "2900 earlier runs under these results were not read",
    ):  # fmt: skip
        assert said in reader.text


def test_a_run_that_was_killed_says_what_is_known_of_it(everything_folder: Path) -> None:
    frame = load(str(everything_folder))
    runs = load(str(everything_folder), "runs").assign(finished_at=None, finished=None, ok=None, interrupted=True)
    results = select(frame, runs=runs, run_id="run-3")
    said = dict(facts.run_facts(results, results.every_row))
    assert said["Ended"].startswith("not recorded: the run was killed")
    assert said["Scenarios"] == "18 planned; 16 of the 18 shown here ok"
    assert said["Commit"] == "abc"


def test_devices_are_those_that_are_known(write: Any, record: Callable[..., Any]) -> None:
    """What a server uses is not."""
    served = record("gguf/q8_0")
    results = write([record("torch/fp32"), replace(served, facts={**served.facts, "elsewhere": "it is a server's"})])
    assert dict(facts.machine(results, results.every_row))["Devices used"] == "cpu"


def test_without_servers_there_is_no_section_of_them(write: Any, record: Callable[..., Any]) -> None:
    assert "#servers" not in page(write([record("torch/fp32")]))


def test_a_run_in_which_all_failed_has_a_page(write: Any, record: Callable[..., Any]) -> None:
    from quantbench.core.record import Status

    failed = replace(record("torch/fp32"), status=Status.OOM, values={}, reason="no room", outputs=(), samples=())
    reader = Reader()
    reader.feed(page(write([failed])))
    for said in ("Ship none: ", "No decode speed was measured", "No variant of this run has both", "no room"):
        assert said in reader.text


def test_the_latest_run_of_a_model_is_chosen(everything_folder: Path) -> None:
    scenarios = load(str(everything_folder))
    assert select(scenarios).run_id == "run-3"
    assert select(scenarios, run_id="run-1").run_id == "run-1"
    only = select(scenarios, model="lstm")
    assert set(only.rows["model"]) == set(only.history["model"]) == {"lstm"}
    for wrong in ({"run_id": "run-9"}, {"model": "lstn"}):
        with pytest.raises(UsageError, match="did you mean"):
            select(scenarios, **wrong)


@pytest.mark.parametrize("make", [page, lambda results: picture(results, "png")], ids=["page", "picture"])
@pytest.mark.parametrize("module", ["vl_convert", "jinja2"])
def test_a_library_that_is_missing_is_named(
    make: Any, module: str, everything_results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingDependency, match=r"not installed; pip install .*\[report\]"):
        make(everything_results)
