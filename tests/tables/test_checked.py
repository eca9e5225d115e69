"""Claims and their marks: each mark follows from figures, so other figures give another mark."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Any

import pytest

from quantbench import tables
from quantbench.claims import cells as cell_checks
from quantbench.claims import evidence as evidences
from quantbench.claims import prose as prose_checks
from quantbench.claims import sizes
from quantbench.claims.cells import CELL_CHECKS, ClaimedCell
from quantbench.claims.checked import Checked, judge_prose, judge_table
from quantbench.claims.claimed import Prose, claims, prose
from quantbench.claims.evidence import Evidence
from quantbench.claims.marks import (
    FAILS,
    HOLDS,
    MARKS,
    NOT_HERE,
    NOT_YET,
    OUTDATED,
    RECIPE,
    ROUNDED,
    Figure,
    Judgement,
    amount,
    worst,
)  # fmt: skip
from quantbench.claims.prose import PROSE_CHECKS
from quantbench.core import gpus as machine_gpus
from quantbench.metrics import energy
from quantbench.models import MODELS
from quantbench.planning.planner import read_architecture
from quantbench.results.rows import groups
from quantbench.tables.kinds import claims as claims_kind
from quantbench.tables.kinds import gguf, methods, precision
from quantbench.tables.render import as_text, render

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from quantbench.core.record import Missing, Record
    from quantbench.models.footprint import Weights

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]

NOTHING = Evidence()

# 224 linear layers at 4 bits with an 8-bit absmax a block of 64 and a float32 a 256 of these, each with two code tables and an
# offset; embedding, output layer and norms in 16 bits; rotary frequencies twice
NF4_DQ_BYTES = 6_476_005_376 * (1 / 2 + 1 / 64 + 4 / 64 / 256) + 224 * 4 * (16 + 256 + 1) + 262_410_240 * 2 + 2 * 64 * 4


def _evidence_of(frame: pd.DataFrame) -> Evidence:
    return Evidence(groups(frame))


def _cell(table: str, subject: str, heading: str, evidence: Evidence = NOTHING) -> Checked:
    [found] = [each for each in judge_table(table, evidence) if (each.subject, each.heading) == (subject, heading)]
    return found


def _marks(table: str, heading: str, evidence: Evidence = NOTHING) -> list[str]:
    return [each.verdict.mark for each in judge_table(table, evidence) if each.heading == heading]


def _said(words: str, evidence: Evidence = NOTHING) -> Judgement:
    [found] = [each for each in judge_prose(evidence) if words in each.text]
    return found.verdict


@pytest.mark.parametrize(
    ("text", "figure", "mark"),
    [
        ("32bit", 32.0000004, HOLDS), ("28GB", 26.95, FAILS), ("13GB", 13.35, ROUNDED), ("13GB", 13.5, FAILS),
        ("4.1GB", 4.0803, ROUNDED), ("4.1GB", 4.1, HOLDS), ("7GB", 7.006, ROUNDED), ("8bit", 8.5, FAILS),
        ("3.5GB", 3.45, ROUNDED),
        ("3.5GB", 3.4499, FAILS), ("280GB", 275.9, FAILS), ("280GB", 279.5, ROUNDED),
    ],
)  # fmt: skip
def test_a_figure_is_rounded_as_the_claim_is_written(text: str, figure: float, mark: str) -> None:
    assert amount(text).mark(figure) == mark


def test_what_is_no_amount_is_refused() -> None:
    with pytest.raises(ValueError, match="'a lot' is not a number"):
        amount("a lot")


def test_the_worst_of_marks() -> None:
    assert worst([HOLDS, FAILS, ROUNDED]) == FAILS
    assert worst([HOLDS, HOLDS]) == HOLDS


def test_every_cell_of_every_table_and_every_sentence_is_judged() -> None:
    judged = [each for name in claims() for each in judge_table(name, NOTHING)]
    cells = sum(len(table.rows) * (len(table.headings) - 1) for table in claims().values())

    assert len(judged) == cells == 64
    assert {check for table in claims().values() for check in table.checks.values()} == set(CELL_CHECKS)
    assert {claim.check for claim in prose()} == set(PROSE_CHECKS)
    said = list(judge_prose(NOTHING))
    assert [each.text for each in said] == [claim.text for claim in prose()]
    for each in [*judged, *said]:
        assert each.verdict.mark in MARKS
        assert each.source
        assert each.date


def test_sizes_of_the_precision_table() -> None:
    """Llama 2 has 6.738, 13.016 and 68.977 billion parameters, of which the text rounds the last and the first up."""
    assert _marks("precision", "Bits/value") == [HOLDS, HOLDS, ROUNDED, FAILS]
    assert _marks("precision", "7B size") == [FAILS, FAILS, ROUNDED, FAILS]
    assert _marks("precision", "13B size") == [ROUNDED, ROUNDED, ROUNDED, FAILS]
    assert _marks("precision", "70B size") == [FAILS, FAILS, ROUNDED, FAILS]


@pytest.mark.parametrize(
    ("subject", "heading", "planned", "why"),
    [
        ("FP32", "7B size", 6_738_415_616 * 4, "7B x 32 bits; llama-2-7b: 6.74B"),
        ("FP16", "70B size", 68_976_648_192 * 2, "70B x 16 bits; llama-2-70b: 68.98B"),
        ("INT4", "7B size", NF4_DQ_BYTES, "7B x 4 bits; llama-2-7b: 6.74B x 4.59"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_hold_says_that_its_sum_does(subject: str, heading: str, planned: float, why: str) -> None:
    verdict = _cell("precision", subject, heading).verdict

    assert verdict.mark == FAILS
    assert verdict.planned is not None
    assert verdict.planned.value == pytest.approx(planned, rel=1e-7)
    assert verdict.why == why


def test_a_sum_that_does_not_hold_either_is_not_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "nominal_bits", lambda _: 6)

    assert _cell("precision", "INT4", "7B size").verdict.why == "llama-2-7b: 6.74B x 4.59"


def test_sizes_of_the_gguf_table_and_the_recipe_that_has_changed() -> None:
    assert _marks("gguf", "7B size") == [RECIPE, *[ROUNDED] * 5]
    verdict = _cell("gguf", "Q2_K", "7B size").verdict

    assert verdict.why.startswith("2.67GiB in 2023-06, 2.83GB in 2023-08; now llama.cpp of llama-cpp-python ")
    assert verdict.planned is not None
    assert 8 * float(verdict.planned.value or 0) / 6_738_415_616 == pytest.approx(3.0062, abs=5e-5)


def test_bits_in_a_name_are_those_of_a_code() -> None:
    assert _marks("gguf", "Bits") == [FAILS] * 6
    verdict = _cell("gguf", "Q4_K_M", "Bits").verdict
    assert (verdict.planned, verdict.why) == (
        Figure(verdict.planned and verdict.planned.value, "4.84"),
        "4 bits a code, scales on top",
    )


def test_only_an_earlier_size_that_rounds_to_the_claim_makes_it_a_changed_recipe() -> None:
    table = claims()["gguf"]
    other = replace(table.rows[0], earlier=tuple(each for each in table.rows[0].earlier if each.date == "2023-08"))

    for row, mark in [(table.rows[0], RECIPE), (other, FAILS), (replace(table.rows[0], earlier=()), FAILS)]:
        assert CELL_CHECKS["size"](ClaimedCell(table, row, "size_7b"), NOTHING).mark == mark


def test_what_cannot_be_planned_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str, variants: list[str]) -> dict[str, Weights]:
        from quantbench.models.footprint import Weights

        return {variant: Weights(weight_bytes=None, note="llama.cpp is not installed") for variant in variants}

    monkeypatch.setattr(sizes, "planned_weights", unknown)
    for heading in ("Bits", "7B size"):
        assert _cell("gguf", "Q2_K", heading).verdict == Judgement(mark=NOT_YET, why="llama.cpp is not installed")
    for words in ("cuts the model memory", "64GB VRAM", "Double quantization", "This shrinks the"):
        assert (_said(words).mark, _said(words).why) == (NOT_YET, "llama.cpp is not installed")


def test_a_measured_size_of_that_model_decides(write: Write, record: Make) -> None:
    """Rows with as many parameters as the 7B; a canary's bytes say nothing of it."""
    parameters = read_architecture("llama-2-7b").parameters
    big = {"model": "some/7b", "parameters": parameters, "bits_per_weight": 3.2}
    frame = write([record("gguf/q2_k", weight_bytes=2_710_000_000, **big), record("gguf/q8_0", weight_bytes=7_200_000_000)])
    evidence = _evidence_of(frame)
    verdict = _cell("gguf", "Q2_K", "7B size", evidence).verdict

    assert (verdict.mark, verdict.measured) == (ROUNDED, Figure(2_710_000_000, "2.71 GB"))
    assert _cell("gguf", "Q2_K", "Bits", evidence).verdict.measured == Figure(3.2, "3.20")
    assert _cell("gguf", "Q8_0", "7B size", evidence).verdict.measured is None


