"""Where torch puts a model: on one GPU whole, or balanced over several, and never partly on the host or the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from traceback import walk_tb
from typing import Any

from quantbench.core.allocator import described
from quantbench.core.errors import ModelError
from quantbench.core.units import format_bytes
from quantbench.runtimes import says_out_of_memory

_LEFT_OFF = ("dispatched on the CPU or the disk", "perform disk offload", "weights offloaded to the disk")
"""What transformers and its quantizers say about a device map that puts something anywhere but on a GPU."""


def gpus_of(device: str) -> list[int]:
    """CUDA's numbers of the GPUs that ``cuda`` (all that this process may see) or ``cuda:N`` stands for.

    Raises ModelError if this torch sees no GPU, or not that one.
    """
    import torch

    count = torch.cuda.device_count()
    number = device.partition(":")[2]
    wanted = [int(number)] if number else list(range(count))
    if wanted and wanted[-1] < count:
        return wanted
    if torch.version.cuda is None and torch.version.hip is None:
        why, mend = "was built for the CPU alone", "install a build of torch for CUDA, or ask for cpu"
    else:
        why, mend = f"sees {count or 'no'} GPUs", "ask for one of them, or look at CUDA_VISIBLE_DEVICES and the driver"
    raise ModelError(f"device {device!r} was asked for and torch {torch.__version__} {why}; {mend}")


def one_place(device: str) -> str:
    """The one device for a module that is not spread: ``cpu``, or the first GPU that ``device`` stands for."""
    return device if device == "cpu" else f"cuda:{_current(gpus_of(device))}"


def placed(device: str, load: Callable[..., Any]) -> Any:
    """What ``load`` makes, called with transformers' arguments that put all of it on ``device``.

    Raises MemoryError where weights would stay off the GPUs, ModelError where they could not be converted.
    """
    where, free = _arguments(device)
    try:
        model = load(**where)
    except (RuntimeError, ValueError) as error:
        if any(each in str(error) for each in _LEFT_OFF):
            raise MemoryError(_no_room("some of the weights have", free)) from error
        if said := _swallowed(error):
            raise ModelError(f"transformers could not convert the weights: {said}") from error
        raise
    left = sum(each.numel() * each.element_size() for each in model.parameters() if each.device.type != "cuda") if free else 0
    if left:
        total = sum(each.numel() * each.element_size() for each in model.parameters())
        raise MemoryError(_no_room(f"{format_bytes(left)} of {format_bytes(total)} of weights have", free))
    return model


def places_of(device: str) -> list[str]:
    """The GPUs among places joined by ``+``, as the fact ``device`` names them."""
    return [place for place in device.split("+") if place.startswith("cuda")]


def settings_on(device: str) -> dict[str, str]:
    """Settings of torch that change figures on a GPU, as facts of a row; none where ``device`` names no GPU.

    ``float32`` says by library whether it multiplies float32 as ``tf32``, with 10 of 23 bits of the fraction. cuDNN does so by
    default, and cuBLAS silently where the environment says TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1.
    """
    if not places_of(device):
        return {}
    import torch

    backends = torch.backends
    precisions = {
        "cublas": backends.cuda.matmul.fp32_precision, "cudnn-conv": backends.cudnn.conv.fp32_precision,
        "cudnn-rnn": backends.cudnn.rnn.fp32_precision,
    }  # fmt: skip
    return {"allocator": described(), "float32": " ".join(f"{name}={each}" for name, each in precisions.items())}


def wait_for(gpus: Sequence[str]) -> None:
    """Wait until these GPUs have finished; nothing else works asynchronously."""
    if gpus:
        import torch

        for gpu in gpus:
            torch.cuda.synchronize(gpu)


def _arguments(device: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Arguments of ``from_pretrained``, and where a model is spread the free bytes of each GPU.

    Without an entry for the host transformers puts what has no room on the disk, which ``placed`` refuses.
    """
    import torch

    if device == "cpu":  # told nothing, transformers' bitsandbytes takes a GPU where torch sees one
        return {"device_map": "cpu" if torch.cuda.is_available() else None}, {}
    gpus = gpus_of(device)
    first = _current(gpus)
    if len(gpus) == 1:
        return {"device_map": f"cuda:{first}"}, {}
    free = {gpu: int(torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus}
    return {"device_map": "auto", "max_memory": dict(free)}, {f"cuda:{gpu}": count for gpu, count in free.items()}


def _current(gpus: list[int]) -> int:
    """The first of ``gpus``, made the current one: kernels that ask no tensor where it is start there."""
    import torch

    torch.cuda.set_device(gpus[0])
    return gpus[0]


def _no_room(what: str, free: dict[str, int]) -> str:
    room = " and ".join(f"{name} ({format_bytes(count)} free)" for name, count in free.items())
    return f"out of memory: {what} no room on {room}, beside what a layer needs to run; use fewer bits, or more GPUs"


def _swallowed(error: BaseException) -> str:
    """The first error that transformers met while it converted weights: it collects them, and raises one that names none."""
    for frame, _ in walk_tb(error.__traceback__):
        for text in getattr(frame.f_locals.get("loading_info"), "conversion_errors", {}).values():
            *lines, where = [line.strip() for line in str(text).splitlines() if line.strip()]  # traceback, error, place
            return next(filter(says_out_of_memory, lines), lines[-1] if lines else where)
    return ""
