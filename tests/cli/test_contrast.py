"""``quantbench contrast``: which rows it takes, what it prints of untrusted text, and what it says when there is nothing."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from quantbench.cli.app import app
from quantbench.cli.side_by_side import MARK, shown
from quantbench.core.machine import Machine
from quantbench.core.record import Missing, Output, Record, Status
from quantbench.core.scenario import Scenario, Variant
from quantbench.planning.options import RunOptions, plan
from quantbench.results.store import Run, Store

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = Machine(cpu="Xeon", cpus=2, memory_bytes=2**34, isa="avx2", system="Linux")
KLD = {"q4_k_m": 0.02, "q8_0": 0.001, "q2_k": 0.2, "fp32": 0.0, "as-served": None}
REFERENCE = (1, 2, 3, 4)
PAIR = ("gguf-q4_k_m", "gguf-q8_0")
NASTY = "same \x1b[31mred\x07 ```` | <b>x</b>\nlast\u202e"


def _outputs(precision: str, prompts: int, said: str) -> tuple[Output, ...]:
    """The reference's answer, and by q4_k_m another one after two tokens."""
    mean = KLD[precision]
    rng = np.random.default_rng(7)
    ids: tuple[int, ...] | None = (1, 2, 9) if precision == "q4_k_m" else REFERENCE
    ids = None if precision == "as-served" else ids
    outputs = []
    for index in range(prompts):
        kld = None if mean is None else tuple((mean * rng.gamma(20, 0.05, 64)).tolist())
        outputs.append(Output(
            index=index, prompt=f"prompt {index}", prompt_tokens=(5, index), reference_tokens=REFERENCE, variant_tokens=ids,
            reference_text="same words", variant_text=said if precision == "q4_k_m" else "same words",
            exact_match=ids == REFERENCE, first_divergence=2 if precision == "q4_k_m" else None, token_match=None,
            chrf=50.0, scored_tokens=64 if kld else None, kld=kld, kld_mean=mean,
            top1_agreement=0.9 if kld else None, nll_mean=None,
        ))  # fmt: skip
    return tuple(outputs)


def _measure(
    root: Path,
    run_id: str,
    *variants: str,
    day: int = 1,
    prompts: str = "ten",
    model: str = "canary",
    said: str = "same sings",
    **changes: Any,
) -> None:
    """Store a run that measured ``variants`` on three prompts; ``changes`` are of their records."""
    run = Run(
        machine=MACHINE, versions={}, command="c", commit="", profile="quick", engine="inline", run_id=run_id,
        started_at=datetime(2026, 1, day, tzinfo=UTC),
    )  # fmt: skip
    store = Store(str(root), run, numbers={("", 0): len(list(root.rglob("*.parquet")))})  # several calls for one run
    for name in variants:
        method, precision = name.split("/")
        record = Record(
            scenario=Scenario(model=model, variant=Variant(method=method, precision=precision), prompts=prompts),
            scenario_key="k", status=Status.OK, facts={},
            values={"kld_mean": Missing("a server gives no logits")} if precision == "as-served" else {},
            outputs=() if prompts.startswith("text:") else _outputs(precision, 3, said),
        )  # fmt: skip
        store.append(replace(record, **changes), instrument_check=False)


def _run(root: Path, *options: str, of: tuple[str, str] = PAIR) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["contrast", *of, *options, "--results", str(root)], env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, result.stderr


