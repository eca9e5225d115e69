"""What the variant can do besides answering, as tried by the probes."""

from __future__ import annotations

import json
from collections.abc import Mapping

from quantbench.core.record import Column, Missing, Value
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric

ON_LOAD = "on load"
PREQUANTIZED = "pre-quantized"

_BY_PROBE = {"runs_on_cpu": "cpu", "runs_on_cuda": "cuda", "finetunes": "finetune", "saves_and_reloads": "save_reload"}
_LOSSES = {"finetune_loss_first": "loss_first", "finetune_loss_last": "loss_last"}
_TRIED = "quantbench: tried in a separate process"
_LOSS = "transformers causal LM loss"
_NOT_PROBED = "not probed: it is no language model opened from files, the matrix names other variants, or --no-probes was given"


@metric(
    Column(
        "runs_on_cpu", "", kind="bool", doc="it opened and generated on this machine's CPU",
        formula="opening and generating there raised nothing", source=_TRIED,
    ),
    Column(
        "runs_on_cuda", "", kind="bool", doc="it opened and generated on a CUDA device of this machine",
        formula="opening and generating there raised nothing", source=_TRIED,
    ),
    Column(
        "conversion", "", kind="string", doc=f"{ON_LOAD}, or {PREQUANTIZED}: loaded from files made beforehand",
        formula=f"{PREQUANTIZED} if the files that were loaded were already quantized", source="quantbench",
    ),
    Column(
        "finetunes", "", kind="bool", doc="five LoRA steps lower the loss, gradients are alive, the adapter reloads",
        formula="loss_last < loss_first, 0 < gradient norm of the first layer < inf, and rms(logits reloaded - logits trained) "
        "<= 0.05 rms(logits trained - logits before)",
        source="peft LoRA, r = 8",
    ),
    Column(
        "finetune_loss_first", "nats", doc="loss before the first LoRA step, on text sampled from the variant",
        formula="mean(-ln q(t)) of the next token", source=_LOSS,
    ),
    Column(
        "finetune_loss_last", "nats", doc="loss on the same text after the last step",
        formula="mean(-ln q(t)) of the next token", source=_LOSS,
    ),
    Column(
        "saves_and_reloads", "", kind="bool", doc="saved, opened again, and its logits are the same",
        formula="rms(logits reloaded - logits) <= 0.0001 rms(logits - mean over the vocabulary)", source=_TRIED,
    ),
    Column(
        "capability_notes", "", kind="string", doc="JSON: why or how, by probe", formula="{probe: sentence}", source=_TRIED,
    ),
)  # fmt: skip
def capability(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Devices it runs on, conversion, fine-tuning, saving and reloading"""
    probes = trace.probes
    none = Missing(trace.absent.get("probes", _NOT_PROBED))
    loaded = trace.load_s is not None or trace.weights is not None  # a dummy made while loading has no load_s
    unloaded = Missing(trace.absent.get("load_s", "nothing is loaded here"))
    values: dict[str, Value] = {
        "conversion": unloaded if not loaded else PREQUANTIZED if trace.prequantized else ON_LOAD,
        "capability_notes": json.dumps({name: each.note for name, each in probes.items() if each.note}) if probes else none,
    }
    for column, name in _BY_PROBE.items():
        found = probes[name].found if name in probes else None
        values[column] = (Missing(probes[name].note) if name in probes else none) if found is None else found
    for column, name in _LOSSES.items():
        trained = probes.get("finetune")
        if trained is None:
            values[column] = none
        else:
            values[column] = trained.figures.get(name, Missing(trained.note))
    return values
