"""The clocks of the GPU: what is made of the looks after each round, and the reasons where there is no figure."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from quantbench.core.record import Missing
from quantbench.metrics.clocks import Clocks, clocks

if TYPE_CHECKING:
    from quantbench.core.trace import Trace

SEEN = Clocks(
    sm_mhz=(1980, 1500, 1755, 1965), memory_mhz=(2619, 2619, 1593), temperature_c=(40, 71, 70),
    throttling=("sw_power_cap", "hw_thermal"), max_sm_mhz=1980, power_limit_w=700.0, power_capped_s=0.25, thermal_capped_s=0.0,
)  # fmt: skip


def test_rounds_become_a_median_and_the_extremes(trace: Trace) -> None:
    assert clocks.compute(replace(trace, signals={"clocks": asdict(SEEN)}), None) == {
        "gpu_sm_clock_mhz": 1860, "gpu_sm_clock_min_mhz": 1500, "gpu_sm_clock_max_mhz": 1980, "gpu_memory_clock_mhz": 2619,
        "gpu_temperature_c": 71, "gpu_throttle_reasons": "sw_power_cap,hw_thermal", "gpu_power_capped_s": 0.25,
        "gpu_thermal_capped_s": 0.0, "gpu_power_limit_w": 700.0,
    }  # fmt: skip


def test_clocks_that_nothing_held_back_have_no_reason_and_no_null(trace: Trace) -> None:
    values = clocks.compute(replace(trace, signals={"clocks": asdict(replace(SEEN, throttling=()))}), None)
    assert values["gpu_throttle_reasons"] == ""


@pytest.mark.parametrize("told", [{}, {"clocks": "the model ran on the CPU"}])
def test_without_a_look_every_figure_has_the_reason(told: dict[str, str], trace: Trace) -> None:
    values = clocks.compute(replace(trace, signals=told), None)
    assert set(values) == {column.name for column in clocks.columns}
    for found in values.values():
        assert isinstance(found, Missing)
        assert found.reason == told.get("clocks", found.reason)
        assert found.reason


def test_what_the_board_does_not_tell_has_its_own_reason(trace: Trace) -> None:
    part = replace(SEEN, temperature_c=(), throttling=None, power_limit_w=None, absent={
        "temperature_c": "no sensor", "throttling": "not told", "power_limit_w": "no limit",
    })  # fmt: skip
    values = clocks.compute(replace(trace, signals={"clocks": asdict(part)}), None)
    assert values["gpu_temperature_c"] == Missing("no sensor")
    assert values["gpu_throttle_reasons"] == Missing("not told")
    assert values["gpu_power_limit_w"] == Missing("no limit")
    assert values["gpu_sm_clock_mhz"] == 1860
