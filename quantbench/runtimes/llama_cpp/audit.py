"""A published GGUF file beside its original, tensor by tensor: whose weights these are, and how often they were quantized."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantbench.core.cache import artifact, made_by
from quantbench.core.job import Checkpoint
from quantbench.core.text import one_line
from quantbench.core.units import format_bytes
from quantbench.models.checkpoint import watched
from quantbench.models.gguf import GgufHeader, block_of, gguf_parts
from quantbench.runtimes.llama_cpp.blocks import Rows, packed, unpacked
from quantbench.runtimes.llama_cpp.conversion import conversion_mistakes
from quantbench.runtimes.llama_cpp.files import UNQUANTIZED, f16_file, gguf_maker, notes_matrix
from quantbench.runtimes.llama_cpp.mix import bits_per_weight, mix_of, types_by_group

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FACTS = "audit.json"
_MAKERS = tuple(f"quantbench.runtimes.llama_cpp.{name}" for name in ("blocks", "conversion", "mix", "plan"))
"""The modules that an audit rests on, besides this one."""

SAMPLE = 2**16
"""Values of a tensor that are compared, in evenly spread rows; of a smaller tensor all."""

_SLOW = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}
_SLOW_SAMPLE = 2**12
"""The same for types that ggml searches long for."""

_PLAIN = frozenset((*(each.upper() for each in UNQUANTIZED), "F64"))
_ROUNDING, _Q8_ROUNDING = 0.01, 0.05
"""Relative errors of unquantized tensors that rounding explains (BF16 has 0.002), and of those whose original is quantized."""

_EARLIER = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K", "Q2_K")
"""Types that a tensor may have had before, the finest first. ggml is too slow at others to try them on every tensor."""

_ALIKE = ({"Q4_1", "Q4_K"}, {"Q5_1", "Q5_K"})
"""Types of one grid, a scale and a least value: with an importance matrix one makes the other's errors (a score of 0.63)."""

_SUSPECT, _SPAN, _SURE, _SIGMAS = 0.25, 0.3, 0.5, 5.0
_SHARE = 0.05
_SHOWN = 6
_LONGEST = 40
_HEADER_ONLY = {"output.weight", "rope_freqs.weight"}
"""Tensors whose absence is a mistake of the conversion, found in the headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsAudit:
    """What a file is, and what is wrong with it. Texts are fit to be shown; findings and notes are short sentences."""

    matrix: bool
    """Whether its header says that it was made with an importance matrix."""
    bits_per_weight: float
    types: Mapping[str, str]
    """Types of the matrices by group: ``attn_v`` to ``q6_k 3, q4_k 3``."""
    mix: str
    """``llama.cpp's q4_k_m``, or ``a mix of its own: 5.1 bits a weight``."""
    error: float | None
    """Median over quantized matrices of the relative RMS error against the original; None if none could be compared."""
    error_ratio: float | None
    """Median of that error over that of llama.cpp's quantizer, to the same type, once and without an importance matrix."""
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    """What is no mistake: how much was compared, what could not be, what takes more room than it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """A tensor beside the original's: relative RMS errors of the file and of quantizing once (0 if it is not quantized)."""

    name: str
    error: float
    once: float
    foreign: bool
    before: str | None = None
    """The type that it had before; empty if none is found, None if none could be."""


def audited(checkpoint: Checkpoint, original: Checkpoint) -> dict[str, str]:
    """What headers and weights of a file say, as facts of a row; kept in the cache, as none of it changes.

    The original is converted to an F16 file, once, unless it is one. Raises ModelError if it cannot be, or a file not be read.
    """
    asked = {
        "file": checkpoint.path.name, "content": checkpoint.content_hash, "original": original.content_hash,
        "audited_by": made_by(__name__, *_MAKERS), **gguf_maker(),
    }  # fmt: skip

    def make(folder: Path) -> None:
        source = f16_file(original)
        audit = audit_weights(checkpoint.path, source)
        mistakes = conversion_mistakes(checkpoint.path, source)
        facts = {
            "artifact_audit": "; ".join([*mistakes, *audit.findings]), "tensor_mix": audit.mix,
            "tensor_types": "; ".join(f"{group}: {kinds}" for group, kinds in audit.types.items()),
            "importance_matrix": "yes" if audit.matrix else "no", "audit": "; ".join(audit.notes),
        }  # fmt: skip
        (folder / _FACTS).write_text(json.dumps({name: text for name, text in facts.items() if text}))

    found: dict[str, str] = json.loads((artifact("audit", asked, watched(checkpoint, make)) / _FACTS).read_text())
    return found


