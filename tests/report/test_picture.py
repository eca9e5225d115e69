"""The picture to share: its size, what it says, and that hostile text stays text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from quantbench.core.record import Missing
from quantbench.report import picture

if TYPE_CHECKING:
    from quantbench.report import Results

SVG = "{http://www.w3.org/2000/svg}"


def _texts(drawn: bytes | None) -> list[str]:
    assert drawn is not None
    return ["".join(node.itertext()) for node in ET.fromstring(drawn).iter(f"{SVG}text")]  # noqa: S314 - our own


def test_a_png_is_as_large_as_a_card_for_a_link(everything_results: Results) -> None:
    shot = picture(everything_results, "png")
    assert shot is not None
    assert shot.startswith(b"\x89PNG")
    assert (int.from_bytes(shot[16:20]), int.from_bytes(shot[20:24])) == (1200, 630)


def test_decision_figures_machine_and_date_are_in_it(everything_results: Results) -> None:
    texts = _texts(picture(everything_results, "svg"))
    assert " ".join(texts[1:3]).startswith("Ship gguf/q4_k_m")
    assert texts[0] == "canary (an instrument check), prompts ten"
    assert texts[-1] == "cpu: Example CPU, 2 threads · 2026-01-03, run run-3 · quantbench 0.1.0"
    for said in ("Size against KLD", "Decode speed", "gguf/q8_0", "400", "with 95 % intervals"):
        assert said in texts, said
    ringed = [text for text in texts if "ringed: gguf/q4_k_m" in text]
    assert len(ringed) == 1


def test_nothing_comes_from_elsewhere_or_depends_on_a_page(everything_results: Results) -> None:
    drawn = picture(everything_results, "svg")
    assert drawn is not None
    for way in (b"var(--", b"href", b"<script", b"<image"):
        assert way not in drawn
    assert drawn.count(b"url(") == drawn.count(b"url(#"), "which is inside"


def test_of_many_speeds_those_of_the_decision_stay(write: Any, record: Callable[..., Any]) -> None:
    from quantbench.methods import METHODS

    names = [f"gguf/{each.name}" for each in METHODS["gguf"].precisions][:20]
    slow = record("torch/fp32", decode_tps=1.0, decode_tps_low=0.9, decode_tps_high=1.1)
    results = write([slow, *(record(name) for name in names)])
    texts = _texts(picture(results, "svg"))
    assert "with 95 % intervals; 9 more not shown" in texts
    assert "torch/fp32" in texts, "the reference"


def test_the_pick_has_its_label_in_a_crowd(write: Any, record: Callable[..., Any]) -> None:
    """Sizes and KLD as measured of the canary, where a chart as narrow as a phone would have no room for it."""
    crowd = {
        "torch/fp32": (23.1, 0.0), "gguf/q2_k": (2.34, 0.17), "gguf/q3_k_m": (2.94, 0.043), "gguf/q4_k_m": (3.51, 0.013),
        "bitsandbytes/fp4": (4.76, 0.032), "bitsandbytes/nf4": (4.76, 0.019), "gguf/f16": (11.5, 2.3e-7),
    }  # fmt: skip
    results = write([record(name, weight_bytes=round(size * 1e6), kld_mean=kld) for name, (size, kld) in crowd.items()])
    texts = _texts(picture(results, "svg"))
    assert any("ringed: gguf/q3_k_m" in text for text in texts)
    assert texts.count("gguf/q3_k_m") == 3, "a bar, and a point with its halo"


def test_a_disturbed_speed_is_marked_and_the_mark_explained(write: Any, record: Callable[..., Any]) -> None:
    results = write([record("torch/fp32"), record("gguf/q8_0", disturbed=True, disturbance="others")])
    texts = _texts(picture(results, "svg"))
    assert "300~" in texts
    assert texts[-1].endswith("~ measured beside other work")


def test_a_hostile_name_stays_text(write: Any, record: Callable[..., Any], hostile: str) -> None:
    drawn = picture(write([record(name, model=hostile) for name in ("torch/fp32", "gguf/q8_0")]), "svg")
    assert drawn is not None
    assert b"<img" not in drawn
    assert b"<script" not in drawn
    assert any("<script>" in text for text in _texts(drawn))


@pytest.mark.parametrize("lacking", ["decode_tps", "weight_bytes"])
def test_without_speeds_or_sizes_there_is_none(write: Any, record: Callable[..., Any], lacking: str) -> None:
    none = {lacking: Missing("not measured")}
    assert picture(write([record(name, **none) for name in ("torch/fp32", "gguf/q8_0")]), "png") is None
