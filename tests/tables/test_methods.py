"""The methods table: claims beside what the probes found, and never an empty finding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from quantbench.results.rows import groups
from quantbench.tables.kinds import methods
from quantbench.tables.render import as_csv, as_json, as_text

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from quantbench.core.record import Missing, Record
    from quantbench.tables.table import Table

    Write = Callable[..., pd.DataFrame]
    Make = Callable[..., Record]


@pytest.fixture
def four(record: Make) -> list[Record]:
    """The reference and the four claimed methods."""
    gptq = record("gptq/int4-g128", conversion="pre-quantized", decode_ratio=0.8)
    awq = record("awq/int4-g128", conversion="pre-quantized", decode_ratio=2.0)
    return [record("torch/fp32", decode_ratio=1.0), record("bitsandbytes/nf4-dq", decode_ratio=0.5), record(), awq, gptq]


def row(table: Table, name: str) -> dict[str, Any]:
    keys = [heading.key for heading in table.headings]
    return dict(zip(keys, (cell.value for cell in next(each for each in table.rows if each[0].value == name)), strict=True))


def empty_findings(table: Table) -> list[str]:
    return [
        heading.title
        for index, heading in enumerate(table.headings)
        for each in table.rows
        if heading.shown and heading.source == "measured" and not each[index].value
    ]


def test_claims_and_findings_stand_side_by_side(write: Write, four: list[Record]) -> None:
    [table] = methods.table(groups(write(four)))

    assert [each[0].value for each in table.rows] == ["bitsandbytes", "GGUF", "AWQ", "GPTQ", "torch"]
    found = row(table, "bitsandbytes")
    assert {key: value for key, value in found.items() if key.startswith("claimed_")} == {
        "claimed_speed": "On-load conversion", "claimed_cpu_support": "No", "claimed_inference_speed": "Medium",
        "claimed_finetuning": "Yes (QLoRA)",
    }  # fmt: skip
    assert found["speed"] == "On-load conversion (load 310 ms)"
    assert found["cpu_support"] == "Yes"
    assert found["cuda_support"] == "not tried (no CUDA device here)"
    assert found["inference_speed"] == "Slow (0.500 x torch/fp32 on cpu)"
    assert found["finetuning"] == "Yes (LoRA: loss 4.21 to 3.90)"
    assert found["saves_and_reloads"] == "Yes"
    assert row(table, "GGUF")["speed"] == "Pre-quantized (quantize 5.3 s, load 310 ms)"
    assert row(table, "GGUF")["finetuning"] == "No (no torch module)"
    assert row(table, "torch")["claimed_speed"] is None
    assert not empty_findings(table)


def test_a_note_says_where_claim_and_finding_differ(write: Write, four: list[Record]) -> None:
    [table] = methods.table(groups(write(four)))
    notes = [note for note in table.notes if "claimed" in note and not note.startswith("claimed: ")]

    assert notes == [
        "bitsandbytes, CPU support: claimed No, found Yes on this CPU",
        "bitsandbytes, Inference speed: claimed Medium, found Slow (0.500 x torch/fp32 on cpu)",
        "GGUF, Inference speed: claimed Fast (CPU), found Fastest (6.53† x torch/fp32 on cpu)",
        "AWQ, CPU support: claimed No, found Yes on this CPU",
        "AWQ, Inference speed: claimed Fast (GPU), and measured on cpu only",
        "AWQ, Fine-tuning support: claimed Limited, found Yes (LoRA: loss 4.21 to 3.90) on cpu",
        "GPTQ, CPU support: claimed No, found Yes on this CPU",
        "GPTQ, Inference speed: claimed Fast (GPU), and measured on cpu only",
        "GPTQ, Fine-tuning support: claimed Limited, found Yes (LoRA: loss 4.21 to 3.90) on cpu",
    ]


def test_a_difference_names_the_library_and_its_version(write: Write, record: Make) -> None:
    [table] = methods.table(groups(write([record("gguf/q4_k_m", runs_on_cpu=False)])))

    assert "GGUF, CPU support: claimed Yes, found No on this CPU with llama-cpp-python 0.3.36" in table.notes


def test_a_line_stands_for_its_method(write: Write, record: Make) -> None:
    """The claimed variant, else one of 4 bits that worked, else the lowest bits; of the reference's method the reference."""
    names = ("bitsandbytes/int8", "bitsandbytes/fp4", "torch/fp32", "torch/bf16", "gptq/int3", "gptq/int8")
    rows = [record(name) for name in names]
    failed = [record("bitsandbytes/nf4", status="error", reason="broken"), record("torch/fp32", control=True)]
    [table] = methods.table(groups(write([*rows, *failed])))

    assert [each[1].value for each in table.rows] == [
        "bitsandbytes/fp4", "gguf/q4_k_m", "awq/int4-g128", "gptq/int3", "torch/fp32",
    ]  # fmt: skip


