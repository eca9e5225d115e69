"""Expected acceptance rate: the share of tokens drafted by the variant that speculative decoding would accept.

It is a measure of distance as well: what it lacks to 1 is the total variation, at most sqrt(KLD / 2) (Pinsker's inequality).
"""

from __future__ import annotations

from collections.abc import Mapping

from quantbench.core.record import Column, Missing, Value
from quantbench.core.statistics import mean_by_cluster
from quantbench.core.trace import Reference, Trace
from quantbench.metrics import metric
from quantbench.metrics._columns import CLUSTERED, clustered, lacking, read_columns, standard_error

_COLUMNS = (
    Column(
        "ear", "ratio", "higher", title="EAR", show=".2%", shown="report", place=32,
        doc="expected acceptance rate: mean probability that the variant and the reference give to the same tokens",
        formula="mean(ear), ear_t = sum_i min(p_t(i), q_t(i)), p of the reference, over the whole vocabulary; at most 1",
        source="Leviathan 2023, arXiv:2211.17192, corollary 3.6: acceptance rate of speculative sampling, the variant drafting",
    ),
    Column("ear_se", "ratio", doc="standard error of ear", formula=clustered("ear_t"), source=CLUSTERED),
)  # fmt: skip


@metric(*_COLUMNS)
def acceptance(trace: Trace, reference: Reference | None) -> Mapping[str, Value]:
    """Expected acceptance rate of the variant's tokens by the reference"""
    columns = read_columns(trace)
    if not isinstance(columns, Missing) and "ear" not in columns:
        columns = Missing(lacking(columns))
    if isinstance(columns, Missing):
        return {column.name: columns for column in _COLUMNS}
    mean, error = mean_by_cluster(columns["ear"].tolist(), columns["prompt"].tolist())
    return {"ear": mean, "ear_se": standard_error(error)}
