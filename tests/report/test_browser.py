"""The page in a real Chromium without a network: what is drawn, what can be done, and that hostile text stays text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.text import visible
from quantbench.report.charts.look import DARK, LIGHT

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

DESK, PHONE = (1280, 900), (390, 844)
SIZES = pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
ARGUMENTS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "host-resolver-rules=MAP * ~NOTFOUND",
    "proxy-server=127.0.0.1:9",
)  # fmt: skip

OVERFLOWING = """
const edge = document.documentElement.clientWidth + 1;
const free = (node) => node.closest(".scroll, nav ul, pre, .skip") === null;
return [...document.querySelectorAll("body *")]
  .filter((node) => node.getClientRects().length && node.getBoundingClientRect().right > edge && free(node))
  .map((node) => `${node.tagName} ${node.textContent.slice(0, 40)}`);
"""
TEXTS_IN_CHARTS = """
const shown = (node) => node.textContent.trim() && node.getAttribute("opacity") !== "0" && !node.getAttribute("stroke-width");
return [...document.querySelectorAll(".plot")].map((plot) => {
  const frame = plot.getBoundingClientRect();
  return [...plot.querySelectorAll("text")].filter(shown).map((node) => {
    const box = node.getBoundingClientRect();
    return { text: node.textContent, left: box.left - frame.left, right: box.right - frame.left, room: frame.width,
             top: box.top, bottom: box.bottom };
  });
});
"""
ROWS = "[...document.querySelectorAll('#all tbody tr')].filter(row => !row.hidden)"


@pytest.fixture(scope="module")
def browser(everything_page: Path) -> Iterator[Chrome]:
    """Chromium with the page of everything, and no way to the network."""
    missing = [name for name, found in {**PROGRAMS, "selenium": find_spec("selenium")}.items() if not found]
    if missing:
        reason = f"a browser test takes {' and '.join(missing)}, not installed"
        if os.environ.get("QUANTBENCH_BROWSER_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(PROGRAMS["chromium"])
    for argument in ARGUMENTS:
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(PROGRAMS["chromedriver"])))
    try:
        _resize(driver, DESK)
        driver.get(everything_page.as_uri())
        _until(driver, "return document.documentElement.dataset.charts === 'done'")
        yield driver
    finally:
        driver.quit()


def _until(driver: Chrome, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 30).until(lambda page: page.execute_script(condition))


def _resize(driver: Chrome, size: tuple[int, int]) -> None:
    """Another window size, once the charts have followed it."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    _until(driver, """const fits = svg => Math.abs(svg.viewBox.baseVal.width - svg.closest('.plot').clientWidth) < 3;
        return [...document.querySelectorAll('.plot svg')].every(fits)""")  # fmt: skip


def _ask(driver: Chrome, script: str, *arguments: Any) -> Any:
    return driver.execute_script(script, *arguments)


def _click(driver: Chrome, selector: str) -> None:
    """Click once it is in the middle of the window, clear of the bar on top."""
    node = driver.find_element("css selector", selector)
    _ask(driver, "arguments[0].scrollIntoView({ block: 'center' })", node)
    node.click()


def _pick(driver: Chrome, selector: str, text: str) -> None:
    """Choose an option as a person would."""
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("css selector", selector)).select_by_visible_text(text)


def _rgb(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"


def test_every_chart_is_drawn(browser: Chrome) -> None:
    found = _ask(browser, """return [...document.querySelectorAll('.plot')].map(plot => [plot.closest('section').id,
        plot.dataset.state, plot.querySelectorAll('svg path').length])""")  # fmt: skip
    sections = [section for section, _, _ in found]
    assert {name: sections.count(name) for name in sections} == {
        "sizes": 1, "speeds": 2, "latencies": 3, "servers": 1, "history": 3,
    }  # fmt: skip
    assert {state for _, state, _ in found} == {"drawn"}
    assert min(paths for _, _, paths in found) > 3


@SIZES
def test_nothing_reaches_over_the_edge(browser: Chrome, size: tuple[int, int]) -> None:
    _resize(browser, size)
    assert _ask(browser, "return innerWidth") == size[0]
    assert _ask(browser, "return document.documentElement.scrollWidth") <= size[0]
    assert _ask(browser, OVERFLOWING) == []


@SIZES
def test_texts_of_charts_are_whole_and_apart(browser: Chrome, size: tuple[int, int]) -> None:
    _resize(browser, size)
    charts = _ask(browser, TEXTS_IN_CHARTS)
    assert min(map(len, charts)) >= 4
    cut = [each["text"] for texts in charts for each in texts if each["left"] < -1 or each["right"] > each["room"] + 1]
    assert cut == []
    pairs = [pair for texts in charts for pair in combinations(texts, 2)]
    assert [(one["text"], other["text"]) for one, other in pairs if _overlap(one, other)] == []


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two texts share a part of the screen; the boxes of lines of text are higher than their letters."""
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    down = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return across > 1 and down > 4


