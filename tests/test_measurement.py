"""A measurement's figures: numbers that know their interval and origin, and reasons in place of what is missing."""

from __future__ import annotations

import copy
import json
import math
import operator
import pickle
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core.errors import QuantbenchError, UnsupportedError
from quantbench.results.rows import Row
from quantbench.running.measurement import MeasuredFigure, Measurement, Reading

AGAIN = "quantbench run --model=canary"
UNTIMED = "nothing is timed here"
VALUES: dict[str, Any] = {
    "scenario_id": "canary/gguf-q4_k_m/ten", "status": "ok", "reference": "torch/fp32", "anchor": "gguf/f16", "kernel": "cpu",
    "kld_mean": 0.013724, "kld_mean_low": 0.0125, "kld_mean_high": 0.0151, "weight_bytes": 3_514_368, "ttft_s": 0.0033,
    "decode_ratio": 1.33, "decode_ratio_low": 1.3, "decode_ratio_high": 1.36, "disturbed": False, "disturbance": "",
}  # fmt: skip


def measured(reasons: dict[str, str] | None = None, reading: Reading | None = None, **changes: Any) -> Measurement:
    row = Row({**VALUES, "null_reasons": json.dumps(reasons or {}), **changes})
    return Measurement(row, reading or Reading(again=AGAIN))


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.floats(allow_nan=False, width=32))
def test_a_figure_compares_and_computes_as_its_number(value: float, other: float) -> None:
    figure = measured(kld_mean=value).kld_mean
    assert isinstance(figure, float)
    for compare in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
        assert compare(figure, other) == compare(value, other)
        assert compare(other, figure) == compare(other, value)
    assert (figure + 1, 2 * figure, -figure, hash(figure)) == (value + 1, 2 * value, -value, hash(value))
    assert figure == pytest.approx(value)
    assert math.isfinite(figure)
    assert f"{figure:.3f}" == f"{value:.3f}"
    assert json.loads(json.dumps(figure)) == value


@given(*[st.floats(0.0, 10.0)] * 4)
def test_sure_is_what_the_whole_interval_says(value: float, one: float, other: float, bound: float) -> None:
    low, high = sorted((one, other))
    figure = measured(kld_mean=value, kld_mean_low=low, kld_mean_high=high).kld_mean
    assert bool(figure.surely_below(bound)) is (high < bound)
    assert bool(figure.surely_above(bound)) is (low > bound)
    assert (figure.surely_below(bound) == True) is (high < bound)  # noqa: E712 - as people write it


def test_a_figure_says_its_value_interval_and_origin() -> None:
    figure = measured().kld_mean
    assert repr(figure) == str(figure) == "kld_mean 0.01372 nats (0.0125 to 0.0151)"
    assert (figure.low, figure.high) == (0.0125, 0.0151)
    assert figure.about == (
        "canary/gguf-q4_k_m/ten, reference torch/fp32, anchor gguf/f16", "mean KL(reference || variant)", f"again: {AGAIN}",
    )  # fmt: skip
    assert repr(measured().weight_bytes) == "weight_bytes 3514368 bytes"
    assert measured().weight_bytes == 3_514_368
    assert repr(measured().decode_ratio) == "decode_ratio 1.33 (1.3 to 1.36)"


def test_an_answer_says_what_it_is_about() -> None:
    figure = measured().kld_mean
    assert repr(figure.surely_below(0.015)) == (
        "kld_mean 0.01372 nats (0.0125 to 0.0151) is not surely below 0.015 "
        "[canary/gguf-q4_k_m/ten, reference torch/fp32, anchor gguf/f16]"
    )
    assert " is surely above 0.01 [" in repr(figure.surely_above(0.01))


def test_a_figure_without_an_interval_is_not_sure_of_anything() -> None:
    with pytest.raises(QuantbenchError, match=r"^ttft_s has no interval \(this figure is stored without one\); compare it"):
        measured().ttft_s.surely_below(1)
    alone = measured({"kld_mean_low": "one prompt has no spread"}, kld_mean_low=None, kld_mean_high=None).kld_mean
    assert repr(alone) == "kld_mean 0.01372 nats"
    assert alone < 1
    with pytest.raises(QuantbenchError, match=r"\(one prompt has no spread\)"):
        alone.surely_below(1)


def test_figures_survive_copies() -> None:
    figure = measured().kld_mean
    for other in (copy.copy(figure), copy.deepcopy(figure), pickle.loads(pickle.dumps(figure))):  # noqa: S301 - our own bytes
        assert isinstance(other, MeasuredFigure)
        assert (other, repr(other), other.low) == (figure, repr(figure), figure.low)


