"""Every published and derived figure of ``data/reference_numbers.csv``: held to the plan, or named with the reason why not.

Each row matches exactly one rule. A rule without a reason is tested: the plan must give the figure, within what its printing
leaves open. A rule with a reason says why the figure is none that is planned and, where it can, proves that: an older recipe
gives it and today's does not.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import gguf
import pytest

from quantbench.core.units import GIB
from quantbench.methods import METHODS
from quantbench.methods.gguf import NEED_MATRIX, uses_matrix
from quantbench.models.config import read_architecture
from quantbench.planning.planner import forecast
from quantbench.runtimes.gptqmodel.forecast import packed_tensors
from quantbench.runtimes.llama_cpp import plan as gguf_plan

GB = 10**9
MODELS = {
    "Llama-2-7B": "llama-2-7b", "Llama-2-7B-chat": "llama-2-7b", "Llama-2-7b-chat": "llama-2-7b", "LLaMA-7B": "llama-2-7b",
    "Llama-3-8B": "llama-3-8b", "Llama-3.1-8B": "llama-3.1-8b",
}  # fmt: skip
"""LLaMA-7B has the dimensions of Llama-2-7B."""

HEADER_7B = 741_056
"""What stands before the tensors in each of one publisher's GGUF files of Llama-2-7B."""

HEADER_8B = GIB // 100
"""A bound for Llama-3's, with its 128,256 tokens: published sizes of it are some of the tensors and some of the files."""


@dataclass(frozen=True)
class Row:
    """A row of the file and the line that it stands on."""

    line: int
    model: str
    method: str
    precision: str
    quantity: str
    value: str
    unit: str
    source: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.model} {self.method} {self.precision} {self.quantity} {self.value} {self.unit}"

    @property
    def number(self) -> Fraction:
        return sum(map(Fraction, self.value.split("+")), Fraction(0))

    @property
    def half(self) -> Fraction:
        """Half a unit of the last digit printed; a whole number of bytes or parameters is exact."""
        parts = self.value.split("+")
        exact = self.unit in ("bytes", "params")
        return Fraction(0) if exact else Fraction(len(parts), 2 * 10 ** len(parts[0].partition(".")[2]))

    @property
    def scale(self) -> int:
        """How many of its quantity its unit is. "G" is GiB, as all sizes but one or two that are printed so show."""
        scales = {r"GiB|G \(": GIB, "GB": GB, "B": GB}
        return next((scale for unit, scale in scales.items() if re.match(unit, self.unit)), 1)

    @property
    def made(self) -> tuple[str, bool]:
        """llama.cpp's file type, and whether with an importance matrix: where it is said, or llama.cpp insists on one."""
        name, _, how = self.precision.partition(" ")
        insisted = name.lower() in NEED_MATRIX and not (name == "IQ3_XXS" and "derived" in self.source)
        return name.upper(), how.startswith("imatrix") or insisted


def _read() -> list[Row]:
    with (Path(__file__).parent / "data" / "reference_numbers.csv").open(encoding="utf-8", newline="") as file:
        return [Row(line=number, **row) for number, row in enumerate(csv.DictReader(file), start=2)]


ROWS = _read()


def _offered(kind: str, *, matrix: bool) -> str | None:
    """The precision that files of a type are called by here, if any."""
    names = {each.name for each in METHODS["gguf"].precisions}
    both = (kind.lower(), f"{kind.lower()}-imat")
    return next((name for name in both if name in names and uses_matrix(name) == matrix), None)