def _data(root: Path, *options: str, of: tuple[str, str] = PAIR) -> list[dict[str, Any]]:
    code, text, stderr = _run(root, *options, "--format", "json", of=of)
    assert (code, stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with both variants, and a later one without the second; only read."""
    folder = tmp_path_factory.mktemp("contrast") / "results"
    _measure(folder, "both", "gguf/q4_k_m", "gguf/q8_0")
    _measure(folder, "later", "gguf/q4_k_m", day=2)
    return folder


@pytest.fixture
def root(shared: Path, tmp_path: Path) -> Path:
    """The same to write more into."""
    return shutil.copytree(shared, tmp_path / "results")


def test_the_latest_run_with_both_is_taken_and_another_on_demand(root: Path) -> None:
    assert [each["run_id"] for each in _data(root)] == ["both"]
    _measure(root, "latest", "gguf/q8_0", "gguf/q4_k_m", day=3)
    assert [each["run_id"] for each in _data(root)] == ["latest"]
    assert [each["run_id"] for each in _data(root, "--run", "both")] == ["both"]


@pytest.mark.parametrize("spelled", ["gguf-q4_k_m", "gguf/q4_k_m", "gguf/Q4_K_M"])
def test_json_holds_the_data_behind_the_sentence(shared: Path, spelled: str) -> None:
    (found,) = _data(shared, of=(spelled, "gguf/q8_0"))
    assert (found["first"], found["second"], found["verdict"]) == ("gguf/q4_k_m", "gguf/q8_0", "first further")
    assert found["distances"]["first"]["kld_mean"] == pytest.approx(0.02, rel=0.2)
    assert (found["median_parting_tokens"], found["unscored"]) == (2, None)
    pair = found["prompts_compared"][1]
    assert (pair["index"], pair["prompt"], pair["prompt_tokens"]) == (1, "prompt 1", [5, 1])
    assert (pair["first"]["tokens"], pair["second"]["tokens"]) == ([1, 2, 9], list(REFERENCE))
    assert (pair["first"]["text"], pair["parts_at_token"], pair["parts_at_character"]) == ("same sings", 2, 5)
    assert (pair["first_had_left_reference"], pair["second_had_left_reference"]) == (True, False)
    assert pair["kld_difference"]["p_adjusted"] < 0.05
    further = "On canary (prompts ten) gguf/q4_k_m is further from torch/fp32 than gguf/q8_0, on 3 of 3 prompts"
    assert found["sentence"].startswith(further)


@pytest.mark.parametrize("form", ["text", "md"])
def test_people_read_the_sentence_first_and_the_texts_side_by_side(shared: Path, form: str) -> None:
    code, text, stderr = _run(shared, "--format", form)
    assert (code, stderr) == (0, "")
    assert text.startswith(_data(shared)[0]["sentence"] + "\n\n")
    beside = [line for line in text.splitlines() if line.startswith(f"same {MARK}sings  ")]
    assert len(beside) == 3
    assert all(line.endswith(f"  same {MARK}words") for line in beside)
    assert "Prompt 2: token 3 is the first to differ, where gguf/q4_k_m had left torch/fp32's answer" in text
    assert "Holm-corrected for 3 prompts" in text


def test_the_same_answer_has_no_mark_and_no_difference_has_its_least_effect(tmp_path: Path) -> None:
    _measure(tmp_path, "r", "gguf/q8_0", "gguf/q2_k")
    same = _run(tmp_path, of=("gguf-q8_0", "gguf-q2_k"))[1]
    assert "Prompt 1: the same answer" in same
    assert same.count(MARK) == 1  # the note that says what it is
    noise = np.random.default_rng(1).normal(0, 0.01, 64)
    moved = [noise - noise.mean() + 0.001 * (each.index - 1) for each in _outputs("q8_0", 3, "")]
    shaken = tuple(replace(each, kld=tuple(each.kld + by)) for each, by in zip(_outputs("q8_0", 3, ""), moved, strict=True))
    _measure(tmp_path, "s", "gguf/q8_0", day=2)
    _measure(tmp_path, "s", "gguf/q4_k_m", day=2, outputs=shaken)
    text = _run(tmp_path)[1]
    assert text.count("no difference (MDE ") == 3
    assert "do not differ significantly in their distance" in text


@pytest.mark.parametrize("form", ["text", "md"])
def test_nothing_that_a_model_says_steers_the_terminal_or_the_page(tmp_path: Path, form: str) -> None:
    _measure(tmp_path, "r", "gguf/q4_k_m", "gguf/q8_0", said=NASTY)
    _, text, _ = _run(tmp_path, "--format", form)
    assert not set("\x1b\x07\u202e") & set(text)
    assert r"same \x1b[31mred\x07 ````" in text.replace(MARK, "")
    if form == "md":
        fences = [line for line in text.splitlines() if line.startswith("```")]
        assert set(fences) == {"`````text", "`````"}
        outside = "".join(text.split("`````")[::2])
        assert "<b>" not in outside
    assert _data(tmp_path)[0]["prompts_compared"][0]["first"]["text"] == NASTY


def test_what_is_not_seen_is_shown() -> None:
    assert shown("a\n\tb\xa0\u200bé漢\n") == "a↵\n\\tb\\xa0\\u200bé漢↵"


def test_several_models_and_prompt_sets_follow_one_another_unless_one_is_named(root: Path) -> None:
    for model, prompts in (("org/m", "ten"), ("canary", "two")):
        _measure(root, "both", "gguf/q4_k_m", "gguf/q8_0", model=model, prompts=prompts)
    text = _run(root, "--format", "md")[1]
    whole = [(each["model"], each["prompts"]) for each in _data(root)]
    assert sorted(whole) == [("canary", "ten"), ("canary", "two"), ("org/m", "ten")]
    assert [(each["model"], each["prompts"]) for each in _data(root, "--model", "org/m")] == [("org/m", "ten")]
    assert [(each["model"], each["prompts"]) for each in _data(root, "--prompts", "two")] == [("canary", "two")]
    assert [text.count(f"On {model} (prompts {prompts})") for model, prompts in whole] == [1, 1, 1]


def test_the_control_is_a_variant_of_its_own(tmp_path: Path) -> None:
    _measure(tmp_path, "r", "torch/fp32")
    control = Scenario(model="canary", variant=Variant(method="torch", precision="fp32", control=True), prompts="ten")
    _measure(tmp_path, "r", "torch/fp32", scenario=control)
    (found,) = _data(tmp_path, of=("torch/fp32", "torch-fp32-control"))
    assert (found["first"], found["second"], found["verdict"]) == ("torch/fp32", "torch/fp32 (control)", "equal")


def test_of_repeats_the_first_is_taken(root: Path) -> None:
    late = tuple(replace(output, variant_text="repeated") for output in _outputs("q8_0", 3, ""))
    _measure(root, "both", "gguf/q8_0", outputs=late, repeat=1)
    assert "repeated" not in _run(root)[1]


def test_a_server_has_texts_only(root: Path) -> None:
    _measure(root, "both", "server/as-served")
    (found,) = _data(root, of=("server/as-served", "gguf/q4_k_m"))
    assert found["unscored"] == "server/as-served: a server gives no logits"
    assert f"was not measured: {found['unscored']}; their answers differ on 3 of 3 prompts" in found["sentence"]
    assert found["prompts_compared"][0]["parts_at_token"] is None
    assert "Prompt 1: character 6 is the first to differ" in _run(root, of=("server/as-served", "gguf/q4_k_m"))[1]


def test_results_from_before_kld_was_kept_by_prompt(root: Path) -> None:
    import pyarrow.parquet as pq

    for path in (root / "outputs").rglob("both-*.parquet"):
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["kld", "kld_mean", "scored_tokens"]), path)
    (found,) = _data(root)
    assert found["unscored"] == "run both kept none for each prompt, so measure again"
    assert f"was not measured: {found['unscored']}; their answers differ on 3 of 3 prompts" in found["sentence"]


# --- what there is not


def _planned(command: str) -> set[str]:
    """The variants that a printed command line would measure."""
    words = shlex.split(command)
    assert words[:2] == ["quantbench", "run"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    options = RunOptions.read(lambda option: given.pop(f"--{option.name}", option.default))
    assert given == {}
    return {scenario.id for scenario in plan(options).scenarios}


@pytest.mark.parametrize(
    ("of", "options", "said", "planned"),
    [
        (("gguf-q4_k_m", "gguf-q2_k"), [], "gguf/q2_k is not measured under", "canary/gguf-{}/mixed"),
        (PAIR, ["--prompts", "two"], "gguf/q4_k_m and gguf/q8_0 are not measured on prompts two under", "canary/gguf-{}/two"),
        (PAIR, ["--model", "lm/x"], "gguf/q4_k_m and gguf/q8_0 are not measured for lm/x under", "lm/x/gguf-{}/mixed"),
        (PAIR, ["--run", "later"], "gguf/q8_0 is not measured in run later under", "canary/gguf-{}/mixed"),
    ],
)
def test_what_is_not_measured_is_code_4_and_the_command_that_measures_it(
    shared: Path, of: tuple[str, str], options: list[str], said: str, planned: str
) -> None:
    code, stdout, stderr = _run(shared, *options, of=of)
    assert (code, stdout) == (4, "")
    assert stderr.startswith(f"quantbench: {said} {str(shared)!r}; to measure both: quantbench run ")
    assert stderr.count("\n") == 1
    precisions = [name.split("-", 1)[1] for name in of]
    assert _planned(stderr.partition("both: ")[2]) == {planned.format(each) for each in precisions}


def test_the_command_holds_for_methods_of_unlike_precisions(shared: Path) -> None:
    stderr = _run(shared, of=("bitsandbytes-nf4-dq", "gguf-q8_0"))[2]
    assert {"canary/bitsandbytes-nf4-dq/mixed", "canary/gguf-q8_0/mixed"} <= _planned(stderr.partition("both: ")[2])


def test_measured_but_never_in_one_run(tmp_path: Path) -> None:
    _measure(tmp_path, "one", "gguf/q4_k_m")
    _measure(tmp_path, "two", "gguf/q8_0", day=2)
    code, _, stderr = _run(tmp_path)
    assert code == 4
    assert "gguf/q4_k_m and gguf/q8_0 were not measured in one run under" in stderr


def test_the_reason_of_one_that_failed_is_told(root: Path) -> None:
    _measure(root, "both", "gguf/q2_k", status=Status.SKIPPED, reason="too large", outputs=())
    code, _, stderr = _run(root, of=("gguf-q4_k_m", "gguf-q2_k"))
    assert code == 4
    assert "gguf/q2_k (skipped: too large) is not measured under" in stderr


def test_a_text_is_not_answered(tmp_path: Path) -> None:
    _measure(tmp_path, "r", "gguf/q4_k_m", "gguf/q8_0", prompts="text:book.txt")
    code, _, stderr = _run(tmp_path)
    assert code == 4
    assert "; a text is scored, not answered; to measure both: quantbench run --method gguf" in stderr
    code, _, stderr = _run(tmp_path, "--prompts", "text:book.txt")
    assert code == 2
    assert stderr.startswith("quantbench: text:book.txt is scored, not answered, ")


def test_rows_without_answers_say_why(tmp_path: Path) -> None:
    values = {"exact_match": Missing("no reference to compare with")}
    _measure(tmp_path, "r", "gguf/q4_k_m", "gguf/q8_0")
    _measure(tmp_path, "r", "gguf/q2_k", outputs=(), values=values)
    code, stdout, stderr = _run(tmp_path, of=("gguf-q2_k", "gguf-q8_0"))
    assert (code, stdout) == (4, "")
    assert "run r kept no answers from gguf/q2_k to prompts ten (no reference to compare with); measure" in stderr


def test_other_answers_of_the_reference_are_incomparable(tmp_path: Path) -> None:
    _measure(tmp_path, "r", "gguf/q4_k_m")
    others = tuple(replace(output, reference_tokens=(7,)) for output in _outputs("q8_0", 3, ""))
    _measure(tmp_path, "r", "gguf/q8_0", outputs=others)
    code, stdout, stderr = _run(tmp_path)
    assert (code, stdout) == (4, "")
    assert "gguf/q4_k_m and gguf/q8_0 of run r are incomparable: prompt 1, or the reference's answer to it, differs" in stderr


def test_no_results_at_all(tmp_path: Path) -> None:
    code, _, stderr = _run(tmp_path / "nothing")
    assert code == 4
    assert stderr.startswith("quantbench: no results of table 'scenarios' under")


@pytest.mark.parametrize(
    ("of", "options", "said"),
    [
        (("gguf-q4_k_x", "gguf-q8_0"), [], "unknown variant 'gguf-q4_k_x'; did you mean 'gguf-q4_k_"),
        (("gguf-q8_0", "gguf/q8_0"), [], "gguf-q8_0 and gguf/q8_0 are the same variant; name two"),
        (PAIR, ["--run", "bot"], "unknown run 'bot'; did you mean 'both'?"),
        (PAIR, ["--prompts", "tenn"], "unknown prompt set 'tenn'; did you mean 'ten'?"),
    ],
)
def test_what_cannot_be_asked(shared: Path, of: tuple[str, str], options: list[str], said: str) -> None:
    code, stdout, stderr = _run(shared, *options, of=of)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"quantbench: {said}")