def test_words_are_judged_on_real_models_only(write: Write, record: Make) -> None:
    check = _evidence_of(write([record("gguf/q4_k_m", kld_mean=0.001), record("torch/fp32"), record("torch/fp16")]))
    verdict = _cell("gguf", "Q4_K_M", "Quality", check).verdict
    assert (verdict.mark, verdict.measured, verdict.why) == (
        NOT_YET,
        Figure(0.001, "Near lossless, canary"),
        "an instrument check",
    )
    assert _cell("precision", "FP16", "Inference speed", check).verdict.mark == NOT_YET

    frame = write(
        [
            record("gguf/q4_k_m", model="some/7b", kld_mean=0.031), record("gguf/q2_k", model="some/7b", kld_mean=0.01),
            record("torch/fp16", model="some/7b", kld_mean=2e-5, decode_ratio=2.0),
            record("bitsandbytes/int8", model="some/7b", decode_ratio=0.5),
        ],
        run_id="real", instrument_check=False,
    )  # fmt: skip
    real = _evidence_of(frame)
    for subject, heading, mark, found in [
        ("Q4_K_M", "Quality", HOLDS, "Good, some/7b"), ("Q4_K_M", "Recommended", HOLDS, "General use, some/7b"),
        ("Q2_K", "Quality", FAILS, "Very good, some/7b"),
    ]:  # fmt: skip
        verdict = _cell("gguf", subject, heading, real).verdict
        assert (verdict.mark, verdict.measured and verdict.measured.text) == (mark, found)
    assert _cell("precision", "FP16", "Quality loss", real).verdict.mark == HOLDS
    speed = _cell("precision", "FP16", "Inference speed", real).verdict
    assert (speed.mark, speed.planned) == (HOLDS, Figure(pytest.approx(2.0), "Fast (2.00x)"))
    assert _cell("precision", "INT8", "Inference speed", real).verdict.mark == FAILS


