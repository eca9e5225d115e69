"""What runs between one token of a causal LM and the next: the ways to decode that the transformers runtime has.

``eager`` is one forward pass a token over a cache that grows: each step copies all keys and values (transformers'
DynamicLayer.update), and where kernels are launched from Python it measures Python. ``static`` is the same over a cache that
was made once. ``graph`` replays the step as one CUDA graph: the same kernels without Python between them. ``compiled`` is the
step by torch.compile. Prompts are read eagerly in all of them, and scored eagerly.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from types import MappingProxyType
from typing import Any

from quantbench.core.errors import UnsupportedError
from quantbench.core.trace import Decoding

Prompts = Sequence[Sequence[int]]
Choose = Callable[[Any], Any]
"""From logits [sequences, vocabulary] to the next ids [sequences, 1]."""

_REPLAYS = 20
"""Replays that a step's time on the device is the mean of."""

_WARM_UP = 3
"""Steps before one is captured or timed: kernels are chosen and workspaces made in the first ones (torch's own examples)."""

_NEAR = 4
"""How many roundings of the largest logit eager's choice may be below a path's own. Other kernels add in another order, and
that decides where two tokens are as near: in 6 of 8 answers of 32 tokens of a 0.55 B dummy in bf16, by 1.3 roundings at most.
With one of 48 keys lost it is 8.8, with a position skipped 14."""