def test_what_was_not_measured_says_so_in_every_cell(write: Write, record: Make) -> None:
    rows = write([record("torch/fp32"), record("gptq/int4-g128", status="skipped", reason="no gptqmodel")])
    [table] = methods.table(groups(rows))

    findings = ("speed", "cpu_support", "cuda_support", "inference_speed", "finetuning", "saves_and_reloads", "kernel")
    assert {row(table, "GPTQ")[key] for key in findings} == {"not measured (skipped)"}
    assert {row(table, "AWQ")[key] for key in findings} == {"not run"}
    assert "GPTQ: skipped, no gptqmodel" in table.notes
    assert not any(note.startswith(("GPTQ, ", "AWQ, ")) for note in table.notes)
    assert not empty_findings(table)


def test_nulls_become_their_reasons(write: Write, record: Make, missing: Callable[[str], Missing]) -> None:
    names = ("conversion", "runs_on_cpu", "finetunes", "saves_and_reloads", "decode_ratio", "decode_tps", "capability_notes")
    [table] = methods.table(groups(write([record(**dict.fromkeys(names, missing("it was not asked")))])))
    found = row(table, "GGUF")

    assert found["speed"] == "not loaded here (it was not asked)"
    assert found["inference_speed"] == "not measured (it was not asked)"
    assert {found[key] for key in ("cpu_support", "finetuning", "saves_and_reloads")} == {"not tried (it was not asked)"}
    assert not empty_findings(table)
    assert not any(note.startswith("GGUF, ") for note in table.notes)


def test_a_long_reason_is_a_footnote(write: Write, record: Make) -> None:
    reason = "the library says very much about why it will not do this here"
    [table] = methods.table(groups(write([record(capability_notes=f'{{"finetune": "{reason}"}}')])))

    assert row(table, "GGUF")["finetuning"] == "No (see note)"
    assert f"GGUF, Fine-tuning support: {reason}" in table.notes


def test_a_checkpoint_quantized_elsewhere_is_prequantized(
    write: Write, record: Make, missing: Callable[[str], Missing]
) -> None:
    [table] = methods.table(groups(write([record(quantize_s=missing("made elsewhere"))])))

    assert row(table, "GGUF")["speed"] == "Pre-quantized (not quantized here, load 310 ms)"


def test_machines_get_the_raw_values(write: Write, four: list[Record]) -> None:
    frame = write(four)
    found = row(methods.table(groups(frame))[0], "bitsandbytes")

    assert (found["load_s"], found["finetune_loss_first"], found["finetune_loss_last"]) == (0.31, 4.206, 3.9)
    assert (found["runs_on_cpu_raw"], found["runs_on_cuda_raw"], found["finetunes_raw"]) == (True, None, True)
    assert found["decode_speed_ratio"] == 0.5
    for form in (as_csv, as_json, as_text):
        assert "On-load conversion (load 310 ms)" in form(methods.table(groups(frame)))


def test_a_run_without_rows_makes_no_table(write: Write, record: Make) -> None:
    assert methods.table(groups(write([record()])[:0])) == []
    assert methods.table(groups(write([record("torch/fp32", control=True)])[1:])) == []


def test_a_module_without_tokens_makes_no_table(write: Write, record: Make) -> None:
    assert methods.table(groups(write([record("torch-dynamic/int8", model="lstm", prompts="seeded")]))) == []
