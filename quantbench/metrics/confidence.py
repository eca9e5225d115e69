"""KL divergence by the reference's confidence: where it is sure of the next token, and where it is not.

A mean hides where it comes from: positions where several tokens are about as likely, which any disturbance reorders, or those
where one is certain, at which damage changes answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from quantbench.core.record import Column, Missing, Value
from quantbench.core.statistics import mean_by_cluster
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric
from quantbench.metrics._columns import CLUSTERED, clustered, lacking, read_columns, standard_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECILES = 10
LEAST_POSITIONS = 100
"""Ten in each decile."""

_SORTED = "of positions by c_t = max_i p_t(i), p of the reference, equal ones in the order of the text"
_SOURCE = "quantbench; exllamav3 eval/qbench.py has buckets with fixed edges"


def _deciles() -> Iterator[Column]:
    for number in range(1, DECILES + 1):
        where = {1: ", the least sure", DECILES: ", the surest"}.get(number, "")
        yield Column(
            f"kld_confidence_d{number}", "nats", "lower", title=f"Decile {number}", show="short",
            doc=f"mean KL divergence in decile {number} of the reference's confidence{where}",
            formula=f"mean(kld) in part {number} of {DECILES} nearly equal parts {_SORTED}", source=_SOURCE,
        )  # fmt: skip


_COLUMNS = (
    Column(
        "confidence_median", "ratio", doc="median of the reference's confidence, its largest probability at a position",
        formula="median(c), c_t = max_i p_t(i), p of the reference", source="quantbench",
    ),
    Column(
        "kld_confident", "nats", "lower", title="KLD where sure", show="short",
        doc="mean KL divergence in the half of the positions where the reference is surest",
        formula=f"mean(kld) in the later half {_SORTED}", source=_SOURCE,
    ),
    Column("kld_confident_se", "nats", doc="standard error of kld_confident", formula=clustered("kld_t"), source=CLUSTERED),
    *_deciles(),
)  # fmt: skip


@metric(*_COLUMNS)
def confidence(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """KL divergence by deciles of the reference's confidence"""
    columns = read_columns(trace)
    if not isinstance(columns, Missing) and "confidence" not in columns:
        columns = Missing(lacking(columns))
    if isinstance(columns, Missing):
        return {column.name: columns for column in _COLUMNS}
    import numpy as np

    values: dict[str, Value] = {"confidence_median": float(np.median(columns["confidence"]))}
    if len(columns["confidence"]) < LEAST_POSITIONS:
        few = Missing(f"deciles of the reference's confidence need {LEAST_POSITIONS} scored tokens")
        return {column.name: few for column in _COLUMNS} | values
    return values | _by_confidence(columns)


def _by_confidence(columns: Mapping[str, NDArray[Any]]) -> dict[str, Value]:
    import numpy as np

    order = np.argsort(columns["confidence"], kind="stable")
    kld = columns["kld"][order]
    half = len(order) // 2
    mean, error = mean_by_cluster(kld[half:].tolist(), columns["prompt"][order][half:].tolist())
    deciles = enumerate(np.array_split(kld, DECILES), start=1)
    return {
        "kld_confident": mean,
        "kld_confident_se": standard_error(error),
        **{f"kld_confidence_d{number}": float(part.mean()) for number, part in deciles},
    }
