"""The probes: what a variant can do besides answering. Does it run on each device, can it be fine-tuned, can it be saved?

Each is tried, not looked up. Nothing here is timed; it all runs in a separate process, so that what it leaves behind (imports,
patched libraries, adapters in the model) affects no measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from quantbench.core.cache import cache_root
from quantbench.core.errors import MissingDependency, QuantbenchError
from quantbench.core.install import install_hint
from quantbench.core.machine import describe
from quantbench.core.scenario import Spec
from quantbench.core.scratch import scratch_folder
from quantbench.core.trace import Probe
from quantbench.measuring.passes.finetune import load_adapter, other_kernels, train_adapter
from quantbench.methods import METHODS, HasModule, LoadedModel, Sampling, Settings
from quantbench.models.config import read_config
from quantbench.runtimes import model_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAMES = ("cpu", "cuda", "save_reload", "finetune")
PROBES_FILE = "probes.json"
CONTEXT = 64
"""Tokens of context that the probes need."""

TOLERANCE = 0.0001
"""Largest rms difference of the logits of a model that was saved and opened again, relative to their own spread.

The same weights in the same kernel give the same bits, so this leaves room only for a kernel that sums in another order. It
must catch a dtype or a scale that changed on the way: the canary rounded to fp16 is 0.0006 away, to bf16 0.005.
"""

ADAPTER_TOLERANCE = 0.05
"""Largest rms difference of the logits after an adapter was saved and loaded again, relative to the change by training.