@SIZES
def test_the_front_and_the_pick_have_labels(browser: Chrome, size: tuple[int, int]) -> None:
    _resize(browser, size)
    texts = {each["text"] for each in _ask(browser, TEXTS_IN_CHARTS)[0]}
    assert {"gguf/q8_0", "gguf/q4_k_m", "gguf/q3_k_m", "gguf/q2_k"} <= texts


def test_filters_leave_the_rows_that_fit_all_of_them(browser: Chrome) -> None:
    shown = f"return {ROWS}.map(row => row.cells[0].textContent)"
    everything = _ask(browser, shown)
    assert len(everything) == 18
    text = browser.find_element("id", "filter-text")
    text.send_keys("GGUF q4")
    assert _ask(browser, shown) == ["gguf/q4_k_m", "gguf/q4_0"]
    assert browser.find_element("id", "filter-count").text == "2 of 18 rows"
    _pick(browser, "#filter-status", "error")
    assert _ask(browser, shown) == ["gguf/q4_0"]
    text.send_keys(" nothing-like-it")
    assert _ask(browser, shown) == []
    text.clear()
    _pick(browser, "#filter-status", "all")
    assert _ask(browser, shown) == everything
    _pick(browser, "#filter-method", "gptq")
    assert _ask(browser, shown) == ["gptq/int4-g128"]
    _pick(browser, "#filter-method", "all")
    assert _ask(browser, shown) == everything


def test_the_keyboard_sorts_and_what_is_missing_stays_last(browser: Chrome) -> None:
    from selenium.webdriver.common.keys import Keys

    titles = _ask(browser, "return [...document.querySelectorAll('#all thead th')].map(head => head.textContent)")
    column = titles.index("Decode, tokens/s")
    keys = f"return [...document.querySelectorAll('#all tbody tr')].map(row => row.cells[{column}].dataset.key)"
    unsorted = _ask(browser, keys)
    button = browser.find_elements("css selector", "#all thead button")[column]
    for sort, fall in (("ascending", False), ("descending", True)):
        button.send_keys(Keys.ENTER)
        assert _ask(browser, f"return document.querySelectorAll('#all thead th')[{column}].ariaSort") == sort
        found = _ask(browser, keys)
        known = [float(key) for key in found if key]
        assert sorted(known, reverse=fall) == known
        assert found[len(known) :] == [""] * (len(found) - len(known))
        assert sorted(found) == sorted(unsorted)
    assert len(known) == 14


def test_a_missing_figure_leads_to_its_reason(browser: Chrome) -> None:
    target, reason = _ask(browser, """const link = document.querySelector('#all a[href^="#why-"]');
        return [document.querySelector(link.hash).textContent, link.parentNode.querySelector('span').title]""")  # fmt: skip
    assert target == reason
    assert reason


def test_hostile_text_makes_no_element_and_runs_nothing(browser: Chrome, hostile: str) -> None:
    assert _ask(browser, "return window.pwned === undefined")
    assert _ask(browser, "return document.querySelectorAll('img, iframe, object, embed, link, base, [onerror]').length") == 0
    scripts = _ask(browser, "return [...document.querySelectorAll('script')].map(each => each.type)")
    assert scripts.count("") == 2
    assert set(scripts) == {"", "application/json"}
    assert _ask(browser, "return document.querySelectorAll('style').length") == 1
    said = _ask(browser, "return document.querySelector('#answers .pair:nth-of-type(2) .text').textContent")
    shown = visible(hostile)
    assert said == shown
    assert shown.endswith(r"\u2028\u202e\x00\x1b[31m")
    for section in ("rows", "failures", "machine"):
        assert shown in _ask(browser, "return document.getElementById(arguments[0]).textContent", section)