def test_claims_of_the_methods_table_follow_from_the_probes(
    write: Write, record: Make, missing: Callable[[str], Missing]
) -> None:
    silent = missing("the probe crashed")
    frame = write(
        [
            record("torch/fp32", decode_ratio=1.0), record("bitsandbytes/nf4-dq"), record("gguf/q4_k_m"),
            record("awq/int4-g128", conversion="on load", runs_on_cpu=False, finetunes=False),
            record("gptq/int4-g128", conversion="pre-quantized", runs_on_cpu=silent, finetunes=False),
        ]
    )  # fmt: skip
    evidence = _evidence_of(frame)

    assert _marks("methods", "Speed", evidence) == [HOLDS, HOLDS, FAILS, HOLDS]
    assert _marks("methods", "CPU support", evidence) == [OUTDATED, HOLDS, HOLDS, NOT_YET]
    assert _cell("methods", "GPTQ", "CPU support", evidence).verdict.why == "the probe crashed"
    assert _marks("methods", "Fine-tuning support", evidence) == [HOLDS, HOLDS, FAILS, FAILS]
    assert _marks("methods", "Inference speed", evidence)[:2] == [NOT_YET, NOT_YET]
    assert _said("even on CPU", evidence).mark == HOLDS
    assert set(_marks("methods", "CPU support")) == {NOT_YET}


