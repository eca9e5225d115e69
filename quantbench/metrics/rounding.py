"""The rounding floor: how far the reference is from itself where each layer rounds once more. Only the control row has it."""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.record import Column, Missing, Value
from quantbench.core.statistics import mean_by_cluster
from quantbench.core.trace import NO_REFERENCE, Reference, Trace
from quantbench.metrics import metric
from quantbench.metrics._columns import CLUSTERED, clustered, load_columns, standard_error

_OF_CONTROL = "the rounding floor is measured with the reference's control only: see its row"
_HOW = "of the reference scored with every layer's output times 1 + s * N(0, 1), s a quarter of the checkpoint dtype's epsilon"
_SOURCE = "exllamav3 eval/qbench.py: self-noise floor (2^-9 for bf16)"

_COLUMNS = (
    Column(
        "kld_floor", "nats", "lower", doc="kld_mean from rounding alone, in the checkpoint's dtype after every layer",
        formula=f"kld_mean {_HOW}", source=_SOURCE,
    ),
    Column("kld_floor_se", "nats", doc="standard error of kld_floor", formula=clustered("kld_t"), source=CLUSTERED),
    Column(
        "top1_floor", "ratio", "higher", doc="top1_agreement from rounding alone, as for kld_floor",
        formula=f"top1_agreement {_HOW}", source=_SOURCE,
    ),
    Column(
        "ear_floor", "ratio", "higher", doc="ear from rounding alone, as for kld_floor", formula=f"ear {_HOW}", source=_SOURCE,
    ),
)  # fmt: skip


@metric(*_COLUMNS)
def rounding(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """How far rounding alone takes the reference from itself"""
    if trace.columns is None or trace.rounded is None:
        absent = ("columns", NO_REFERENCE) if trace.columns is None else ("rounded", _OF_CONTROL)
        return {column.name: Missing(trace.absent.get(*absent)) for column in _COLUMNS}
    columns = load_columns(trace.rounded)
    kld, error = mean_by_cluster(columns["kld"].tolist(), columns["prompt"].tolist())
    return {
        "kld_floor": kld,
        "kld_floor_se": standard_error(error),
        "top1_floor": float(columns["top1"].mean()),
        "ear_floor": float(columns["ear"].mean()),
    }
