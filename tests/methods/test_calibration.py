"""Calibration: the windows of a file, what is sampled from the model, and the sentences for files that are no use."""

from __future__ import annotations

import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from quantbench import load
from quantbench.core.errors import UnsupportedError, UsageError
from quantbench.core.job import Checkpoint
from quantbench.core.machine import describe
from quantbench.core.scenario import Conditions, Effort, Scenario, Spec, Variant
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.planning.options import Plan
from quantbench.results.store import Run, Store
from quantbench.running.runner import Runner
from quantbench.runtimes.transformers import calibration as texts
from quantbench.runtimes.transformers.calibration import LENGTH, MIN_SEQUENCES, SEQUENCES, calibration_ids

BOS, VOCABULARY = 1, 2048


def asked(calibration: str = "", seed: int = 0, variant: str = "gptq/int4-g128") -> Spec:
    method, _, precision = variant.partition("/")
    conditions = Conditions(calibration=calibration, seed=seed)
    return Spec(model="canary", variant=Variant(method=method, precision=precision), conditions=conditions)


def settings(checkpoint: Checkpoint | None = None) -> Settings:
    return Settings(checkpoint=checkpoint or resolve("canary"), threads=1, context=0)


class Positions:
    """A tokenizer whose ids are the places of the characters."""

    ends: frozenset[int] = frozenset()

    def __init__(self, context_limit: int | None = None, opening: tuple[int, ...] = (BOS,)) -> None:
        self.context_limit = context_limit
        self._opening = opening

    def encode(self, text: str) -> list[int]:
        return [*self._opening, *range(len(text))]


@effort(max_examples=40)
@given(
    windows=st.integers(MIN_SEQUENCES, 3 * SEQUENCES),
    rest=st.integers(0, LENGTH - 2),
    limit=st.sampled_from([None, 16, LENGTH, 4096]),
    opening=st.sampled_from([(), (BOS,)]),
)
def test_windows_are_spread_evenly_over_the_whole_text(
    windows: int, rest: int, limit: int | None, opening: tuple[int, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each is whole, none overlaps, the steps between them differ by one window at most, and little is left at the end."""
    body = min(LENGTH, limit or LENGTH) - len(opening)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("x" * (windows * body + min(rest, body - 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "open_tokenizer", lambda _: Positions(limit, opening))
        found = calibration_ids(asked(str(path)), settings())

    starts = [each[len(opening)] for each in found]
    assert found == [[*opening, *range(start, start + body)] for start in starts]
    assert len(found) == min(windows, SEQUENCES)
    assert starts[0] == 0
    edges = [*starts, windows * body]
    steps = {(after - before) / body for before, after in pairwise(edges)}
    assert steps <= {windows // len(found), windows // len(found) + 1}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "calibration file {} does not exist; give a text file with --calibration"),
        (b"", "calibration file {} is empty; give a text like those that the model will read"),
        (b" \n\t", "calibration file {} is empty; give a text like those that the model will read"),
        (b"caf\xe9 " * 100, "calibration file {} is not UTF-8 text ("),
        ("directory", "calibration file {} cannot be read (Is a directory); give a text file"),
        (b"word " * 100, "calibration file {} has 201 tokens, but 2040 are needed; give a longer text, or none to sample from"),
    ],
)
def test_files_that_are_no_use(content: bytes | str | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.txt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(UsageError) as caught:
        calibration_ids(asked(str(path)), settings())
    assert str(caught.value).startswith(sentence.format(path))
    assert "\n" not in str(caught.value)


def test_a_file_just_long_enough_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "open_tokenizer", lambda _: Positions())
    path = tmp_path / "calibration.txt"
    needed = MIN_SEQUENCES * (LENGTH - 1)
    path.write_text("x" * needed)
    assert len(calibration_ids(asked(str(path)), settings())) == MIN_SEQUENCES
    path.write_text("x" * (needed - 1))  # the same name: the text as it is now counts
    with pytest.raises(UsageError, match=rf"has {needed - 1} tokens, but {needed} are needed"):
        calibration_ids(asked(str(path)), settings())


def test_a_mark_at_the_start_is_no_text(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    text = Path(textwrap.__file__).read_text()
    plain.write_text(text)
    marked.write_text(text, encoding="utf-8-sig")
    assert calibration_ids(asked(str(plain)), settings()) == calibration_ids(asked(str(marked)), settings())


@pytest.mark.usefixtures("artifacts")
def test_sampled_ids_are_of_the_vocabulary_and_start_with_bos() -> None:
    found = calibration_ids(asked(), settings())
    assert len(found) == SEQUENCES
    assert {len(each) for each in found} == {LENGTH}
    assert {each[0] for each in found} == {BOS}
    assert {token for each in found for token in each} <= set(range(VOCABULARY))
    assert len({tuple(each) for each in found}) == SEQUENCES


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample little, for tests that sample anew."""
    for name, value in (("SEQUENCES", 4), ("LENGTH", 12), ("_BATCH", 2)):
        monkeypatch.setattr(texts, name, value)


@pytest.mark.usefixtures("few")
def test_a_seed_gives_the_same_text_wherever_it_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def sampled(seed: int, cache: str) -> list[list[int]]:
        monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / cache))
        return calibration_ids(asked(seed=seed), settings())

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = sampled(0, "one")
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are touched
    torch.manual_seed(6)
    assert sampled(0, "two") == first
    assert sampled(1, "two") != first
    assert [len(each) for each in first] == [12] * 4