def test_less_than_claimed_does_not_hold(write: Write, record: Make) -> None:
    evidence = _evidence_of(write([record("gguf/q4_k_m", runs_on_cpu=False), record("bitsandbytes/nf4-dq", status="oom")]))

    assert _cell("methods", "GGUF", "CPU support", evidence).verdict.mark == FAILS
    assert _said("even on CPU", evidence).mark == FAILS
    verdict = _cell("methods", "bitsandbytes", "CPU support", evidence).verdict
    assert (verdict.mark, verdict.why) == (NOT_YET, "bitsandbytes/nf4-dq: oom")


@pytest.mark.parametrize(("gpus", "mark"), [("it needs a GPU, and nvidia-smi lists none here", NOT_HERE), ("", NOT_YET)])
def test_speed_on_a_gpu_takes_one(monkeypatch: pytest.MonkeyPatch, write: Write, record: Make, gpus: str, mark: str) -> None:
    monkeypatch.setattr(cell_checks, "no_gpu", lambda: gpus)
    evidence = _evidence_of(write([record("awq/int4-g128", decode_ratio=2.0)]))

    for found in (NOTHING, evidence):
        verdict = _cell("methods", "AWQ", "Inference speed", found).verdict
        assert (verdict.mark, verdict.measured, verdict.why) == (mark, None, gpus or "not measured on a GPU")


def test_a_gpu_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_gpus, "no_gpu", lambda: "")
    assert evidences.no_gpu() == ""
    monkeypatch.setattr(machine_gpus, "no_gpu", lambda: "no GPU was found")
    assert evidences.no_gpu() == "it needs a GPU, and no GPU was found"


def test_number_types_are_those_of_their_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, reach, steps = (_said(words) for words in ("1 bit for the sign", "same exponent size", "bigger intervals"))
    assert [each.mark for each in (parts, reach, steps)] == [HOLDS] * 3
    assert parts.planned == Figure("1+8+23", "1+8+23")
    assert steps.planned == Figure(2.0**16, "65536x")

    narrower = [
        replace(each, exponent_bits=5, mantissa_bits=25, smallest_normal=6e-5) if each.name == "FP32" else each
        for each in prose_checks.type_facts()
    ]
    monkeypatch.setattr(prose_checks, "type_facts", lambda: tuple(narrower))
    assert [_said(words).mark for words in ("1 bit for the sign", "same exponent size")] == [FAILS, FAILS]

    gone = tuple(replace(each, missing="torch is not installed") for each in narrower)
    monkeypatch.setattr(prose_checks, "type_facts", lambda: gone)
    assert _said("bigger intervals") == Judgement(mark=NOT_HERE, why="torch is not installed")


def test_sums_of_the_prose() -> None:
    ratios = _said("cuts the model memory")
    assert (ratios.mark, ratios.planned and ratios.planned.text) == (ROUNDED, "2.00x, 2.00x, 3.85x")
    assert "the output layer stays fp16" in ratios.why
    scaled = _said("64GB VRAM")
    assert (scaled.mark, scaled.planned and scaled.planned.text) == (ROUNDED, "16.41 GB")
    assert scaled.why.startswith("llama-2-13b, the nearest in size, goes from 52.06 GB to 13.35 GB")


