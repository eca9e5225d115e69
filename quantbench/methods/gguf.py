"""GGUF files of llama.cpp: converted, quantized and run by llama.cpp itself through llama-cpp-python."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from quantbench.core.errors import QuantbenchError, UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.protocols import N_GPU_LAYERS
from quantbench.core.scenario import AUTO, Precision, Spec
from quantbench.methods import Artifact, LoadedModel, Settings, method
from quantbench.models import is_dummy
from quantbench.models.architecture import Architecture
from quantbench.models.footprint import Weights
from quantbench.models.gguf import gguf_parts
from quantbench.runtimes.llama_cpp.facts import REQUIRES
from quantbench.runtimes.transformers.calibration import calibration_identity

TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0",
    "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4_MOE",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS",
    "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "IQ1_M", "IQ1_S", "TQ1_0", "Q1_0",
)  # fmt: skip
"""llama.cpp's file types, as it writes them."""

NEED_MATRIX = frozenset(
    ("iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"),
)
"""Types that llama.cpp refuses to make without an importance matrix; for them one is always computed."""

MAY_USE_MATRIX = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "IQ3_M", "Q2_K")
"""Types that are also offered with a matrix: ``q4_k_m-imat`` beside ``q4_k_m``."""

IMATRIX = "-imat"


_FIRST = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")
_USUAL = ("F16", *_FIRST, "Q2_K")


def _precision(title: str) -> Precision:
    found = re.search(r"\d+", title)
    return Precision(
        name=title.lower(), bits=int(found[0]) if found else 0, title=title, usual=title in _USUAL, first=title in _FIRST
    )


def _with_matrix(title: str) -> Precision:
    plain = _precision(title)
    return Precision(name=plain.name + IMATRIX, bits=plain.bits, title=f"{title} (imatrix)", usual=False)


def uses_matrix(precision: str) -> bool:
    """Whether files of this precision are made with an importance matrix."""
    return precision in NEED_MATRIX or precision.endswith(IMATRIX)


@method(
    "gguf",
    precisions=[*map(_precision, TYPES), *map(_with_matrix, MAY_USE_MATRIX)],
    requires=REQUIRES,
    runtime="llama.cpp",
    package="llama-cpp-python",
    anchor="gguf/f16",
    kinds=("hf", "gguf"),
)
@contextmanager
def open_gguf(spec: Spec, settings: Settings) -> Iterator[LoadedModel]:
    """Quantized beforehand to a GGUF file, run by llama.cpp"""
    from quantbench.runtimes.llama_cpp.model import open_gguf_file
    from quantbench.runtimes.llama_cpp.offload import gpu_layers
    from quantbench.runtimes.llama_cpp.probe import extra_buffers_work

    path = prepare_gguf(spec, settings).path
    with open_gguf_file(
        path,
        threads=settings.threads,
        context=settings.context,
        batch=settings.batch,
        device=spec.conditions.device,
        extra_buffers=extra_buffers_work(),
        gpu_layers=gpu_layers(path, spec.conditions, context=settings.context, batch=settings.batch),
    ) as model:
        yield model


_FILES = tuple((each.name, each.name.removesuffix(IMATRIX), uses_matrix(each.name)) for each in open_gguf.precisions)
"""Each precision with llama.cpp's file type, and whether it is made with an importance matrix."""


@open_gguf.asks
def gguf_recipe(spec: Spec) -> Mapping[str, str]:
    """How many layers go to a GPU, if it was asked, and the calibration of an importance matrix; a dummy never has one."""
    layers = {N_GPU_LAYERS: spec.conditions.n_gpu_layers} if spec.conditions.n_gpu_layers else {}
    if not uses_matrix(spec.variant.precision) or is_dummy(spec.model):
        return layers
    return {**layers, "calibration": calibration_identity(spec.conditions)}


@open_gguf.prepares
@cache  # so that a ready file's header is not read again while loading is timed
def prepare_gguf(spec: Spec, settings: Settings) -> Artifact:
    """The spec's GGUF file; a ready ``.gguf`` model is used as it is if it already has the requested precision.

    A dummy's file is written without converting or quantizing anything.
    """
    from quantbench.runtimes.llama_cpp.model import require_offload
    from quantbench.runtimes.llama_cpp.plan import header
    from quantbench.runtimes.llama_cpp.probe import extra_buffers_work

    require_offload(spec.conditions.device)  # first, so as not to make a file that could not be run
    extra_buffers_work()
    artifact = _file(spec, settings)
    if spec.conditions.n_gpu_layers == AUTO:
        header(artifact.path)  # how many fit follows from it, while loading is timed: a file's first reading is a process
    return artifact