def audit_weights(path: Path, original: Path, *, most: int = SAMPLE) -> WeightsAudit:
    """Compare a GGUF file with the F16, BF16, F32 or Q8_0 file of its original.

    Of each tensor up to ``most`` values are read (4096 of types that ggml is slow at), so a fault in a few rows may be missed.
    Three things are looked for.

    *Foreign tensors*: a matrix that resembles the original's less than half as much (cosine) as ggml's own quantization of that
    does. The original's tensors of the same shape are then tried; unquantized tensors must be the same but for rounding.

    *Quantized twice*: for every type that a tensor may have had before, whether the file's errors contain the errors that this
    type makes, by the regression of the one on the other. It is 0 for a tensor quantized once and 1 for one quantized from that
    type, both scaled by what ggml makes of the original's rows here; 0.5 and five standard errors are needed. An importance
    matrix changes a tensor's own errors and not what they contain, so it is not mistaken for it: on the canary no file of
    sixteen types made with one scores above 0.33, and those quantized twice score 1. Errors alone would not tell: those of a
    q4_k_m with a matrix are 0.99 times those without (q4_1 0.90, q2_k 0.91, iq3_m 0.84), and made from q8_0 1.00 times those of
    one quantization, from q6_k 1.03, q5_k_m 1.08, q5_0 1.15, q4_0 1.32. Not found: a type that the tensor kept, and
    one whose errors are too small beside the tensor's own to do harm (q8_0 before q2_k).

    *Other types than its name says*: see ``mix_of``.

    Raises ModelError if one of the files cannot be read.
    """
    theirs, ours = Rows(original), Rows(path)
    header = GgufHeader(gguf_parts(path)[0])
    tensors = list(ours.tensors.values())
    compared = list(_compare_all(ours, theirs, most))
    quantized = [each for each in compared if each.once and not each.foreign]
    mix = mix_of(path)
    return WeightsAudit(
        matrix=notes_matrix(header), bits_per_weight=bits_per_weight(tensors),
        types=types_by_group(tensors), mix=mix.about,
        error=statistics.median(each.error for each in quantized) if quantized else None,
        error_ratio=statistics.median(each.error / each.once for each in quantized) if quantized else None,
        findings=(*mix.findings, *_other_tensors(ours, theirs), *_foreign(compared, ours, theirs), *_twice(compared)),
        notes=tuple(_notes(compared, ours, theirs, most)),
    )  # fmt: skip


def _compare_all(ours: Rows, theirs: Rows, most: int) -> Iterator[_Compared]:
    import numpy as np

    for name, tensor in ours.tensors.items():
        counterpart = _counterpart(name, theirs)
        if counterpart and theirs.tensors[counterpart].shape == tensor.shape:
            count = min(most, _SLOW_SAMPLE) if tensor.kind in _SLOW else most
            values, wanted = ours.sample(name, count), theirs.sample(counterpart, count)
            if values is not None and wanted is not None and np.isfinite(wanted).all():
                exact = theirs.tensors[counterpart].kind in _PLAIN
                with np.errstate(all="ignore"):  # a damaged file's values may be anything
                    yield _compared(name, values, wanted, tensor.kind, _ROUNDING if exact else _Q8_ROUNDING)


def _counterpart(name: str, theirs: Rows) -> str:
    """The original's tensor of a name; an output layer of one's own may be the original's embedding."""
    if name not in theirs.tensors and name == "output.weight":
        name = "token_embd.weight"
    return name if name in theirs.tensors else ""


def _compared(
    name: str, values: NDArray[np.float32], wanted: NDArray[np.float32], kind: str, rounding: float
) -> _Compared:  # fmt: skip
    error = _error(values, wanted)
    if kind in _PLAIN:
        return _Compared(name=name, error=error, once=0.0, foreign=not error <= rounding)
    once = _again(wanted, kind)
    expected = _error(once, wanted)
    if not _cosine(values, wanted) >= _cosine(once, wanted) / 2:
        return _Compared(name=name, error=error, once=expected, foreign=True)
    before = _before(values, wanted, once, kind)
    return _Compared(name=name, error=error, once=expected, foreign=False, before=before)


def _before(
    values: NDArray[np.float32], wanted: NDArray[np.float32], once: NDArray[np.float32], kind: str
) -> str | None:  # fmt: skip
    """The type that a tensor had before it got its own; empty if it is found to have had none, None if that cannot be told."""
    residual, usual = values - wanted, once - wanted
    best, tested = (_SURE, ""), False
    for earlier in _EARLIER:
        if earlier == kind or {earlier, kind} in _ALIKE or wanted.shape[-1] % block_of(earlier)[0]:
            continue
        first = _again(wanted, earlier)
        made = first - wanted
        power = _dot(made, made)
        noise = (_dot(residual, residual) / (power * made.size)) ** 0.5 if power else float("inf")
        if noise > _SURE / _SIGMAS:  # errors so small beside the tensor's own show nowhere, and do no harm
            continue
        tested = True
        share, clean = _dot(residual, made) / power, _dot(usual, made) / power
        if share - clean < _SUSPECT:
            continue
        twice = _dot(_again(first, kind) - wanted, made) / power
        score = (share - clean) / (twice - clean) if twice - clean > _SPAN else 0.0
        if score > max(best[0], _SIGMAS * noise / max(twice - clean, _SPAN)):
            best = (score, earlier)
    return best[1] if tested else None