def test_a_70b_fits_where_memory_is_large_enough() -> None:
    [claim] = [each for each in prose() if each.check == "fits"]
    verdict = _said("consumer GPUs")
    assert verdict.mark == FAILS
    assert "24 GiB are 25.77 GB; gguf/" in verdict.why
    assert PROSE_CHECKS["fits"](replace(claim, facts={**claim.facts, "memory": "48GiB"}), NOTHING).mark == HOLDS


def test_smaller_as_planned_and_as_loaded(write: Write, record: Make) -> None:
    assert _said("save more memory").mark == _said("This shrinks the").mark == HOLDS
    assert _said("drastically reduce").mark == FAILS
    assert "zeros are stored" in _said("drastically reduce").why

    same = [record("bitsandbytes/nf4", weight_bytes=500), record("bitsandbytes/nf4-dq", weight_bytes=500)]
    verdict = _said("save more memory", _evidence_of(write(same)))
    assert (verdict.mark, verdict.measured) == (FAILS, Figure(500, "500 B vs 500 B, canary"))


def test_a_state_dict_shrinks_or_not(write: Write, record: Make) -> None:
    rows = [
        record(name, model="lstm", prompts="seeded", state_dict_bytes=count)
        for name, count in (("torch/fp32", 3000), ("torch-dynamic/int8", 1000))
    ]
    verdict = _said("smaller", _evidence_of(write(rows)))
    assert (verdict.mark, verdict.measured) == (HOLDS, Figure(3.0, "3.00x smaller"))
    assert _said("smaller") == Judgement(mark=NOT_YET, why="quantbench run --model lstm")
    assert "lstm" in MODELS


def _pair(record: Make, **changes: Any) -> list[Record]:
    return [record("torch/fp32", model="some/7b"), record("torch-dynamic/int8", model="some/7b", **changes)]


@pytest.mark.parametrize(("ratio", "mark"), [(2.5, HOLDS), (1.2, FAILS), (0.5, FAILS)])
def test_significantly_faster_is_faster_by_a_word(write: Write, record: Make, ratio: float, mark: str) -> None:
    evidence = _evidence_of(write(_pair(record, decode_ratio=ratio), instrument_check=False))

    assert _said("significantly faster", evidence).mark == mark
    assert _said("significantly faster").mark == NOT_YET


def test_energy_takes_a_counter(
    monkeypatch: pytest.MonkeyPatch, write: Write, record: Make, missing: Callable[[str], Missing]
) -> None:
    rows = [record("torch/fp32", model="some/7b", energy_per_token_j=2.0), *_pair(record, energy_per_token_j=1.0)[1:]]
    verdict = _said("power", _evidence_of(write(rows, run_id="counted", instrument_check=False)))
    assert (verdict.mark, verdict.measured) == (HOLDS, Figure(0.5, "0.500x J/token, some/7b"))

    frame = write(_pair(record, energy_per_token_j=missing("no counter")), run_id="blind", instrument_check=False)
    assert _said("power", _evidence_of(frame[frame["run_id"] == "blind"])) == Judgement(mark=NOT_HERE, why="no counter")
    monkeypatch.setattr(prose_checks, "find_counter", lambda _: "no counter of energy")
    assert _said("power") == Judgement(mark=NOT_HERE, why="no counter of energy")
    monkeypatch.setattr(prose_checks, "find_counter", lambda _: energy.Rapl([]))
    assert _said("power").mark == NOT_YET


@pytest.mark.parametrize(("mine", "mark"), [(0.02, HOLDS), (0.06, FAILS)])
def test_closer_to_the_reference(write: Write, record: Make, mine: float, mark: str) -> None:
    rows = [
        record("bitsandbytes/nf4-dq", model="some/7b", kld_mean=0.05),
        record("gptq/int4-g128", model="some/7b", kld_mean=mine),
    ]
    verdict = _said("minimize quality", _evidence_of(write(rows, instrument_check=False)))

    assert verdict.mark == mark