def test_differences_are_marked(browser: Chrome) -> None:
    marked = """const answers = [...document.querySelectorAll('details.answer')];
        const part = answers.find(each => each.querySelector('.name').textContent === 'gguf/q2_k');
        const pair = part.querySelector('.pair');
        return ['del', 'ins'].map(name => [...pair.querySelectorAll(name)].map(each => each.textContent))"""
    assert _ask(browser, marked) == [["the same"], ["other", " of gguf/q2_k"]]


def test_answers_are_opened_together_and_narrowed_to_one_prompt(browser: Chrome) -> None:
    opened = "return [...document.querySelectorAll('details.answer')].map(each => each.open)"
    assert sum(_ask(browser, opened)) == 1
    _click(browser, "[data-open]")
    assert all(_ask(browser, opened))
    _pick(browser, "[data-prompt]", "2")
    numbers = "return [...document.querySelectorAll('.pair')].filter(each => !each.hidden).map(each => each.dataset.number)"
    assert set(_ask(browser, numbers)) == {"2"}
    _pick(browser, "[data-prompt]", "all")
    assert set(_ask(browser, numbers)) == {"1", "2"}
    _click(browser, "[data-close]")
    assert not any(_ask(browser, opened))


def test_the_history_follows_the_variant_that_is_picked(browser: Chrome) -> None:
    drawn = "[...document.querySelectorAll('#history .plot')].map(plot => plot.querySelectorAll('.mark-symbol path').length)"
    for name, runs in (("gguf/q8_0", 3), ("gguf/q2_k", 1), ("torch/fp32", 3)):
        _pick(browser, "[data-picked]", name)
        _until(browser, f"return {drawn}.every(points => points === {runs})")


@pytest.mark.parametrize(("scheme", "colours"), [("dark", DARK), ("light", LIGHT)])
def test_the_scheme_that_is_preferred_holds_for_page_and_charts(browser: Chrome, scheme: str, colours: dict[str, str]) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    assert _ask(browser, "return getComputedStyle(document.body).backgroundColor") == _rgb(colours["page"])
    assert _ask(browser, "return getComputedStyle(document.body).color") == _rgb(colours["ink"])
    bars = "return [...document.querySelectorAll('#speeds .mark-rect path')].map(bar => getComputedStyle(bar).fill)"
    assert _rgb(colours["accent"]) in _ask(browser, bars)


def test_print_is_light_and_shows_no_controls(browser: Chrome) -> None:
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    try:
        assert _ask(browser, "return getComputedStyle(document.body).backgroundColor") == _rgb(LIGHT["page"])
        assert _ask(browser, "return getComputedStyle(document.querySelector('nav')).display") == "none"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_nothing_was_loaded_and_nothing_complained(browser: Chrome) -> None:
    assert _ask(browser, "return performance.getEntriesByType('resource').map(each => each.name)") == []
    assert browser.get_log("browser") == []
    browser.execute_script("console.error('heard')")
    assert ["heard" in each["message"] for each in browser.get_log("browser")] == [True]


def test_what_got_into_the_page_all_the_same_could_not_run_or_load(browser: Chrome) -> None:
    """The second line of defence: the content security policy."""
    _ask(browser, """const script = document.createElement('script'); script.textContent = 'window.pwned = 1';
        const frame = document.createElement('div'); frame.innerHTML = '<img src=data:, onerror="window.pwned = 1">';
        document.body.append(script, frame);""")  # fmt: skip
    _until(browser, "return document.querySelector('img').complete")
    failed = "return fetch('data:text/plain,x').then(() => 'loaded', () => 'refused')"
    assert _ask(browser, failed) == "refused"
    assert _ask(browser, "return window.pwned === undefined")
    assert sum("Content Security Policy" in each["message"] for each in browser.get_log("browser")) >= 3
