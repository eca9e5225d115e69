"""Number formats as the installed libraries define them: the range of a value, the step to the next one, and its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from quantbench.claims.type_facts import LLAMA_CPP, PACKAGES, TypeFacts, package_versions, type_facts
from quantbench.core.errors import QuantbenchError
from quantbench.core.units import significant, times
from quantbench.tables import TableKind
from quantbench.tables.table import Cell, Heading, Scalar, Table

SCALED = "×s"
_BYTE_BITS = 8
_WIDEST = "FP32"
_NOTES = (
    "s+e+m: bits of sign, exponent and mantissa; integers have no exponent, and NF4's codes are indices into a table",
    "step: from a value to the next larger one (for NF4's largest, to the next smaller); a dash: 1000 is beyond the format",
    f"{SCALED}: times a scale stored beside the values, one per row or block, and not counted in bits and bytes",
)
_BLOCK_NOTES = (
    "a block holds small integers, or indices into a table, with its scales; range and step depend on the weights",
    "bits include the scales; a file such as Q4_K_M mixes types, so its bits per weight differ (see quantbench plan MODEL)",
)

Show = Callable[[TypeFacts], Cell]


def table() -> list[Table]:
    """The formats of the tutorials, then llama.cpp's block types; needs no results."""
    try:
        facts = type_facts()
    except QuantbenchError as error:
        return [_table("Number formats", [], _formats(()), (str(error),))]
    formats, blocks = ([each for each in facts if (each.package == LLAMA_CPP) is chosen] for chosen in (False, True))
    return [
        _table("Number formats", formats, _formats(facts), [*_NOTES, *map(_with_scale, formats)]),
        _table("Block types of llama.cpp", blocks, _blocks(facts), _BLOCK_NOTES),
    ]


def _with_scale(each: TypeFacts) -> str:
    """The size of a value with its share of the block's scale; empty for a type without blocks."""
    if not each.block_values:
        return ""
    return (
        f"{each.name} of {each.package}: a block of {each.block_values} values takes {each.block_bytes} bytes with its scale, "
        f"{each.stored_bits:g} bits per value; double quantization lowers that"
    )


def _table(title: str, facts: Sequence[TypeFacts], columns: Mapping[Heading, Show], notes: Sequence[str]) -> Table:
    versions = package_versions()
    packages = {each.package for each in facts}
    used = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in packages and name in versions)
    missing = [f"{each.name}: {each.missing}" for each in facts if each.missing]
    return Table(
        name="formats",
        title=title,
        facts={"versions": used},
        caption=f"As defined by {used}; nothing was measured" if used else "No library that defines them is installed",
        headings=tuple(columns),
        rows=tuple(tuple(show(each) for show in columns.values()) for each in facts),
        notes=(*filter(None, notes), *missing),
    )


def _formats(facts: Sequence[TypeFacts]) -> dict[Heading, Show]:
    return {
        Heading(key="name", title="Format"): lambda each: Cell(each.name),
        _numeric("bits", "Bits", "bits"): _field("bits"),
        Heading(key="parts", title="s+e+m"): _parts,
        **{_hidden(key, "bits"): _field(key) for key in ("sign_bits", "exponent_bits", "mantissa_bits")},
        _numeric("minimum", "Min"): _limit("minimum"),
        _numeric("maximum", "Max"): _limit("maximum"),
        _numeric("smallest_normal", "Smallest normal"): _limit("smallest_normal"),
        _numeric("step_at_1", "Step at 1"): _limit("step_at_1"),
        _numeric("step_at_1000", "at 1000"): _limit("step_at_1000"),
        **_size(facts),
    }


def _blocks(facts: Sequence[TypeFacts]) -> dict[Heading, Show]:
    return {
        Heading(key="name", title="Type"): lambda each: Cell(each.name),
        _numeric("block_values", "Values per block"): _field("block_values"),
        _numeric("block_bytes", "Bytes per block", "bytes"): _field("block_bytes"),
        _numeric("stored_bits", "Bits/value", "bits"): lambda each: Cell.of(each.stored_bits, "{:.4f}".format),
        **_size(facts),
    }


def _size(facts: Sequence[TypeFacts]) -> dict[Heading, Show]:
    """Bytes per value, and their ratio to those of FP32."""
    widest = next((each.bits for each in facts if each.name == _WIDEST), None)

    def bits(each: TypeFacts) -> float | None:
        return each.bits or each.stored_bits

    def ratio(each: TypeFacts) -> Cell:
        found = bits(each)
        return Cell.of(None if not widest or found is None else found / widest, times)

    def size(each: TypeFacts) -> Cell:
        found = bits(each)
        return Cell.of(None if found is None else found / _BYTE_BITS, significant)

    return {
        _numeric("bytes", "Bytes", "bytes"): size,
        _numeric("size_ratio", f"x {_WIDEST}", "ratio"): ratio,
        Heading(key="package", title="Package", shown=False): lambda each: Cell(each.package),
        Heading(key="missing", title="Missing", shown=False): lambda each: Cell(each.missing or None),
    }


def _numeric(key: str, title: str, unit: str = "") -> Heading:
    return Heading(key=key, title=title, unit=unit, numeric=True)


def _hidden(key: str, unit: str) -> Heading:
    return Heading(key=key, title=key, unit=unit, shown=False)


def _field(key: str) -> Show:
    return lambda each: Cell(_value(each, key))


def _value(each: TypeFacts, key: str) -> Scalar:
    found: Scalar = getattr(each, key)
    return found


def _parts(each: TypeFacts) -> Cell:
    parts = (each.sign_bits, each.exponent_bits, each.mantissa_bits)
    return Cell(None) if None in parts else Cell("+".join(map(str, parts)))


def _limit(key: str) -> Show:
    def show(each: TypeFacts) -> Cell:
        value = getattr(each, key)
        if value is None:
            return Cell(None)
        text = f"{value:g}" if value == int(value) and abs(value) < 1e6 else significant(value)
        return Cell(value, text, mark=f" {SCALED}" if each.scaled else "")

    return show


FORMATS = TableKind(
    name="formats", about="number formats: bits, range, step, bytes per value; llama.cpp's block types", place=10,
    unmeasured=table,
)  # fmt: skip
