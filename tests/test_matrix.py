"""Matrix files: from TOML to scenarios, and one clear sentence for whatever is wrong in one."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from quantbench.core.errors import MatrixError, UsageError
from quantbench.core.scenario import Conditions, Variant
from quantbench.methods import METHODS
from quantbench.planning.matrix import Matrix, default_matrix, scenarios, select
from quantbench.planning.matrix_file import read_matrix

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
FP32 = Variant(method="torch", precision="fp32")
Q8_0 = Variant(method="gguf", precision="q8_0")
SHIPPED = {
    "torch", "torch-dynamic", "bitsandbytes", "torchao", "gptq", "awq", "gguf", "prune", "qat", "server",
}  # fmt: skip
PLAIN = Matrix(models=("canary",), prompts=("ten",), variants=(Q8_0, FP32))


@pytest.fixture
def matrix_file(tmp_path: Path) -> Callable[[str], Path]:
    """A matrix file with the given text."""

    def write(text: str) -> Path:
        path = tmp_path / "matrix.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def _refusal(path: Path) -> str:
    """The sentence that a matrix file is refused with; it is one line and names the file."""
    with pytest.raises(MatrixError) as caught:
        read_matrix(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def test_a_variant_to_probe_that_does_not_exist_is_refused(matrix_file: Callable[[str], Path]) -> None:
    said = _refusal(matrix_file('probes = ["gguf/q8"]\n'))
    assert "key 'probes': unknown precision of gguf 'q8'; did you mean 'q8_0'" in said



def test_every_axis_and_condition_is_read(matrix_file: Callable[[str], Path]) -> None:
    path = matrix_file("""
        models = ["canary", "org/model"]
        prompts = ["two"]
        control = false
        [methods]
        gguf = ["q8_0"]
        torch = ["fp32"]
        [conditions]
        reference = "torch/bf16"
        device = "cuda:1"
        threads = 3
        context = 512
        output_tokens = 8
        answer_tokens = 9
        continuation_tokens = 10
        answered_prompts = 12
        seed = 11
        calibration = "text.txt"
        server = "gguf/q8_0"
        concurrency = 2
        chunks = 3
        decode_path = "static"
        n_gpu_layers = "auto"
    """)
    conditions = Conditions(
        reference="torch/bf16",
        device="cuda:1",
        threads=3,
        context=512,
        output_tokens=8,
        answer_tokens=9,
        continuation_tokens=10,
        answered_prompts=12,
        seed=11,
        calibration="text.txt",
        server="gguf/q8_0",
        concurrency=2,
        chunks=3,
        decode_path="static",
        n_gpu_layers="auto",
    )
    assert read_matrix(path) == Matrix(
        models=("canary", "org/model"),
        prompts=("two",),
        variants=(Q8_0, FP32),
        control=False,
        conditions=conditions,
        source=str(path),
    )
    assert all(getattr(conditions, each.name) != each.default for each in fields(Conditions)), "a condition is not tried here"


def test_an_empty_file_is_the_default_matrix(matrix_file: Callable[[str], Path]) -> None:
    path = matrix_file("# nothing\n")
    assert read_matrix(path) == replace(default_matrix(), source=str(path))


def test_the_shipped_matrix_plans_every_method_with_the_reference_and_its_control_first() -> None:
    planned = scenarios(read_matrix(ROOT / "bench" / "matrix.toml"))
    ids = [scenario.id for scenario in planned]
    assert ids[:2] == ["canary/torch-fp32/mixed", "canary/torch-fp32-control/mixed"]
    assert {scenario.variant.method for scenario in planned} == SHIPPED
    assert len([each for each in ids if each.startswith("canary/")]) >= 24
    assert [each for each in ids if each.startswith("lstm/")] == [
        f"lstm/{variant}/seeded"
        for variant in ("torch-fp32", "torch-fp32-control", "torch-fp16", "torch-bf16", "torch-dynamic-int8")
    ]


def test_the_reference_comes_first_then_its_control_then_the_rest_in_order() -> None:
    both = replace(PLAIN, models=("canary", "org/model"), prompts=("ten", "two"))
    assert [scenario.id for scenario in scenarios(both)] == [
        f"{model}/{variant}/{prompts}"
        for model in ("canary", "org/model")
        for variant in ("torch-fp32", "torch-fp32-control", "gguf-q8_0")
        for prompts in ("ten", "two")
    ]


def test_no_control_where_none_is_wanted_or_the_reference_is_not_measured() -> None:
    assert not any(scenario.variant.control for scenario in scenarios(replace(PLAIN, control=False)))
    assert [scenario.id for scenario in scenarios(replace(PLAIN, variants=(Q8_0,)))] == ["canary/gguf-q8_0/ten"]


def _module_ids(*methods: str, **changed: tuple[str, ...]) -> list[str]:
    names = {method: METHODS[method].precisions[0].name for method in methods}
    variants = tuple(Variant(method=method, precision=name) for method, name in names.items())
    return [scenario.id for scenario in scenarios(replace(PLAIN, variants=variants, models=("lstm",), **changed))]


def test_a_module_is_planned_on_seeded_inputs_with_the_methods_that_open_it() -> None:
    expected = ["lstm/torch-fp32/seeded", "lstm/torch-fp32-control/seeded", "lstm/torch-dynamic-int8/seeded"]
    for prompts in (("ten",), ("ten", "two"), ("seeded",)):
        assert _module_ids("torch-dynamic", "gguf", "torch", prompts=prompts) == expected
    both = scenarios(replace(PLAIN, models=("canary", "lstm")))
    assert [scenario.id for scenario in both if scenario.model == "canary"] == [
        "canary/torch-fp32/ten", "canary/torch-fp32-control/ten", "canary/gguf-q8_0/ten",
    ]  # fmt: skip
    assert [scenario.id for scenario in both if scenario.model == "lstm"] == expected[:2]
    assert {scenario.reads for scenario in both if scenario.model == "lstm"} == {"inputs"}


def test_a_module_beside_methods_that_cannot_open_it_is_refused_unless_another_model_has_scenarios() -> None:
    with pytest.raises(UsageError, match=r"^model 'lstm' is a module .* gguf cannot open; use torch or torch-dynamic$"):
        _module_ids("gguf")
    mixed = scenarios(replace(PLAIN, models=("canary", "lstm"), variants=(Q8_0,)))
    assert [scenario.id for scenario in mixed] == ["canary/gguf-q8_0/ten"]


def test_a_model_that_reads_text_takes_no_seeded_inputs() -> None:
    with pytest.raises(UsageError, match=r"^model 'canary' reads text, not 'seeded' inputs"):
        scenarios(replace(PLAIN, models=("lstm", "canary"), prompts=("seeded",)))


def test_conditions_reach_every_scenario() -> None:
    conditions = Conditions(seed=5)
    assert {scenario.conditions for scenario in scenarios(replace(PLAIN, conditions=conditions))} == {conditions}


@pytest.mark.parametrize("text", ["models = [", 'models = ["canary"]\nprompts = ten\n', "[methods\n", "a = 1\na = 2\n"])
def test_malformed_toml_names_the_file_and_the_line(text: str, matrix_file: Callable[[str], Path]) -> None:
    import tomllib

    with pytest.raises(tomllib.TOMLDecodeError) as parser:
        tomllib.loads(text)
    sentence = _refusal(matrix_file(text))
    assert "is not valid TOML" in sentence
    assert str(parser.value) in sentence
    assert "line" in sentence or "end of document" in sentence


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "matrix.toml"
    path.write_bytes(b'models = ["Gr\xfcn"]')
    assert "is not valid TOML" in _refusal(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "none.toml").endswith("does not exist; give a TOML file with --matrix")


def test_a_folder_is_no_matrix_file(tmp_path: Path) -> None:
    assert _refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('models = "canary"', "models"),
        ("models = [1]", "models"),
        ('prompts = "ten"', "prompts"),
        ('prompts = [["ten"]]', "prompts"),
        ("control = 1", "control"),
        ('control = "yes"', "control"),
        ('energy = "no"', "energy"),
        ("methods = 3", "methods"),
        ('methods = ["gguf"]', "methods"),
        ('[methods]\ngguf = "q8_0"', "methods.gguf"),
        ("[methods]\ngguf = [8]", "methods.gguf"),
        ('[methods]\ngguf = { a = "q8_0" }', "methods.gguf"),
        ("conditions = 1", "conditions"),
        ('[conditions]\nthreads = "two"', "conditions.threads"),
        ("[conditions]\nthreads = true", "conditions.threads"),
        ("[conditions]\noutput_tokens = 8.0", "conditions.output_tokens"),
        ("[conditions]\ndevice = 0", "conditions.device"),
    ],
)
def test_a_key_of_the_wrong_type_names_the_file_and_the_key(text: str, key: str, matrix_file: Callable[[str], Path]) -> None:
    sentence = _refusal(matrix_file(text))
    assert f"key '{key}'" in sentence
    assert "expected" in sentence
    assert "found" in sentence


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ('model = ["canary"]', "model", "models"),
        ('[method]\ngguf = ["q8_0"]', "method", "methods"),
        ("[conditions]\noutput_token = 8", "output_token", "output_tokens"),
    ],
)
def test_an_unknown_key_names_the_file_the_key_and_the_nearest(
    text: str, key: str, near: str, matrix_file: Callable[[str], Path]
) -> None:
    sentence = _refusal(matrix_file(text))
    assert f"unknown key {key!r}; did you mean {near!r}" in sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[methods]\nggfu = ["q8_0"]', "unknown method 'ggfu'; did you mean 'gguf'?"),
        ('[methods]\ngguf = ["q4_k"]', "unknown precision of gguf 'q4_k'; did you mean"),
        ('[conditions]\ndevice = "gpu"', "device 'gpu' is not known; use cpu, cuda or cuda:N"),
        ("[conditions]\noutput_tokens = 1", "output_tokens is 1; ask for at least 2 tokens"),
    ],
)
def test_a_value_that_cannot_be_names_the_file_and_says_why(
    text: str, sentence: str, matrix_file: Callable[[str], Path]
) -> None:
    assert sentence in _refusal(matrix_file(text))


@pytest.mark.parametrize("text", ["models = []", "prompts = []", "[methods]", "[methods]\ngguf = []"])
def test_a_matrix_that_plans_nothing_is_refused(text: str, matrix_file: Callable[[str], Path]) -> None:
    """Else a nightly job would measure nothing and pass."""
    path = matrix_file(text)
    with pytest.raises(UsageError):
        scenarios(read_matrix(path))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"models": ("kanary",)}, r"^unknown model 'kanary'; did you mean 'canary'\?$"),
        ({"models": ("./nowhere",)}, r"^model path './nowhere' does not exist; give a checkpoint folder or a .gguf file$"),
        ({"models": ("nowhere.gguf",)}, r"^model path 'nowhere.gguf' does not exist"),
        ({"prompts": ("tenn",)}, r"^unknown prompt set 'tenn'; did you mean 'ten'"),
        ({"prompts": ("nowhere.txt",)}, r"^prompt file 'nowhere.txt' does not exist"),
        ({"variants": (Variant(method="tocrh", precision="fp32"),)}, r"^unknown method 'tocrh'; did you mean 'torch'"),
        ({"variants": (Variant(method="torch", precision="fp31"),)}, r"^unknown precision of torch 'fp31'; did you mean"),
        ({"conditions": Conditions(reference="torch/fp31")}, r"^unknown precision of torch 'fp31'; did you mean"),
        ({"conditions": Conditions(reference="tocrh/fp32")}, r"^unknown method 'tocrh'; did you mean 'torch'"),
        ({"models": ("canary", "canary")}, r"^scenario 'canary/torch-fp32/ten' is planned twice"),
        ({"variants": (FP32, Q8_0, Q8_0)}, r"^scenario 'canary/gguf-q8_0/ten' is planned twice"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_runs(changed: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        scenarios(replace(PLAIN, **changed))


def test_two_folders_of_one_name_would_share_an_id_and_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "tiny").mkdir(parents=True)
    (tmp_path / "b" / "tiny").mkdir(parents=True)
    with pytest.raises(UsageError, match="planned twice"):
        scenarios(replace(PLAIN, models=(str(tmp_path / "a" / "tiny"), str(tmp_path / "b" / "tiny"))))


def _variants(**asked: tuple[str, ...]) -> list[str]:
    wanted = {"models": (), "methods": (), "precisions": (), "prompts": (), **asked}
    return [variant.name for variant in select(PLAIN, **wanted).variants]


def test_selecting_nothing_changes_nothing() -> None:
    assert select(PLAIN, models=(), methods=(), precisions=(), prompts=()) == PLAIN


def test_models_and_prompts_replace_methods_and_precisions_filter() -> None:
    chosen = select(PLAIN, models=("a",), methods=("gguf",), precisions=(), prompts=("two",))
    assert (chosen.models, chosen.prompts, chosen.variants) == (("a",), ("two",), (Q8_0,))
    assert _variants(precisions=("fp32",)) == ["torch/fp32"]
    assert _variants(methods=("torch", "gguf"), precisions=("q8_0",)) == ["gguf/q8_0"]


def test_a_method_that_the_matrix_lacks_comes_with_its_usual_precisions_or_with_all_where_none_is_usual() -> None:
    assert _variants(methods=("prune",)) == ["prune/unstructured-50", "prune/structured-25"]
    assert _variants(methods=("qat",)) == ["qat/int8", "qat/int4"]
    assert _variants(methods=("bitsandbytes",), precisions=("nf4",)) == ["bitsandbytes/nf4"]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"methods": ("bitsandbites",)}, r"^unknown method 'bitsandbites'; did you mean 'bitsandbytes'\?$"),
        ({"precisions": ("fp33",)}, r"^unknown precision 'fp33'; did you mean"),
        ({"methods": ("torch",), "precisions": ("q8_0",)}, r"^none of the chosen methods has .*q8_0; .* bf16, fp16, fp32$"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(asked: dict[str, tuple[str, ...]], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        _variants(**asked)
