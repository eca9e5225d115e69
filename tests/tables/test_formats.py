"""Number formats against closed forms and against other libraries than those that they are read from."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quantbench.claims import type_facts as reader
from quantbench.claims.type_facts import LLAMA_CPP, TypeFacts, read_types, type_facts
from quantbench.core.errors import QuantbenchError
from quantbench.tables.kinds import formats
from quantbench.tables.render import as_text, render

if TYPE_CHECKING:
    from quantbench.tables.table import Cell, Table


def _facts(name: str) -> TypeFacts:
    return next(each for each in type_facts() if each.name == name)


def _row(table: Table, name: str) -> dict[str, Cell]:
    keys = [heading.key for heading in table.headings]
    return dict(zip(keys, next(row for row in table.rows if row[0].value == name), strict=True))


# exponent bits, mantissa bits, and of how many largest codes the format makes infinities and NaNs
IEEE = {"FP32": (8, 23), "FP16": (5, 10), "BF16": (8, 7), "FP8 E5M2": (5, 2)}


@pytest.mark.parametrize(("name", "exponent", "mantissa"), [(name, *bits) for name, bits in IEEE.items()])
def test_ieee_formats_follow_their_closed_forms(name: str, exponent: int, mantissa: int) -> None:
    facts, bias = _facts(name), 2 ** (exponent - 1) - 1

    assert (facts.sign_bits, facts.exponent_bits, facts.mantissa_bits) == (1, exponent, mantissa)
    assert facts.bits == 1 + exponent + mantissa
    assert facts.maximum == (2 - 2.0**-mantissa) * 2.0**bias
    assert facts.minimum == -facts.maximum
    assert facts.smallest_normal == 2.0 ** (1 - bias)
    assert facts.step_at_1 == 2.0**-mantissa
    assert facts.step_at_1000 == 2.0 ** (9 - mantissa)  # 512 <= 1000 < 1024
    assert not facts.scaled


def test_e4m3_gives_its_largest_codes_to_numbers() -> None:
    facts = _facts("FP8 E4M3")

    assert (facts.bits, facts.exponent_bits, facts.mantissa_bits) == (8, 4, 3)
    assert facts.maximum == 1.75 * 2**8
    assert (facts.smallest_normal, facts.step_at_1, facts.step_at_1000) == (2.0**-6, 2.0**-3, None)


@pytest.mark.parametrize(("name", "dtype"), [("FP32", np.float32), ("FP16", np.float16)])
def test_numpy_says_the_same(name: str, dtype: Any) -> None:
    facts, info = _facts(name), np.finfo(dtype)

    assert (facts.maximum, facts.smallest_normal) == (float(info.max), float(info.smallest_normal))
    assert (facts.step_at_1, facts.step_at_1000) == (float(np.spacing(dtype(1))), float(np.spacing(dtype(1000))))


@pytest.mark.parametrize(("name", "bits"), [("INT8", 8), ("INT4", 4)])
def test_integers_are_twos_complement(name: str, bits: int) -> None:
    facts = _facts(name)

    assert (facts.minimum, facts.maximum) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (facts.bits, facts.sign_bits, facts.exponent_bits, facts.mantissa_bits) == (bits, 1, 0, bits - 1)
    assert (facts.step_at_1, facts.step_at_1000, facts.scaled) == (1, None, True)


def test_nf4_holds_quantiles_of_the_normal_distribution() -> None:
    """Appendix E of the QLoRA paper: eight quantiles above zero, scaled so that the largest is 1."""
    from scipy.stats import norm

    facts = _facts("NF4")
    above = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    levels = sorted(above / above.max())

    assert (facts.minimum, facts.maximum, facts.bits) == (-1, 1, 4)
    assert facts.smallest_normal == pytest.approx(levels[0], abs=1e-4)
    assert facts.step_at_1 == pytest.approx(1 - levels[-2], abs=1e-4)
    assert (facts.block_values, facts.block_bytes, facts.stored_bits) == (64, 64 * 4 // 8 + 4, 4.5)


def test_block_types_are_those_that_the_gguf_package_writes() -> None:
    from gguf import GGML_QUANT_SIZES

    written = {kind.name: tuple(size) for kind, size in GGML_QUANT_SIZES.items() if size[0] > 1}
    written.pop("Q8_1")  # of activations only, and two bytes shorter in llama.cpp than the package says
    read = {each.name: (each.block_values, each.block_bytes) for each in type_facts() if each.package == LLAMA_CPP}

    assert len(read) > 20
    assert {name: read[name] for name in written} == written
    assert read["Q4_K"] == (256, 256 // 2 + 12 + 2 * 2)  # codes, scales and minima of 8 blocks in 6 bits, two float16
    assert read["Q8_0"] == (32, 32 + 2)
    assert [_facts(name).stored_bits for name in ("Q4_K", "Q8_0", "Q6_K")] == [4.5, 8.5, 6.5625]


def test_the_table_has_every_format_of_the_tutorial_and_what_it_takes() -> None:
    [numbers, blocks] = formats.table()

    assert [row[0].value for row in numbers.rows] == [
        "FP32", "FP16", "BF16", "FP8 E4M3", "FP8 E5M2", "INT8", "INT4", "NF4",
    ]  # fmt: skip
    assert [_row(numbers, name)["parts"].shown for name in ("FP32", "BF16", "NF4")] == ["1+8+23", "1+8+7", "–"]
    assert [_row(numbers, name)["bytes"].value for name in ("FP32", "BF16", "INT8", "NF4")] == [4, 2, 1, 0.5]
    assert [_row(numbers, name)["size_ratio"].value for name in ("FP32", "FP16", "INT4")] == [1, 0.5, 0.125]
    assert [_row(numbers, "INT8")[key].shown for key in ("minimum", "maximum", "step_at_1000")] == ["-128 ×s", "127 ×s", "–"]
    assert _row(blocks, "Q4_K")["stored_bits"].value == 4.5
    assert _row(blocks, "Q4_K")["size_ratio"].value == 4.5 / 32
    bits = [row[[heading.key for heading in blocks.headings].index("stored_bits")].value for row in blocks.rows]
    assert bits == sorted(bits, reverse=True, key=lambda value: float(value or 0))
    assert any("a block of 64 values takes 36 bytes" in note for note in numbers.notes)


def test_it_fits_a_terminal_and_every_format_renders_it() -> None:
    made = formats.table()

    assert max(map(len, as_text(made, 100).splitlines())) <= 100
    assert len([line for line in as_text(made, 100).splitlines() if line.startswith("FP32")]) == 1
    rows = json.loads(render(made, "json"))[0]["rows"]
    assert (rows[0]["maximum"], rows[0]["exponent_bits"]) == (float(np.finfo(np.float32).max), 8)
    assert "| Q4_K |" in render(made, "md")


def test_a_library_that_is_missing_leaves_nulls_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "torchao", "bitsandbytes", "llama_cpp"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(reader, "package_versions", lambda: {LLAMA_CPP: "0.3.36"})
    read = read_types()

    assert [each.name for each in read] == [
        "FP32", "FP16", "BF16", "FP8 E4M3", "FP8 E5M2", "INT8", "INT4", "NF4", "GGUF",
    ]  # fmt: skip
    assert {each.missing for each in read[:6]} == {"torch is not installed"}
    assert read[-1].missing.startswith("llama-cpp-python 0.3.36 does not describe it: ")
    assert {each.bits for each in read} == {each.maximum for each in read} == {None}

    monkeypatch.setattr(formats, "type_facts", lambda: tuple(read))
    [numbers, _] = formats.table()
    row = _row(numbers, "NF4")
    assert (row["bits"].shown, row["bytes"].shown, row["size_ratio"].shown) == ("–", "–", "–")
    assert row["missing"].value == "bitsandbytes is not installed"
    assert "NF4: bitsandbytes is not installed" in numbers.notes


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nothing is remembered of what was read."""
    monkeypatch.setattr(reader, "recall", lambda *_: None)
    type_facts.cache_clear()
    yield
    type_facts.cache_clear()


@pytest.mark.usefixtures("unread")
def test_libraries_that_cannot_be_asked_make_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")

    with pytest.raises(QuantbenchError, match=r"did not describe .* \(ended with exit code 1\); see quantbench"):
        type_facts()
    [table] = formats.table()
    assert table.rows == ()
    assert "did not describe" in table.notes[0]
    assert "did not describe" in as_text([table], 100)


@pytest.mark.usefixtures("artifacts")
def test_neither_formats_nor_claims_load_torch_here() -> None:
    """Run in a process of its own; what was read once is in the user's cache."""
    said = "import sys; from quantbench import tables; made = tables.build('all', None); print(len(made), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    count, *modules = done.stdout.split()

    assert int(count) > 5
    assert "quantbench.tables.kinds.formats" in modules
    assert not {"torch", "transformers", "llama_cpp", "pandas", "bitsandbytes"} & set(modules)


def test_steps_are_exact_powers_of_two() -> None:
    steps = [each.step_at_1 for each in type_facts() if each.exponent_bits]

    assert len(steps) == 5
    assert all(step and math.log2(step).is_integer() for step in steps)
