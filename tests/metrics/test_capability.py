"""Capabilities are what the probes found; what was not tried is null with the probe's own reason."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from quantbench.core.record import Missing
from quantbench.core.trace import Probe
from quantbench.metrics.capability import capability

if TYPE_CHECKING:
    from quantbench.core.trace import Trace

FLAGS = {"runs_on_cpu": "cpu", "runs_on_cuda": "cuda", "finetunes": "finetune", "saves_and_reloads": "save_reload"}
FOUND = {
    "cpu": Probe(found=True),
    "cuda": Probe(found=None, note="no CUDA device here"),
    "finetune": Probe(found=True, figures={"loss_first": 2.5, "loss_last": 1.25, "gradient_norm": 1.0}),
    "save_reload": Probe(found=False, note="the library refuses"),
}


def test_findings_become_columns(trace: Trace) -> None:
    values = capability.compute(replace(trace, probes=FOUND), None)

    assert set(values) == {column.name for column in capability.columns}
    assert (values["runs_on_cpu"], values["finetunes"], values["saves_and_reloads"]) == (True, True, False)
    assert values["runs_on_cuda"] == Missing("no CUDA device here")
    assert (values["finetune_loss_first"], values["finetune_loss_last"]) == (2.5, 1.25)
    assert json.loads(str(values["capability_notes"])) == {"cuda": "no CUDA device here", "save_reload": "the library refuses"}


@pytest.mark.parametrize("found", [False, None])
def test_without_training_the_losses_are_null_with_its_reason(trace: Trace, found: bool | None) -> None:
    probes = {**FOUND, "finetune": Probe(found=found, note="no gradient")}
    values = capability.compute(replace(trace, probes=probes), None)

    assert values["finetunes"] == (Missing("no gradient") if found is None else False)
    assert values["finetune_loss_first"] == values["finetune_loss_last"] == Missing("no gradient")


def test_a_subject_that_is_not_probed_says_so(trace: Trace) -> None:
    values = capability.compute(trace, None)
    elsewhere = capability.compute(replace(trace, absent={"probes": "a server is probed by nobody"}), None)

    nulls = {*FLAGS, "finetune_loss_first", "finetune_loss_last", "capability_notes"}
    assert {name for name, value in values.items() if isinstance(value, Missing)} == nulls
    assert elsewhere["finetunes"] == Missing("a server is probed by nobody")


def test_probes_of_an_older_format_leave_nulls_for_what_they_lack(trace: Trace) -> None:
    values = capability.compute(replace(trace, probes={"cpu": Probe(found=True)}), None)

    assert values["runs_on_cpu"] is True
    assert all(isinstance(values[name], Missing) for name in FLAGS if name != "runs_on_cpu")


def test_conversion_follows_from_where_the_weights_came_from(trace: Trace) -> None:
    """A file that was quantized elsewhere has no quantize_s and is pre-quantized all the same."""
    elsewhere = replace(trace, prequantized=True, quantize_s=None)

    assert capability.compute(elsewhere, None)["conversion"] == "pre-quantized"
    assert capability.compute(replace(trace, prequantized=False), None)["conversion"] == "on load"
    assert isinstance(capability.compute(replace(trace, load_s=None, weights=None), None)["conversion"], Missing)


def test_a_load_that_says_nothing_is_a_conversion_all_the_same(trace: Trace) -> None:
    """A dummy's weights are made while it is loaded: it has weights and no time of loading."""
    assert trace.weights is not None
    assert capability.compute(replace(trace, prequantized=False, load_s=None), None)["conversion"] == "on load"