def _file(spec: Spec, settings: Settings) -> Artifact:
    from quantbench.runtimes.llama_cpp import files
    from quantbench.runtimes.llama_cpp.dummy import dummy_file
    from quantbench.runtimes.llama_cpp.imatrix import importance_matrix

    precision = spec.variant.precision
    if settings.checkpoint.random_weights:
        return dummy_file(settings.checkpoint, precision, _FILES)
    if settings.checkpoint.kind == "gguf" and (ready := _ready(settings.checkpoint.path, precision)):
        return ready
    matrix = importance_matrix(spec, settings) if uses_matrix(precision) else None
    return files.quantized_file(settings.checkpoint, precision.removesuffix(IMATRIX), matrix)


def _ready(path: Path, precision: str) -> Artifact | None:
    """The ready file if it already has the precision, None if it can be quantized to it."""
    from quantbench.runtimes.llama_cpp import files

    files.tensor_bytes(path)
    matrix = precision.endswith(IMATRIX) and files.has_matrix(path)
    if not _is_as_asked(path, precision, files.file_precision(path), matrix=matrix):
        return None
    facts = files.fallback_facts() if files.fills_blocks(path) else {}
    return Artifact(path=path, file_bytes=_file_bytes(path), quantize_s=None, facts=facts)


def _is_as_asked(path: Path, precision: str, own: str, *, matrix: bool) -> bool:
    """True if a ready file has the precision, False if it can be quantized to it; UnsupportedError if neither."""
    from quantbench.runtimes.llama_cpp.files import UNQUANTIZED

    if own == precision.removesuffix(IMATRIX):
        if precision.endswith(IMATRIX) and not matrix:
            raise UnsupportedError(f"{path} does not say that it was made with an importance matrix; use gguf/{own}")
        return True
    if own not in UNQUANTIZED:
        raise UnsupportedError(f"{path} is already quantized to {own}; use gguf/{own}, or give an F16 file")
    return False


def _file_bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in gguf_parts(path))


@open_gguf.forecasts
def forecast_gguf(architecture: Architecture, precisions: Sequence[str]) -> Mapping[str, Weights]:
    """Tensor bytes of each file from llama.cpp's own dry run; a ready file's own precision is counted as it is."""
    from quantbench.runtimes.llama_cpp import plan

    if missing := open_gguf.missing():
        reason = f"the sizes come from llama.cpp, which needs {', '.join(missing)}, not installed; {open_gguf.install}"
        return {each: _unknown(reason) for each in precisions}
    found = _forecast_ready(architecture.gguf) if architecture.gguf else plan.forecast(architecture, _FILES)
    return {each: found[each] for each in precisions}


def _forecast_ready(path: Path) -> dict[str, Weights]:
    """Sizes of all files that can be made from a ready one."""
    from quantbench.runtimes.llama_cpp import plan
    from quantbench.runtimes.llama_cpp.imatrix import no_matrix

    header = plan.header(path)
    found: dict[str, Weights] = {}
    wanted = []
    for precision, kind, matrix in _FILES:
        try:
            if _is_as_asked(path, precision, header["precision"], matrix=header["matrix"]):
                found[precision] = Weights(
                    weight_bytes=header["bytes"], file_bytes=_file_bytes(path), dtype="fp16",
                    note="the file as it is",
                )  # fmt: skip
            elif matrix:
                found[precision] = _unknown(no_matrix(f"gguf/{precision}", path))
            else:
                wanted.append((precision, kind, matrix))
        except UnsupportedError as error:
            found[precision] = _unknown(str(error))
    return found | (plan.forecast_from(path, wanted) if wanted else {})


def _unknown(reason: str) -> Weights:
    return Weights(weight_bytes=None, dtype="fp16", note=reason)


@open_gguf.audits
def audit_gguf(settings: Settings, original: Checkpoint) -> Mapping[str, str]:
    """Mistakes of the conversion by the headers, and tensor by tensor whose weights these are and how often quantized."""
    from quantbench.runtimes.llama_cpp.audit import audited

    try:
        return audited(settings.checkpoint, original)
    except QuantbenchError as error:  # an audit is a find beside the figures: without one they are kept
        return {"artifact_audit": f"its weights were not compared with the original's ({error})"}


@open_gguf.saves
def save_gguf(spec: Spec, settings: Settings, out: Path) -> None:
    """Copy the quantized file, or all parts if it is split."""
    out.mkdir(parents=True, exist_ok=True)
    parts = gguf_parts(prepare_gguf(spec, settings).path)
    for number, part in enumerate(parts, start=1):
        suffix = f"-{number:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
        shutil.copyfile(part, out / f"model-{spec.variant.precision}{suffix}.gguf")
