"""Published quality: each figure is the source's own, for what is made here in the same way, and says where it is from."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from quantbench.advice.suggest import published, suggest
from quantbench.advice.words import words
from quantbench.core.scenario import Variant
from quantbench.methods import METHODS
from quantbench.methods.gguf import uses_matrix
from quantbench.planning import planner

DATA = Path(__file__).parents[1] / "data" / "reference_numbers.csv"
MATRIX = " imatrix=WT 10m"


def scoreboard() -> dict[str, float]:
    """The mean KLD of each row of llama.cpp's scoreboard."""
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["quantity"] == "kld_mean"]
    assert {row["model"] for row in rows} == {"Llama-3-8B"}
    assert all("scoreboard @f364eb6f wikitext-2" in row["source"] for row in rows)
    return {row["precision"]: float(row["value"].split()[0]) for row in rows}


def test_each_figure_is_the_sources_own() -> None:
    rows = scoreboard()
    assert len(published()) > 20
    for variant, quality in published().items():
        assert (quality.variant, quality.model) == (variant, "Llama-3-8B")
        assert quality.kld_mean == rows[quality.published]


def test_none_is_of_another_recipe_and_none_is_left_out() -> None:
    """A file made with an importance matrix has the figure of one, and a type whose twin alone was published has none."""
    rows = {name.lower(): value for name, value in scoreboard().items()}
    names = {each.name: each.name.removesuffix("-imat") for each in METHODS["gguf"].precisions}
    same = {name: f"{kind}{MATRIX}".lower() if uses_matrix(name) else kind for name, kind in names.items()}
    expected = {f"gguf/{name}": rows[row] for name, row in same.items() if row in rows}
    assert {variant: quality.kld_mean for variant, quality in published().items()} == expected
    assert {"gguf/iq3_s", "gguf/iq4_nl", "gguf/iq4_xs"}.isdisjoint(expected)


def test_it_says_where_from_and_how_far_to_trust_it() -> None:
    """The same source as the words are anchored on, and the floor that its 16-bit reference makes."""
    anchors = {anchor.published: anchor.value for anchor in words().quality.anchors}
    for quality in published().values():
        assert quality.date == "2024-05"
        assert quality.source.startswith("llama.cpp's scoreboard")
        assert str(published()["gguf/f16"].kld_mean) in quality.note
        assert anchors.get(f"Llama-3-8B {quality.published}", quality.kld_mean) == quality.kld_mean
    assert sum(f"Llama-3-8B {quality.published}" in anchors for quality in published().values()) == len(anchors)


def test_what_could_not_be_planned_is_told_with_the_reason() -> None:
    """Without llama.cpp only variants of which nobody published a KLD have a size."""
    architecture = planner.read_architecture("llama-2-7b")
    workload = planner.workload(architecture, context=None, batch=1)
    variants = [Variant(method="torch", precision=each) for each in ("fp16", "bf16")]
    sized = planner.plan(architecture, variants, workload, ())
    unsized = [
        replace(sized[0], method="gguf", precision=each, peak_bytes=None, note="gguf needs llama-cpp-python")
        for each in ("q4_k_m", "q8_0")
    ]
    told = suggest([*sized, *unsized], memory_bytes=10**12, workload=workload)

    assert told.pick is None
    assert "nobody published a KLD of what fits: torch/fp16, torch/bf16 of llama-2-7b" in told.sentence
    assert "2 with a published KLD could not be planned: gguf needs llama-cpp-python" in told.sentence