class Plan:
    """What is planned of one model."""

    def __init__(self, name: str) -> None:
        self.architecture = read_architecture(name)
        self.layers = [each for each in self.architecture.tensors if each.role == "linear"]
        self._planned = {
            method: forecast(self.architecture, method, [each.name for each in METHODS[method].precisions])
            for method in ("torch", "bitsandbytes", "gptq", "awq", "gguf")
        }
        made = sorted({row.made for row in ROWS if row.method.startswith("gguf") and row.precision != "any"})
        rest = [(f"{kind} {matrix}", kind, matrix) for kind, matrix in made if _offered(kind, matrix=matrix) is None]
        self._others = gguf_plan.forecast(self.architecture, rest)

    def weights(self, variant: str) -> int:
        """As loaded."""
        method, _, precision = variant.partition("/")
        found = self._planned[method][precision].weight_bytes
        assert found is not None
        return found

    def stored(self, variant: str) -> int:
        """As loaded by torch, without buffers."""
        return self.weights(variant) - self.architecture.buffer_bytes

    def tensors(self, kind: str, matrix: bool) -> int:
        """Bytes of a GGUF file's tensors; the same dry run for a type that no precision here is called by."""
        name = _offered(kind, matrix=matrix)
        if name is not None:
            return self.weights(f"gguf/{name}")
        found = self._others[f"{kind} {matrix}"].weight_bytes
        assert found is not None
        return found

    @property
    def gguf_parameters(self) -> int:
        """llama.cpp counts the factors that Llama 3.1 stretches its rotary frequencies by."""
        stretched = "rope_scaling" in self.architecture.config
        return self.architecture.parameters + stretched * self.architecture.layers[0].head_dim // 2


@pytest.fixture(scope="module")
def plans(shared_cache: Path) -> Mapping[str, Plan]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(shared_cache))
        found = {name: Plan(name) for name in dict.fromkeys(MODELS.values())}
    return {published: found[name] for published, name in MODELS.items()}


Figure = Callable[[Row, Plan], Fraction | int]
Check = Callable[[Row, Plan], None]


def prints_as(figure: Fraction | int, row: Row, *, more: int = 0, half: Fraction | None = None) -> bool:
    """Whether a count, or it and up to ``more`` beside it, is what the row prints in its unit."""
    half = row.half if half is None else half
    return (row.number - half) * row.scale - more <= figure <= (row.number + half) * row.scale


def prints(figure: Figure, *, more: int = 0) -> Check:
    """The plan's figure is what is printed."""

    def check(row: Row, plan: Plan) -> None:
        assert prints_as(figure(row, plan), row, more=more), float(figure(row, plan) / Fraction(row.scale))

    return check


def of_file(size: int, row: Row, plan: Plan) -> Fraction | int:
    """From the bytes of its tensors to what a row says of a GGUF file: its bits a weight, or its bytes with the header."""
    if row.quantity == "bits_per_weight":
        return Fraction(8 * size, plan.gguf_parameters)
    return size + HEADER_7B if row.quantity == "file_size" and row.unit == "bytes" else size


def planned_file(row: Row, plan: Plan) -> Fraction | int:
    return of_file(plan.tensors(*row.made), row, plan)


def block_bits(row: Row, plan: Plan) -> Fraction:
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[row.precision]]
    return Fraction(8 * size, values)


def three_digits(row: Row, plan: Plan) -> None:
    """As the hub lists files, without zeros at the end."""
    half = Fraction(10 ** math.floor(math.log10(row.number)), 2 * 100)
    assert prints_as(plan.tensors(*row.made), row, more=HEADER_7B, half=half)