A lost adapter differs by all of it. Some kernels take another path once they have been trained through, and round differently.
"""

_LENGTH = 32
_SEED = 0
_LINE = 160
"""Characters of a library's message that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedVariant:
    """A variant to probe, and the ids that its sampled text starts with."""

    spec: Spec
    settings: Settings
    start: Sequence[int]

    def open(self, device: str = "") -> AbstractContextManager[LoadedModel]:
        """A context manager that yields the freshly loaded variant, on another device if one is given."""
        spec = self.spec
        if device:
            spec = replace(spec, conditions=replace(spec.conditions, device=device))
        return METHODS[spec.variant.method].open(spec, self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The variant's behaviour when it was first opened: ids sampled from it, their logits, and the dtype it ran in."""

    ids: tuple[int, ...]
    logits: NDArray[np.float32]
    dtype: str = "auto"


def probe_all(subject: ProbedVariant) -> Iterator[tuple[str, Probe]]:
    """Yield each probe by name as it finishes. Raises whatever opening the variant on its own device raises."""
    here, other = ("cuda", "cpu") if subject.spec.conditions.device.startswith("cuda") else ("cpu", "cuda")
    seen = _look(subject)
    yield here, Probe(found=True)
    yield "save_reload", _tried(save_reload, subject, seen)
    yield "finetune", _tried(finetune, subject, seen)
    yield other, _elsewhere(subject, other)  # last: running out of a device's memory may end the process


def save_reload(subject: ProbedVariant, seen: Seen) -> Probe:
    """Whether what the method saves opens again, in its own runtime, with the logits that the variant had."""
    saver = METHODS[subject.spec.variant.method].saver
    if saver is None:
        return Probe(found=False, note="this method cannot save to a file that is safe to load")
    with scratch_folder(cache_root()) as folder:  # a model may be too large for the temporary folder
        saver(subject.spec, subject.settings, folder)
        with _reopened(subject, seen.dtype, folder) as model:
            difference = _rms(_logits(model, seen.ids) - seen.logits) / _spread(seen.logits)
    figures = {"logit_difference": difference}
    if difference > TOLERANCE:
        note = f"the reloaded model's logits differ by {difference:.2%} of their spread"
        return Probe(found=False, note=note, figures=figures)
    return Probe(found=True, figures=figures)


def finetune(subject: ProbedVariant, seen: Seen) -> Probe:
    """Whether five LoRA steps lower the loss with live gradients in the first layer, and the adapter survives a reload."""
    if find_spec("peft") is None:
        return Probe(found=None, note=f"peft is not installed; {install_hint('finetune')}")
    with scratch_folder() as folder:
        learned, trained = _learn(subject, seen, folder)
        if trained is None:
            return learned
        lost = _rms(_learned_again(subject, seen, folder) - trained) / (_rms(trained - seen.logits) or 1.0)
    figures = {**learned.figures, "adapter_lost": lost}
    if lost > ADAPTER_TOLERANCE:
        return Probe(found=False, note=f"the adapter loses {lost:.0%} of what it learned when it is reloaded", figures=figures)
    return Probe(found=True, figures=figures)


def _look(subject: ProbedVariant) -> Seen:
    with subject.open() as model:
        ids = (*subject.start, *model.generate(subject.start, _LENGTH, Sampling(seed=_SEED)))
        dtype = str(model.model.dtype).removeprefix("torch.") if isinstance(model, HasModule) else "auto"
        return Seen(ids=ids, logits=_logits(model, ids), dtype=dtype)


def _elsewhere(subject: ProbedVariant, device: str) -> Probe:
    if device == "cuda" and not describe().gpus:
        return Probe(found=None, note="no CUDA device here")
    try:
        with subject.open(device) as model:
            list(model.generate(subject.start, 2))
            model.synchronize()
            places = {place.partition(":")[0] for place in (model.facts.get("device") or "cpu").split("+")}
            if places != {device}:
                return Probe(found=False, note=f"opened for {device}, but its weights are on {' and '.join(sorted(places))}")
    except Exception as error:  # noqa: BLE001 - any library's refusal is the finding
        return Probe(found=False, note=_sentence(error))
    return Probe(found=True)


def _tried(probe: Callable[[ProbedVariant, Seen], Probe], subject: ProbedVariant, seen: Seen) -> Probe:
    try:
        return probe(subject, seen)
    except MissingDependency as error:
        return Probe(found=None, note=str(error))
    except Exception as error:  # noqa: BLE001 - any library's refusal is the finding
        return Probe(found=False, note=_sentence(error))


@contextmanager
def _reopened(subject: ProbedVariant, dtype: str, folder: Path) -> Iterator[LoadedModel]:
    """The saved model, opened again: the method's own kind of file by the method, any other checkpoint by plain transformers.

    ``dtype`` is the one that the variant ran in, since a checkpoint may store the same weights in fewer bits.
    """
    from quantbench.runtimes.transformers.model import TransformersModel, load_pretrained

    checkpoint = replace(subject.settings.checkpoint, path=folder)
    method = METHODS[subject.spec.variant.method]
    saved = model_file(folder)
    quantized = "" if saved else str((read_config(folder).get("quantization_config") or {}).get("quant_method", ""))
    if saved:
        checkpoint = replace(checkpoint, kind=saved[0].opens, path=saved[1])
    settings = replace(subject.settings, checkpoint=replace(checkpoint, quantized=quantized))
    if saved or quantized in method.reads:
        with method.open(subject.spec, settings) as model:
            yield model
    else:
        module = load_pretrained(settings, subject.spec.conditions.device, dtype=dtype)
        yield TransformersModel(module, kernel="reloaded")


def _learn(subject: ProbedVariant, seen: Seen, folder: Path) -> tuple[Probe, NDArray[np.float32] | None]:
    """Train an adapter and save it in ``folder``; the finding, and the trained model's logits if it could be trained.

    The variant is opened anew: after running without gradients it may hold tensors that cannot be trained through.
    """
    with subject.open() as model:
        if not isinstance(model, HasModule):
            return Probe(found=False, note="it is not a torch module, and peft trains nothing else"), None
        try:
            failure, figures = train_adapter(model.model, seen.ids, folder)
        except Exception as error:  # noqa: BLE001 - any library's refusal is the finding
            failure, figures = _sentence(error), {}
        if failure:
            return Probe(found=False, note=f"{failure}{other_kernels(model.model)}", figures=figures), None
        return Probe(found=True, figures=figures), _logits(model, seen.ids)


def _learned_again(subject: ProbedVariant, seen: Seen, folder: Path) -> NDArray[np.float32]:
    """The logits of the variant opened once more with the saved adapter."""
    with subject.open() as model:
        assert isinstance(model, HasModule)
        load_adapter(model.model, folder)
        return _logits(model, seen.ids)


def _logits(model: LoadedModel, ids: Sequence[int]) -> NDArray[np.float32]:
    import numpy as np

    return np.concatenate([chunk.copy() for chunk in model.score(ids)])


def _rms(values: NDArray[np.float32]) -> float:
    import numpy as np

    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def _spread(logits: NDArray[np.float32]) -> float:
    return _rms(logits - logits.mean(axis=1, keepdims=True)) or 1.0


def _sentence(error: Exception) -> str:
    """Our own errors in full; of a library's, the first sentence, cut to a bounded length."""
    if isinstance(error, QuantbenchError):
        return str(error)
    line = (str(error).strip().splitlines() or [""])[0].partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {line[:_LINE]}"