def test_texts_and_truths_are_plain() -> None:
    found = measured()
    assert (found.kernel, found.status, found.disturbed, found.reason) == ("cpu", "ok", False, None)
    assert {"kld_mean", "weight_bytes", "kernel"} <= set(dir(found))
    assert repr(found) == "<measurement of canary/gguf-q4_k_m/ten>"
    lines = str(found).splitlines()
    assert lines[0] == "canary/gguf-q4_k_m/ten"
    assert "  kld_mean 0.01372 nats (0.0125 to 0.0151)" in lines
    assert lines[-1] == f"  again: {AGAIN}"


def test_a_name_that_is_no_column_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"^unknown column 'kld_men'; did you mean 'kld_mean"):
        _ = measured().kld_men
    assert not hasattr(measured(), "_nothing")
    assert copy.copy(measured()).kld_mean == VALUES["kld_mean"]


USES = {
    "below": lambda figure: figure < 1, "above": lambda figure: figure > 1, "equal": lambda figure: figure == 1,
    "unequal": lambda figure: figure != 1, "sure": lambda figure: figure.surely_below(1), "low": lambda figure: figure.low,
    "high": lambda figure: figure.high, "truth": bool, "number": float, "whole": int, "sum": lambda figure: figure + 1,
    "share": lambda figure: 1 / figure, "sign": lambda figure: -figure, "approx": lambda figure: figure == pytest.approx(1),
    "isclose": lambda figure: math.isclose(figure, 1), "max": lambda figure: max(figure, 1),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_what_was_not_measured_is_never_quietly_false(use: str) -> None:
    absent = measured({"kld_mean": "the reference does not fit"}, kld_mean=None).kld_mean
    with pytest.raises(QuantbenchError, match=r"^kld_mean: not measured: the reference does not fit \[canary/gguf-q4_k_m/ten"):
        USES[use](absent)
    assert repr(absent).startswith("kld_mean: not measured: ")


def test_a_truth_that_is_unknown_is_not_false() -> None:
    absent = measured({"finetunes": "not probed"}, finetunes=None).finetunes
    with pytest.raises(QuantbenchError, match="not probed"):
        assert absent


class TestDoubt:
    """A speed that cannot be judged here is neither passed nor failed."""

    @staticmethod
    def doubted(measurement: Measurement, name: str = "decode_ratio") -> str:
        with pytest.raises(UnsupportedError) as caught:
            _ = getattr(measurement, name) > 1
        return str(caught.value)

    def test_what_was_not_timed_on_purpose(self) -> None:
        reading = Reading(again=AGAIN, untimed=UNTIMED)
        found = measured({"decode_ratio": UNTIMED}, reading, decode_ratio=None)
        assert self.doubted(found).startswith(f"decode_ratio: not measured: {UNTIMED} [")

    def test_what_other_work_disturbed(self) -> None:
        found = measured(disturbed=True, disturbance="other processes took 40% of the CPU time")
        assert "not judged, as other work disturbed it: other processes took 40% of the CPU time [" in self.doubted(found)
        assert found.kld_mean < 1
        assert found.weight_bytes > 1

    @pytest.mark.parametrize("name", ["decode_ratio", "decode_ratio_low"])
    def test_a_ratio_to_a_model_that_stood_in(self, name: str) -> None:
        found = measured(anchor="canary gguf/f16", decode_tps=100.0)
        assert "canary gguf/f16 stood in" in self.doubted(found, name)
        assert found.decode_tps > 1

    def test_whoever_reads_it_says_what_happens(self) -> None:
        class SkippedError(Exception):
            pass

        def skip(sentence: str) -> NoReturn:
            raise SkippedError(sentence)

        found = measured(reading=Reading(again=AGAIN, doubt=skip), disturbed=True, disturbance="noise")
        with pytest.raises(SkippedError, match="noise"):
            _ = found.decode_ratio > 1

    def test_it_is_measured_again_once_and_only_for_a_time(self) -> None:
        attempts: list[int] = []

        def steady() -> Row:
            attempts.append(1)
            return Row({**VALUES, "null_reasons": "{}", "decode_ratio": 1.5})

        found = measured(reading=Reading(again=AGAIN, steady=steady), disturbed=True, disturbance="noise")
        assert found.kld_mean < 1
        assert attempts == []
        assert found.decode_ratio == 1.5
        assert found.ttft_s < 1
        assert attempts == [1]

    def test_a_machine_that_stays_busy_is_asked_once(self) -> None:
        attempts: list[int] = []

        def steady() -> Row:
            attempts.append(1)
            return Row({**VALUES, "null_reasons": "{}", "disturbed": True, "disturbance": "still noise"})

        found = measured(reading=Reading(again=AGAIN, steady=steady), disturbed=True, disturbance="noise")
        for _ in range(2):
            assert "still noise" in self.doubted(found)
        assert attempts == [1]


def test_whoever_wants_to_know_is_told_what_was_read() -> None:
    told: list[str] = []
    found = measured({"call_s": "no module"}, Reading(again=AGAIN, seen=lambda figure: told.append(figure.name)), call_s=None)
    _ = found.kld_mean, found.kernel, found.call_s
    assert told == ["kld_mean", "call_s"]