def in_index(row: Row, plan: Plan) -> int:
    """Tensors in 16 bits; the checkpoint of Llama-2-7B held the rotary frequencies of every layer as well."""
    frequencies = sum(2 * layer.head_dim // 2 for layer in plan.architecture.layers) if row.model == "Llama-2-7B" else 0
    return plan.stored("torch/fp16") + frequencies


def packed(row: Row, plan: Plan) -> int:
    """Tensors of the checkpoint; auto-gptq gave each layer a bias of zeros, which gptqmodel does not."""
    method = row.method.partition(" ")[0]
    precision = row.precision.replace(" ", "-").removesuffix("-no-actorder")
    sizes = {"I32": 4, "F16": 2, "BF16": 2}
    entries = list(packed_tensors(method, precision, plan.architecture))
    tensors = sum(sizes[dtype] * math.prod(shape) for _, dtype, shape in entries)
    shift_tables = 4 * 8 * len(plan.layers) if method == "gptq" else 0
    assert plan.stored(f"{method}/{precision}") == tensors + shift_tables
    return tensors + (2 * sum(layer.shape[0] for layer in plan.layers) if method == "gptq" else 0)


def bitsandbytes(row: Row, plan: Plan) -> None:
    """What the source counts, and the parts that it says it leaves out, are together what is planned as loaded."""
    scales = 4 * sum(layer.shape[0] for layer in plan.layers)
    blocks = 4 * sum(layer.elements // 64 for layer in plan.layers)
    codes, nested_codes = 4 * 16 * len(plan.layers), 4 * (256 + 1) * len(plan.layers)
    precisions, beside = {
        "INT8 get_memory_footprint": (["int8"], scales),
        "NF4/FP4 get_memory_footprint": (["nf4", "fp4"], blocks + codes),
        "NF4/FP4 true": (["nf4", "fp4"], codes),
        "NF4/FP4+dq true": (["nf4-dq"], codes + nested_codes),
    }[f"{row.precision} {row.quantity.split()[0]}"]
    for precision in precisions:
        assert plan.stored(f"bitsandbytes/{precision}") == row.number + beside


def idealised(row: Row, plan: Plan) -> Fraction | int:
    if row.precision.startswith("FP"):
        return plan.stored(f"torch/{row.precision.lower()}")
    return Fraction(plan.architecture.parameters * int(row.precision.removeprefix("INT")), 8)


def without_embedding(row: Row, plan: Plan) -> int:
    assert row.precision == "BF16"
    return plan.stored("torch/bf16") - 2 * sum(each.elements for each in plan.architecture.tensors if each.role == "embedding")


def base_file(row: Row, plan: Plan) -> None:
    """Of llama-perplexity: ids, and for half of each chunk's positions 16 bits a token. What it prints as GiB is decimal.

    wikitext-2 is 655 chunks of 512 by the first vocabulary and, as the source says, 564 to 566 by the second.
    """
    wide = 2 * (2 * ((plan.architecture.vocabulary + 1) // 2) + 4)
    chunks, derived = {"Llama-2-7B": ((655,), "10.69 GB"), "Llama-3-8B": ((564, 565, 566), "36.9 GB")}[row.model]
    sizes = [Fraction(20 + count * (4 * 512 + 255 * wide), GB) for count in chunks]
    assert all(abs(size - row.number) <= row.half for size in sizes)
    assert derived in row.unit
    assert derived in (f"{float(sizes[0]):.2f} GB", f"{float(sizes[0]):.1f} GB")


def parameters(row: Row, plan: Plan) -> int:
    return plan.gguf_parameters if "rope_freqs" in row.source else plan.architecture.parameters


def mixed(plan: Plan, usual: str, others: Mapping[str, str]) -> int:
    """Bytes of the tensors in a mix of block types by name; vectors stay float32."""
    total = 0
    for tensor in plan.architecture.tensors:
        kind = next((each for part, each in others.items() if part in tensor.name), usual)
        values, size = (1, 4) if len(tensor.shape) == 1 else gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        total += tensor.elements // values * size
    return total


HEAVY = {"v_proj": "Q4_K", "o_proj": "Q4_K", "down_proj": "Q4_K", "lm_head": "Q6_K"}
LIGHT = {"embed_tokens": "Q2_K", "q_proj": "Q2_K", "k_proj": "Q2_K", "lm_head": "Q6_K"}
OLDER: Mapping[str, Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "June 2023": {"Q2_K": ("Q2_K", HEAVY), "Q3_K_M": ("Q3_K", HEAVY), "Q4_K_S": ("Q4_K", {"lm_head": "Q6_K"})},
    "August 2023": {"Q2_K": ("Q3_K", LIGHT)},
    "before the output layer was Q6_K": {"Q4_0": ("Q4_0", {})},
}


def older(recipe: str) -> Check:
    """That recipe gives what is printed, and today's does not, whether the header is in it or not."""

    def check(row: Row, plan: Plan) -> None:
        usual, others = OLDER[recipe][row.precision]
        more = HEADER_7B if row.quantity == "file_size" else 0
        assert prints_as(of_file(mixed(plan, usual, others), row, plan), row, more=more)
        assert not prints_as(planned_file(row, plan), row, more=more)

    return check


def older_blocks(row: Row, plan: Plan) -> None:
    """Blocks of 32 with a scale of 32 bits, in GiB."""
    blocks = Fraction(plan.architecture.parameters * 20, 32)
    assert abs(blocks / GIB - row.number) <= row.half
    assert not prints_as(plan.tensors(*row.made), row, more=HEADER_7B)


def is_the_other(row: Row, plan: Plan) -> None:
    """It is the figure of Q2_K, and Q2_K_S has another."""
    other = "q2_k-imat" if "imatrix" in row.precision else "q2_k"
    assert prints_as(plan.weights(f"gguf/{other}"), row, more=HEADER_8B)
    assert not prints_as(plan.tensors(*row.made), row, more=HEADER_8B)
    if "derives to" in row.source:
        assert f"{plan.tensors(*row.made) / GIB:.3f} GiB" in row.source


def in_no_unit(row: Row, plan: Plan) -> None:
    for unit in (GIB, GB):
        assert abs(Fraction(plan.tensors(*row.made), unit) - row.number) > row.half


def whole_model(row: Row, plan: Plan) -> None:
    """Its kernel's groups of 64 with a scale and a zero, rows padded to 1024, of the output layer too: not offered here."""
    layers = [(outputs, -(-inputs // 1024) * 1024) for outputs, inputs in (each.shape for each in plan.layers)]
    head = next(each.shape for each in plan.architecture.tensors if each.role == "output")
    values = sum(outputs * inputs for outputs, inputs in (*layers, head))
    norms = sum(each.elements for each in plan.architecture.tensors if each.role == "other")
    assert prints_as(values // 2 + values // 64 * 4 + 2 * norms, row)


@dataclass(frozen=True)
class Rule:
    """Patterns that columns begin with, what is checked of a row, and of what is not planned the reason."""

    name: str
    where: Mapping[str, str]
    check: Check | None = None
    reason: str = ""

    def covers(self, row: Row) -> bool:
        return all(re.match(pattern, getattr(row, column)) for column, pattern in self.where.items())


RECIPE_CHANGED = "llama.cpp's mix of types has changed since"
RULES = [
    Rule("bits a weight of GGUF files", {
        "method": "gguf$", "quantity": "bits_per_weight", "unit": "bpw$", "source": "(?!.*2023 Q2_K recipe)"
    }, prints(planned_file)),
    Rule("bits of block formats", {"unit": r"bpw \(block format only\)"}, prints(block_bits)),
    Rule("tensor bytes of GGUF files", {"method": "gguf$", "quantity": "tensor_bytes"}, prints(planned_file)),
    Rule("GiB of GGUF files", {
        "method": "gguf$", "quantity": "model_size", "unit": "GiB$", "source": ".*(quantize/README|llama-bench)"
    }, prints(planned_file)),
    Rule("GiB of Llama-3, tensors or files", {
        "method": "gguf$", "quantity": "model_size", "source": "(?!.*SUSPECT).*(QUANT_OPTIONS|scoreboard)"
    }, prints(planned_file, more=HEADER_8B)),
    Rule("GB of memory and disk", {"quantity": "(original|model)_size", "source": ".*Memory/Disk"}, prints(planned_file)),
    Rule("G in an older README", {"method": "gguf$", "unit": r"G \(", "precision": "Q4_1|Q5|Q8"}, prints(planned_file)),
    Rule("June 2023, as today", {
        "method": r"gguf \(June", "quantity": "file_size", "precision": "Q3_K_[SL]|Q4_K_M|Q5|Q6"
    }, prints(planned_file)),
    Rule("August 2023, as today", {"method": r"gguf \(Aug", "precision": "Q3|Q4"}, prints(planned_file)),
    Rule("hub, today's recipe", {"method": r"gguf \(2024"}, three_digits),
    Rule("hub, 2023, as today", {"method": r"gguf \(2023", "precision": "Q3|Q4"}, three_digits),
    Rule("bytes of files on the hub", {
        "model": "Llama-2-7B$", "method": "gguf$", "quantity": "file_size", "unit": "bytes"
    }, prints(planned_file)),
    Rule("16-bit checkpoints", {"method": "safetensors index"}, prints(in_index)),
    Rule("GPTQ files", {"method": "gptq ", "quantity": "file_size"}, prints(packed)),
    Rule("AWQ files", {"method": "awq$", "quantity": "file_size"}, prints(packed)),
    Rule("GPTQ and AWQ tensors", {"method": "(gptq|awq)$", "quantity": "tensor_bytes"}, prints(packed)),
    Rule("bitsandbytes", {"method": "bitsandbytes"}, bitsandbytes),
    Rule("parameters times bits", {"method": "precision-table"}, prints(idealised)),
    Rule("parameters", {"quantity": "n_params"}, prints(parameters)),
    Rule("torchao in 16 bits", {"method": "torchao", "quantity": "model_size", "precision": "BF16"}, prints(without_embedding)),
    Rule("base files of llama-perplexity", {"method": "kld-base-file"}, base_file),
    Rule("speed", {"unit": "tok/s"}, reason="a speed, no size"),
    Rule("quality", {"unit": "(ppl|nats|%)$"}, reason="a perplexity or a divergence, no size"),
    Rule("marked suspect", {"source": ".*SUSPECT"}, is_the_other, "the source prints the size of Q2_K for Q2_K_S"),
    Rule("June 2023", {
        "method": r"gguf \(June", "quantity": "file_size", "precision": "Q2_K|Q3_K_M|Q4_K_S"
    }, older("June 2023"), RECIPE_CHANGED),
    Rule("August 2023", {"method": r"gguf \(Aug", "precision": "Q2_K"}, older("August 2023"), RECIPE_CHANGED),
    Rule("hub, 2023", {"method": r"gguf \(2023", "precision": "Q2_K"}, older("August 2023"), RECIPE_CHANGED),
    Rule("elsewhere, 2023", {"source": ".*2023 Q2_K recipe"}, older("August 2023"), RECIPE_CHANGED),
    Rule("older README, Q4_0", {
        "method": "gguf$", "unit": r"G \(", "precision": "Q4_0"
    }, older("before the output layer was Q6_K"), RECIPE_CHANGED),
    Rule("older README, first Q4_0", {"quantity": "quantized_size"}, older_blocks, "a block of Q4_0 had 20 bytes, and has 18"),
    Rule("13.0G", {"precision": "F16", "quantity": "file_size", "value": "13.0"}, in_no_unit, "neither its GB nor its GiB"),
    Rule("peak on a GPU", {"quantity": "peak_memory"}, reason="a peak measured on an A100, whatever else it holds"),
    Rule("training", {"quantity": "memory incl. training state"}, reason="holds the state of training too"),
    Rule("torchao, other ways", {
        "method": "torchao", "quantity": "model_size", "precision": "awq|codebook|int4wo-hqq"
    }, reason="no method here makes it"),
    Rule("torchao, whole model", {
        "method": "torchao", "quantity": "model_size", "precision": "int4wo-64"
    }, whole_model, "no precision here takes the output layer too, in groups of 64"),
    Rule("gpt-fast", {"quantity": "implied_model_size"}, reason="inferred from a bandwidth and a speed"),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_a_rule_says_of_its_rows(rule: Rule, plans: Mapping[str, Plan]) -> None:
    covered = [row for row in ROWS if rule.covers(row)]
    assert covered, "a rule without a row"
    assert rule.check or rule.reason
    wrong = []
    for row in covered:
        try:
            if rule.check:
                rule.check(row, plans[row.model])
        except AssertionError as error:
            wrong.append(f"{row}: {error}")
    assert not wrong, "\n".join(wrong)


def test_iq3_xxs_as_published_is_made_with_an_importance_matrix(plans: Mapping[str, Plan]) -> None:
    (row,) = (each for each in ROWS if each.precision == "IQ3_XXS" and "quantize/README" in each.source and each.unit == "bpw")
    plan = plans[row.model]
    with_one, without = (Fraction(8 * plan.tensors("IQ3_XXS", matrix), plan.gguf_parameters) for matrix in (True, False))
    assert prints_as(with_one, row)
    assert round(float(without), 4) == 3.3736


def test_each_row_has_one_rule_and_none_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    of = {row: [rule for rule in RULES if rule.covers(row)] for row in ROWS}
    assert len(of) == len(ROWS) > 700
    assert not [f"{row}: {[rule.name for rule in rules]}" for row, rules in of.items() if len(rules) != 1]
    reasons = Counter(rules[0].reason for rules in of.values())
    tested = reasons.pop("")
    assert tested + reasons.total() == len(ROWS)
    with capsys.disabled():
        print(f"\nreference numbers: {tested} of {len(ROWS)} rows held to the plan; {reasons.total()} named:")
        print("\n".join(f"  {count:4} {reason}" for reason, count in reasons.most_common()))