@pytest.mark.parametrize(("installed", "mark"), [("4.57.1", HOLDS), ("5.23.0", OUTDATED), ("10.0", OUTDATED)])
def test_what_a_library_takes_no_more(monkeypatch: pytest.MonkeyPatch, installed: str, mark: str) -> None:
    monkeypatch.setattr(prose_checks, "version", lambda _: installed)

    for words in ("load_in_8bit=True,\ndevice_map", "pip install auto-gptq"):
        assert (_said(words).mark, _said(words).measured) == (mark, Figure(installed, f"transformers {installed}"))


def test_a_library_that_is_missing_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(prose_checks, "version", version)
    assert _said("pip install auto-gptq") == Judgement(mark=NOT_HERE, why="transformers is not installed")


def test_transformers_really_refuses_what_the_mark_says() -> None:
    import transformers
    from transformers import AutoModelForCausalLM

    assert _said("load_in_8bit=True,\ndevice_map").mark == OUTDATED
    with pytest.raises(TypeError, match="load_in_8bit"):
        AutoModelForCausalLM.from_pretrained(MODELS["canary"].folder(), load_in_8bit=True)
    assert _said("pip install auto-gptq").mark == OUTDATED
    assert hasattr(transformers.utils, "is_gptqmodel_available")
    assert not hasattr(transformers.utils, "is_auto_gptq_available")


def test_the_kind_has_one_line_a_claim_for_people_and_machines(write: Write, full: list[Record]) -> None:
    made = claims_kind.table(groups(write(full)))

    assert sum(len(table.rows) for table in made) == 64 + len(prose())
    assert {table.name for table in made} == {"claims"}
    body = json.loads(render(made, "json"))
    row = next(each for each in body[0]["rows"] if each["place"] == "INT4, 70B size")
    assert (row["claim"], row["mark"], row["planned"], row["measured"]) == ("35GB", FAILS, "36.36 GB", None)
    assert (
        row["planned_value"]
        == sizes.planned_weights("llama-2-70b", ["bitsandbytes/nf4-dq"])["bitsandbytes/nf4-dq"].weight_bytes
    )
    assert (row["variant"], row["source"]) == ("bitsandbytes/nf4-dq", claims()["precision"].source)
    assert body[0]["holds_when_rounded"] == 6
    assert "| INT4, 70B size | 35GB | 36.36 GB |" in render(made, "md")


@pytest.mark.parametrize("width", [100, 140])
def test_claims_fit_a_terminal(write: Write, full: list[Record], width: int) -> None:
    for made in (claims_kind.unmeasured(), claims_kind.table(groups(write(full)))):
        text = as_text(made, width)
        assert max(map(len, text.splitlines())) <= width
        flat = " ".join(text.split())
        for claim in prose():
            assert " ".join(claim.text.split()) in flat


def test_each_claimed_table_ends_with_its_marks(write: Write, full: list[Record]) -> None:
    frame = write(full)

    for [table] in (precision.unmeasured(), precision.table(groups(frame))):
        assert "claims, holds: Bits/value of FP32, FP16" in table.notes
        assert "claims, not measured yet: Quality loss; Inference speed" in table.notes
        assert any(
            note.startswith("claims, does not hold: Bits/value of INT4; 7B size of FP32, FP16, INT4;") for note in table.notes
        )
    assert "claims, recipe has changed since: 7B size of Q2_K" in gguf.unmeasured()[0].notes
    assert any(note.startswith("claims, not true today: CPU support") for note in methods.table(groups(frame))[0].notes)


def test_prose_is_read_word_for_word() -> None:
    assert isinstance(prose()[0], Prose)
    assert len({claim.text for claim in prose()}) == len(prose()) == 18
    assert {claim.source.partition(",")[0] for claim in prose()} == {"Quantization", "Day 23: Quantization Guide"}


def test_all_tables_hold_the_claims() -> None:
    assert [table.name for table in tables.build("claims", None)] == ["claims"] * 5