def _other_tensors(ours: Rows, theirs: Rows) -> Iterator[str]:
    """Tensors that one of the files lacks, or that have another shape."""
    for what, mine, others in (("lacks", theirs, ours), ("has what the original has not:", ours, theirs)):
        names = [name for name in mine.tensors if name not in others.tensors and name not in _HEADER_ONLY]
        if names:
            yield f"{what} {_short(names[0])}{_and_more(len(names) - 1)}"
    shapes = [
        name for name, each in ours.tensors.items() if name in theirs.tensors and each.shape != theirs.tensors[name].shape
    ]
    if shapes:
        yield f"{_short(shapes[0])} has another shape than the original's{_and_more(len(shapes) - 1)}"


def _foreign(compared: Sequence[_Compared], ours: Rows, theirs: Rows) -> Iterator[str]:
    """Which tensors are not the original's of that name, and whose they are."""
    foreign = [each for each in compared if each.foreign]
    if len(foreign) > max(_SHOWN, len(compared) // 2):
        yield f"{len(foreign)} of {len(compared)} tensors are not the original's: another model, or other rows"
        return
    for each in foreign[:_SHOWN]:
        name = _short(each.name)
        if really := _really(each, ours, theirs):
            yield f"{name} is the original's {_short(really)}"
        elif each.error == each.error and each.error < float("inf"):
            yield f"{name} is not the original's: {100 * each.error:.0f} % off"
        else:
            yield f"{name} holds values that are not numbers"
    if len(foreign) > _SHOWN:
        yield f"{len(foreign) - _SHOWN} more tensors are not the original's"


def _really(each: _Compared, ours: Rows, theirs: Rows) -> str:
    """The original's tensor that a foreign one is: the nearest of its shape, if quantizing explains the rest; or empty."""
    tensor = ours.tensors[each.name]
    values = ours.sample(each.name, _SLOW_SAMPLE)
    nearest = (each.error + each.once) / 2, ""
    for name, other in theirs.tensors.items():
        if other.shape == tensor.shape and name != each.name:
            wanted = theirs.sample(name, _SLOW_SAMPLE)
            if values is not None and wanted is not None:
                nearest = min(nearest, (_error(values, wanted), name))
    return nearest[1]


def _twice(compared: Sequence[_Compared]) -> Iterator[str]:
    """Whether tensors had another type before: of some, as those that kept their type say nothing."""
    told = [each for each in compared if each.before is not None]
    again = [each for each in told if each.before]
    if len(again) < max(2, _SHARE * len(told)):
        return
    types = Counter(str(each.before).lower() for each in again).most_common()
    mostly = "mostly " if len(types) > 1 else ""
    ratio = statistics.median(each.error / each.once for each in again)
    yield f"quantized twice: {len(again)} of {len(told)} matrices were {mostly}{types[0][0]}; {ratio:.2f} times the error"


def _notes(compared: Sequence[_Compared], ours: Rows, theirs: Rows, most: int) -> Iterator[str]:
    yield f"{len(compared)} of {len(ours.tensors)} tensors compared, up to {most:,} values each"
    if "output.weight" in ours.tensors and "output.weight" not in theirs.tensors:
        size = format_bytes(ours.tensors["output.weight"].bytes)
        yield f"holds an output.weight of {size}, where the original's output is its embedding"


def _again(weights: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """The values that ggml makes of rows in a type, without an importance matrix."""
    values = unpacked(packed(weights, kind), kind)
    assert values is not None, kind
    return values


def _error(values: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Relative RMS error; infinite where only zeros are wanted and others are there."""
    power, squares = _dot(wanted, wanted), _dot(values - wanted, values - wanted)
    return (squares / power) ** 0.5 if power else float("inf") if squares else 0.0


def _cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    lengths = (_dot(first, first) * _dot(second, second)) ** 0.5
    return _dot(first, second) / lengths if lengths else 0.0


def _dot(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    import numpy as np

    return float(np.vdot(first, second))


def _short(name: str) -> str:
    return one_line(name)[:_LONGEST]


def _and_more(count: int) -> str:
    return f" and {count} more" if count else ""