class Eager:
    """Over a cache of the model's own kind, which grows."""

    name = "eager"
    prepared = False
    """Whether the step is compiled or captured when it first runs."""

    def __init__(self, model: Any, positions: int) -> None:  # noqa: ARG002 - other ways have to know it
        """``positions`` is the most that a sequence takes, its answer included."""
        self.model = model

    def steps(self, prompts: Prompts, limit: int, choose: Choose) -> Iterator[Any]:
        """The next ids [sequences, 1] of each step, on the model's device."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.model.device)
        with torch.inference_mode():
            for _ in range(limit):
                ids = choose(_last_logits(self.model, ids, cache))
                yield ids


class Static:
    """Over a cache made once for a number of sequences, and emptied before each prompt."""

    name = "static"
    prepared = False

    def __init__(self, model: Any, positions: int) -> None:
        """See Eager."""
        self.model = model
        self._positions = positions
        self._caches: dict[int, Any] = {}
        self._turns = count()
        self._turn = -1

    def steps(self, prompts: Prompts, limit: int, choose: Choose) -> Iterator[Any]:
        """See Eager. Only the latest answer can go on: all share the cache."""
        import torch

        turn = self._turn = next(self._turns)
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.model.device)
        with torch.inference_mode():
            cache = self._emptied(len(prompts))
            ids = choose(_last_logits(self.model, ids, cache))
            yield ids
            for _ in range(limit - 1):
                if turn != self._turn:
                    raise RuntimeError("another answer was begun, and both would use one cache")
                ids = choose(self._step(ids, cache))
                yield ids

    def _step(self, ids: Any, cache: Any) -> Any:
        """The logits [sequences, vocabulary] after one more token."""
        return _last_logits(self.model, ids, cache)

    def _emptied(self, sequences: int) -> Any:
        """The cache for so many sequences; its tensors are of inference mode, and can be emptied only in it."""
        from transformers import StaticCache

        if sequences not in self._caches:
            self._caches[sequences] = StaticCache(config=self.model.config, max_cache_len=self._positions)
        self._caches[sequences].reset()
        return self._caches[sequences]


class Compiled(Static):
    """The step by torch.compile, with the kernels that its backend makes for this model and number of sequences."""

    name = "compiled"
    prepared = True

    def __init__(self, model: Any, positions: int) -> None:
        """See Eager."""
        import torch

        super().__init__(model, positions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the compiler's own modules use
            self._compiled = torch.compile(_last_logits, dynamic=False)

    def _step(self, ids: Any, cache: Any) -> Any:
        return self._compiled(self.model, ids, cache)


class Graph(Static):
    """The step as a CUDA graph, captured once for a number of sequences."""

    name = "graph"
    prepared = True

    def __init__(self, model: Any, positions: int) -> None:
        """See Eager."""
        super().__init__(model, positions)
        self._captured: dict[int, tuple[Any, Any, Any]] = {}

    def steps(self, prompts: Prompts, limit: int, choose: Choose) -> Iterator[Any]:
        """See Static."""
        if len(prompts) not in self._captured:
            self._capture(prompts)
        return super().steps(prompts, limit, choose)

    def _step(self, ids: Any, cache: Any) -> Any:  # noqa: ARG002 - the graph has its own
        graph, asked, logits = self._captured[len(ids)]
        asked.copy_(ids)
        graph.replay()
        return logits

    def device_step_s(self, prompts: Prompts) -> float:
        """Seconds of a step on the device, over as many replays as the cache has room for, at most _REPLAYS."""
        import torch

        if len(prompts) not in self._captured:
            self._capture(prompts)
        graph, _, _ = self._captured[len(prompts)]
        replays = min(_REPLAYS, self._positions - len(prompts[0]) - 1)
        list(self.steps(prompts, 2, lambda logits: logits.argmax(dim=-1, keepdim=True)))
        with torch.inference_mode():
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            for _ in range(replays - 1):
                graph.replay()
            after.record()
            after.synchronize()
        return float(before.elapsed_time(after)) / 1000 / (replays - 1)

    def _capture(self, prompts: Prompts) -> None:
        """Record the step. Where the cache stands is a tensor that the step itself moves on: each replay is the next step."""
        import torch

        with torch.inference_mode():
            cache = self._emptied(len(prompts))
            if any(layer.is_sliding for layer in cache.layers):
                raise UnsupportedError("a cache of a window counts its positions in Python, where a graph does not come by")
            ids = torch.tensor([list(prompt) for prompt in prompts], device=self.model.device)
            asked = _last_logits(self.model, ids, cache).argmax(dim=-1, keepdim=True)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    _last_logits(self.model, asked, cache)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = _last_logits(self.model, asked, cache)
        self._captured[len(prompts)] = graph, asked, logits


Way = Eager | Static
WAYS: Mapping[str, type[Way]] = MappingProxyType({each.name: each for each in (Eager, Static, Graph, Compiled)})


def try_way(way: Way, prompts: Prompts, limit: int) -> tuple[Way, Decoding]:
    """That way to answer so many prompts together, with ``limit`` tokens; eager, with the reason, where it answers otherwise.

    It is led along eager's greedy ids, each of which has to be as likely as its own choice but for rounding. What the first
    answer takes beyond the second is the time of compiling or capturing.
    """
    eager = Eager(way.model, 0)
    if way.name == eager.name:
        return way, Decoding(path=way.name)
    expected = _ids(eager, prompts, limit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first_s, first = _led(way, prompts, expected)
        again_s, again = _led(way, prompts, expected)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - compilers and captures raise what they like; the row is measured eagerly
        return eager, Decoding(path=eager.name, reason=f"{way.name} failed: {_first_line(error)}")
    below = list(map(max, first, again))
    for place, each in enumerate(below, start=1):
        if not each <= _NEAR:  # not a number is too far, too
            otherwise = f"{way.name} answered otherwise than eager from token {place} on"
            return eager, Decoding(path=eager.name, reason=otherwise, difference=each)
    compile_s = max(0.0, first_s - again_s) if way.prepared else None
    return way, Decoding(path=way.name, difference=max(below), compile_s=compile_s)


def with_device_step(way: Way, found: Decoding, prompts: Prompts, positions: int) -> Decoding:
    """``found`` with the time that a step's kernels take on a GPU: between events around replays of the step as a graph."""
    if way.model.device.type != "cuda":
        return replace(found, no_device_step="on a CPU a step is computed where it is launched")
    if way.name == Compiled.name:
        return replace(found, no_device_step="the kernels of a compiled step are not known apart from their launching")
    graph = way if isinstance(way, Graph) else Graph(way.model, positions)
    try:
        return replace(found, device_step_s=graph.device_step_s(prompts))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - as in try_way: one figure less
        return replace(found, no_device_step=f"the step could not be captured: {_first_line(error)}")


def _last_logits(model: Any, ids: Any, cache: Any) -> Any:
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


def _ids(way: Way, prompts: Prompts, limit: int) -> list[list[int]]:
    greedy = way.steps(prompts, limit, lambda logits: logits.argmax(dim=-1, keepdim=True))
    return [ids[:, 0].tolist() for ids in islice(greedy, limit)]


def _led(way: Way, prompts: Prompts, expected: Sequence[Sequence[int]]) -> tuple[float, list[float]]:
    """Seconds of an answer that is led along the ``expected`` ids, and how far below its own choice they are at each step.

    That is of the sequence where it is farthest, in roundings of the largest logit.
    """
    import torch

    below: list[Any] = []
    ids = torch.tensor(expected, device=way.model.device).unsqueeze(-1)

    def lead(logits: Any) -> Any:
        wanted, exact = ids[len(below)], logits.float()
        rounding = exact.abs().amax(-1, keepdim=True) * torch.finfo(logits.dtype).eps
        below.append(((exact.amax(-1, keepdim=True) - exact.gather(-1, wanted)) / rounding).amax())
        return wanted

    started = time.perf_counter()
    for _ in way.steps(prompts, len(expected), lead):
        pass
    found: list[float] = torch.stack(below).tolist()  # which waits for the device
    return time.perf_counter() - started, found


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