@pytest.mark.usefixtures("few")
def test_text_is_sampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibration_ids(asked(), settings())

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(texts, "load_pretrained", refuse)
    assert calibration_ids(asked(), settings()) == first
    with pytest.raises(AssertionError, match="loaded again"):
        calibration_ids(asked(seed=1), settings())


def test_there_is_nothing_to_sample_from_in_a_quantized_checkpoint(tmp_path: Path) -> None:
    ready = Checkpoint(name="ready", kind="hf", path=tmp_path, revision="local", content_hash="0", quantized="gptq")
    with pytest.raises(UnsupportedError, match="ready is not an unquantized checkpoint folder, so no calibration text"):
        calibration_ids(asked(), settings(ready))


def test_the_files_content_is_in_the_key_and_its_name_is_not(tmp_path: Path) -> None:
    def key(path: str, variant: str = "gptq/int4-g128") -> str:
        spec = asked(path, variant=variant)
        scenario = Scenario(model=spec.model, variant=spec.variant, prompts="two", conditions=spec.conditions)
        return scenario.key(METHODS[spec.variant.method].recipe(spec))

    one, same, other = (tmp_path / name for name in ("one.txt", "same.txt", "other.txt"))
    one.write_text("text")
    same.write_text("text")
    other.write_text("another text")
    for variant in ("gptq/int4-g128", "awq/int4-g128"):
        assert key(str(one), variant) == key(str(same), variant)
        assert len({key(each, variant) for each in (str(one), str(other), "")}) == 3
    assert len({key(each, "torch/fp32") for each in (str(one), str(other), "")}) == 1


@pytest.mark.usefixtures("artifacts")
def test_a_file_that_is_missing_is_a_row_with_status_error(tmp_path: Path) -> None:
    """Of the variants that calibrate; the others do not need it."""
    conditions = Conditions(calibration="nowhere.txt", output_tokens=2, answer_tokens=2, continuation_tokens=2, threads=1)
    scenarios = tuple(
        Scenario(model="canary", variant=Variant(method=method, precision=precision), prompts="two", conditions=conditions)
        for method, precision in (("torch", "fp32"), ("gptq", "int4-g128"))
    )
    run = Run(machine=describe(), versions={}, command="", commit="", profile="quick", engine="inline")
    effort = Effort(min_rounds=1, max_rounds=1, budget_s=0.01, energy=False, besides=False)
    with Runner(Plan(scenarios=scenarios, effort=effort, engine="inline"), Store(str(tmp_path), run)) as runner:
        for scenario in scenarios:
            runner.measure(scenario)
    rows = load(str(tmp_path)).set_index("method")
    assert dict(rows["status"]) == {"torch": "ok", "gptq": "error"}
    expected = "calibration file nowhere.txt does not exist; give a text file with --calibration"
    assert rows["reason"]["gptq"] == expected
