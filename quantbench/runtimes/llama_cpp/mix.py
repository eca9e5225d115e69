"""What a GGUF file is made of: types by group of tensors, bits per weight, and whether that is what it is called."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantbench.core.errors import UnsupportedError
from quantbench.core.text import one_line
from quantbench.models.gguf import GgufHeader, GgufTensor, all_tensors, gguf_parts, tensor_bytes
from quantbench.runtimes.llama_cpp.plan import File, types_in

_GROUP = re.compile(r"(?:blk\.\d+\.)?(.+)\.weight")
_ALIAS = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
"""llama-quantize's short names, which are also used in names of files."""

_WORD = re.compile(r"(?<![a-z0-9])(?:i?[qt][0-9a-z_]+|bf16|f16|f32|mxfp4_moe|nvfp4)(?![0-9a-z_])")

_OWN_MIX = re.compile(r"(?<![a-z0-9])ud-", re.IGNORECASE)
"""How names of files say that their types were chosen tensor by tensor: Unsloth's dynamic quantizations."""

_FEWER = 0.85
"""A mix of one's own under the name of llama.cpp's has at least this share of its bits per weight.

Of llama.cpp's files of Llama-3.1-8B, q4_k_s has 0.95 of q4_k_m's bits and q3_k_m 0.93 of q3_k_l's, but q3_k_m has 0.82 of
q4_k_m's and q2_k 0.79 of q3_k_m's. A q4_k_m, with 0.86 of q5_k_m's, is found under that name only by its types. More bits than
promised are nobody's loss.
"""

_LONGEST = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What the types in a file are: ``llama.cpp's q4_k_m``, or ``a mix of its own: 5.1 bits a weight``."""

    about: str
    findings: tuple[str, ...]
    """Where its name or header promises other types: sentences of less than 80 characters."""


def types_by_group(tensors: Iterable[GgufTensor]) -> dict[str, str]:
    """The types of the matrices of each kind, such as ``attn_v``, with how many have it if there are several."""
    kinds: dict[str, Counter[str]] = {}
    for tensor in tensors:
        found = _GROUP.fullmatch(tensor.name)
        if found and len(tensor.shape) > 1:
            kinds.setdefault(one_line(found[1])[:_LONGEST], Counter())[tensor.kind.lower()] += 1
    return {group: _counted(counts) for group, counts in kinds.items()}


def bits_per_weight(tensors: Sequence[GgufTensor]) -> float:
    """Bits of all tensors over their values."""
    return 8 * sum(tensor.bytes for tensor in tensors) / max(1, sum(math.prod(tensor.shape) for tensor in tensors))


def mix_of(path: Path) -> Mix:
    """Hold a file's types to those that llama.cpp gives to files of the precision in its header and in its name.

    llama.cpp's choice comes from its own dry run on the file's tensors, with an importance matrix and without. Raises what
    ``gguf_parts`` and ``GgufHeader`` do.
    """
    tensors = all_tensors(path)
    kinds = {tensor.name: tensor.kind for tensor in tensors}
    own = Mix(about=f"a mix of its own: {bits_per_weight(tensors):.1f} bits a weight", findings=())
    claims = _claims(path.name, GgufHeader(gguf_parts(path)[0]))
    made = _made(path, [*claims])
    if claims and all(kinds in made.get(claim, ()) for claim in claims):
        return Mix(about=f"llama.cpp's {next(iter(claims))}", findings=())
    made |= _made(path, [precision for precision in _precisions() if precision not in made])
    same = next((precision for precision, mixes in made.items() if kinds in mixes), "")
    findings = []
    for precision, places in claims.items():
        called = f"called {precision} ({', '.join(places)})"
        if same and kinds not in made.get(precision, ()):
            findings.append(f"{called}, but its types are llama.cpp's {same}")
        elif not same and not _OWN_MIX.search(path.name) and (bits := _too_few(tensors, made.get(precision, ()))):
            findings.append(f"{called}: {bits_per_weight(tensors):.1f} bits a weight, and llama.cpp's has {bits:.1f}")
    return Mix(about=f"llama.cpp's {same}" if same else own.about, findings=tuple(findings))


def _claims(name: str, header: GgufHeader) -> dict[str, list[str]]:
    """The precisions that a file is called, and where: in its name, if that has just one, and in its header."""
    known = _precisions()
    words = (_ALIAS.get(word, word) for word in _WORD.findall(name.lower()))
    named = {word for word in words if word in known}
    claims: dict[str, list[str]] = {word: ["file name"] for word in named} if len(named) == 1 else {}
    if header.get("general.file_type") is not None and header.precision in known:
        claims.setdefault(header.precision, []).append("header")
    return claims


def _made(path: Path, precisions: Sequence[str]) -> dict[str, list[Mapping[str, str]]]:
    """The types by tensor in llama.cpp's files of each precision, made without an importance matrix and with one."""
    files: list[File] = [(f"{name}{suffix}", name, bool(suffix)) for name in precisions for suffix in ("", "-imat")]
    try:
        types = types_in(path, files) if files else {}
    except UnsupportedError:  # such as an architecture that llama.cpp does not know: then its choice is not known either
        types = {}
    return {name: [types[key] for key in (name, f"{name}-imat") if key in types] for name in precisions}


def _too_few(tensors: Sequence[GgufTensor], mixes: Iterable[Mapping[str, str]]) -> float:
    """llama.cpp's bits per weight, if the tensors have so many fewer that no mix of one's own explains it; else 0."""
    count = max(1, sum(math.prod(tensor.shape) for tensor in tensors))
    least = min((8 * sum(tensor_bytes(each.shape, mix[each.name]) for each in tensors) / count for mix in mixes), default=0.0)
    return least if bits_per_weight(tensors) < _FEWER * least else 0.0


def _precisions() -> dict[str, str]:
    """llama.cpp's precisions with their names in its enumeration."""
    from gguf import LlamaFileType

    names = [each.name for each in LlamaFileType if each.name != "GUESSED"]
    return {name.removeprefix("MOSTLY_").removeprefix("ALL_").lower(): name for name in names}


def _counted(counts: Counter[str]) -> str:
    """One type, or several with how many have it, the most frequent first."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
