"""How the same weights are decoded: quantbench's four paths, plain ``generate``, and a loop of gpt-fast's kind.

Each variant is opened once through quantbench, so that the weights and kernels are the same; then the same prompt is answered in
several ways. One JSON line each, and a table at the end. Of a way that cannot be used the reason is kept.

    eager, static, graph, compiled
                 quantbench's own decode paths, timed as its latency pass times them: it waits for each token
    generate     module.generate(), as most people call it
    loop         independent of quantbench's: a static cache and one decode step with its argmax, compiled in torch.compile's mode
                 "reduce-overhead" (which records CUDA graphs by itself), and no waiting before the end; as gpt-fast does it
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

STEPS = 32
REPEATS = 3
VARIANTS = ("torch/bf16", "bitsandbytes/nf4", "gptq/int4-g128", "torchao/int4-wo", "awq/int4-g128", "torch/fp32", "bitsandbytes/int8")
"""LLM.int8() comes last: it waits inside each layer, and a capture that fails may leave something behind."""

COMPILED = ("torch/bf16",)
"""Compiling takes about a minute each: at batch 1 only, and where it is the question. torchao's INT8 and FP8 are compiled in the
stage ``torchao``, which measures nothing else."""


@dataclass(frozen=True)
class Timed:
    """Seconds of a step and of the prompt, the ids of the first answer, and what else was found."""

    step_s: float
    first_s: float
    ids: Sequence[int]
    further: Mapping[str, Any]


Ways = Mapping[str, Callable[[Sequence[int], int], Timed]]
"""By name; each answers a prompt with so many sequences together."""


class InOneWay:
    """A model of quantbench that decodes in one way, whatever its ids are; the latency pass can time it."""

    def __init__(self, way: Any, model: Any) -> None:
        """``way`` is one of quantbench's decode paths, over the module of ``model``."""
        self._way = way
        self.synchronize = model.synchronize

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        """The greedy answer, token by token."""
        return (int(ids) for ids in self._way.steps([prompt], limit, greedy))

    def generate_batch(self, prompts: Sequence[Sequence[int]], limit: int) -> Iterator[Sequence[int]]:
        """The same for several sequences."""
        return (ids[:, 0].tolist() for ids in self._way.steps(prompts, limit, greedy))


def greedy(logits: Any) -> Any:
    """The likeliest ids [sequences, 1]."""
    return logits.argmax(dim=-1, keepdim=True)


def main() -> None:
    """Measure until the seconds are over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="dummy:llama-2-7b")
    parser.add_argument("--prompt", type=int, default=480)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--compiled", default=",".join(COMPILED))
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    deadline = time.perf_counter() + asked.seconds
    rows: list[dict[str, Any]] = []

    def keep(**row: Any) -> None:
        rows.append(row)
        with asked.out.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    bandwidth = copy_bandwidth(asked.device)
    keep(what="bandwidth", bytes_per_second=bandwidth, device=device_name(asked.device))
    for variant in asked.variants.split(","):
        if time.perf_counter() > deadline - 30:
            keep(variant=variant, failed="no time was left")
            continue
        try:
            measure(variant, asked, bandwidth, deadline, keep)
        except Exception as error:  # noqa: BLE001 - the next variant goes on
            keep(variant=variant, failed=first_line(error))
        clear(asked.device)
    show(rows)


def measure(variant: str, asked: argparse.Namespace, bandwidth: float | None, deadline: float, keep: Callable[..., None]) -> None:
    """All ways of one variant at all batch sizes; compiling comes last, at batch 1 alone."""
    import torch

    from quantbench.core.scenario import Conditions, Spec, Variant
    from quantbench.measuring.passes.bandwidth import bytes_per_token
    from quantbench.methods import METHODS, Settings
    from quantbench.models.checkpoint import resolve

    name, _, precision = variant.partition("/")
    spec = Spec(model=asked.model, variant=Variant(method=name, precision=precision), conditions=Conditions(device=asked.device))
    batches = [int(each) for each in asked.batches.split(",")]
    positions = asked.prompt + STEPS
    settings = Settings(checkpoint=resolve(asked.model), threads=torch.get_num_threads(), context=positions, batch=max(batches))
    method = METHODS[name]
    method.prepare(spec, settings)
    started = time.perf_counter()
    with method.open(spec, settings) as model:
        model.synchronize()
        memory = model.memory()
        keep(
            variant=variant, what="opened", seconds=round(time.perf_counter() - started, 2), kernel=model.facts["kernel"],
            weight_bytes=memory.weight_bytes,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        prompt = torch.randint(3, model.model.config.vocab_size, (asked.prompt,), generator=generator).tolist()
        told: dict[int, Sequence[int]] = {}
        for batch, ways in turns(model, positions, batches, asked.device, compiling=variant in asked.compiled.split(",")):
            read = bytes_per_token(memory, [prompt], STEPS, batch)
            least_s = batch * read / bandwidth if read and bandwidth else None
            said = partial(keep, variant=variant, batch=batch)
            for way, work in ways.items():
                if time.perf_counter() > deadline - 10:
                    said(way=way, failed="no time was left")
                    continue
                try:
                    found = work(prompt, batch)
                except Exception as error:  # noqa: BLE001 - that this way is closed is the finding
                    said(way=way, failed=first_line(error))
                    clear(asked.device)
                    continue
                said(way=way, **figures(found, batch, told.setdefault(batch, found.ids), least_s))


def figures(found: Timed, batch: int, eager: Sequence[int], least_s: float | None) -> dict[str, Any]:
    """What is kept of one way; ``least_s`` is how long the memory takes to give what a step reads."""
    same = sum(one == other for one, other in zip(found.ids, eager, strict=False)) / STEPS
    return {
        "step_ms": round(1000 * found.step_s, 3), "tokens_per_second": round(batch / found.step_s, 1),
        "first_ms": round(1000 * found.first_s, 2), "same_tokens": round(same, 3),
        "mbu": round(least_s / found.step_s, 3) if least_s else None, **found.further,
    }  # fmt: skip


def turns(model: Any, positions: int, batches: Sequence[int], device: str, *, compiling: bool) -> Iterator[tuple[int, Ways]]:
    """Batch sizes, each with the ways that are taken there."""
    usual = ("eager", "static") if device == "cpu" else ("eager", "static", "graph")
    plain: Ways = {"generate": partial(generated, model.model, device)}
    for batch in batches:
        yield batch, {**{name: partial(own_path, model, name, positions) for name in usual}, **plain}
    if compiling:
        yield 1, {"compiled": partial(own_path, model, "compiled", positions), "loop": partial(compiled_loop, model.model, device)}


def own_path(model: Any, name: str, positions: int, prompt: Sequence[int], batch: int) -> Timed:
    """One of quantbench's decode paths, timed as its latency pass times it, whether or not its ids are those of eager."""
    from quantbench.core.trace import Decoding
    from quantbench.measuring.passes.latency import timed_answer, together
    from quantbench.runtimes.transformers.decoding import WAYS, with_device_step

    way = WAYS[name](model.model, positions)
    answerer = InOneWay(way, model)
    took = []
    for _ in range(2):  # what the first takes beyond the second is compiling or capturing
        started = time.perf_counter()
        timed_answer(answerer, 0, prompt, STEPS, batch)
        took.append(time.perf_counter() - started)
    steps, prefills, ids = [], [], ()
    for _ in range(REPEATS):
        answer, ids = timed_answer(answerer, 0, prompt, STEPS, batch)
        steps.append(sum(answer.gaps_s) / (STEPS - 1))
        prefills.append(answer.prefill_s)
    found = with_device_step(way, Decoding(path=name), together(prompt, batch), positions)
    further: dict[str, Any] = {"compile_s": round(took[0] - took[1], 2)} if way.prepared else {}
    if found.device_step_s is not None:
        further |= {"device_step_ms": round(1000 * found.device_step_s, 3)}
    return Timed(median(steps), median(prefills), ids, further)


def generated(module: Any, device: str, prompt: Sequence[int], batch: int) -> Timed:
    """``module.generate``: the time of an answer less that of one of a single token, over the tokens between."""
    import torch

    ids = sequences(prompt, batch, module)

    def answer(length: int) -> tuple[float, Any]:
        wait(device)
        started = time.perf_counter()
        with torch.inference_mode():
            out = module.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=length, max_new_tokens=length, pad_token_id=0
            )
        wait(device)
        return time.perf_counter() - started, out

    answer(STEPS)
    answer(1)
    whole = [answer(STEPS) for _ in range(REPEATS)]
    single = median(answer(1)[0] for _ in range(REPEATS))
    step_s = (median(each for each, _ in whole) - single) / (STEPS - 1)
    return Timed(step_s, single, whole[-1][1][0, ids.shape[1] :].tolist(), {})


def compiled_loop(module: Any, device: str, prompt: Sequence[int], batch: int) -> Timed:
    """A loop of gpt-fast's kind. The prompt is read eagerly; the first answers compile and record, and are not timed."""
    import torch
    from transformers import StaticCache

    ids = sequences(prompt, batch, module)
    cache = StaticCache(config=module.config, max_cache_len=ids.shape[1] + STEPS)

    def step(token: Any) -> Any:
        logits = module(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    decode_one = torch.compile(step, mode="reduce-overhead", dynamic=False)

    def answer() -> tuple[float, float, Any]:
        cache.reset()
        wait(device)
        began = time.perf_counter()
        token = step(ids)
        wait(device)
        first_s = time.perf_counter() - began
        said = [token]
        began = time.perf_counter()
        for _ in range(STEPS - 1):
            said.append(decode_one(said[-1]).clone())  # the next replay writes over what this one returned
        wait(device)
        return (time.perf_counter() - began) / (STEPS - 1), first_s, said

    with torch.inference_mode():
        took = [answer()[0] * (STEPS - 1) for _ in range(3)]
        times, firsts, said = zip(*(answer() for _ in range(REPEATS)), strict=True)
    told = torch.cat(said[-1], dim=1)[0].tolist()
    return Timed(median(times), median(firsts), told, {"compile_s": round(took[0] - took[-1], 2)})


def sequences(prompt: Sequence[int], batch: int, module: Any) -> Any:
    """The ids [batch, tokens] that quantbench makes of one prompt, on the module's device."""
    import torch

    from quantbench.measuring.passes.latency import together

    return torch.tensor(together(prompt, batch), device=module.device)


def copy_bandwidth(device: str) -> float | None:
    """Bytes per second of a copy on the GPU; the CPU's is no matter here."""
    if device == "cpu":
        return None
    from quantbench.measuring.passes.bandwidth import copy_on_device, device_array_bytes

    return copy_on_device(device, device_array_bytes(device))


def device_name(device: str) -> str:
    """Which GPU."""
    if device == "cpu":
        return device
    import torch

    return f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}"


def first_line(error: BaseException) -> str:
    """An error on one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def wait(device: str) -> None:
    """Until the GPU is done."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def clear(device: str) -> None:
    """Give memory back before the next variant."""
    gc.collect()
    if device != "cpu":
        import torch

        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()


def show(rows: list[dict[str, Any]]) -> None:
    """Tokens per second of each way, a line a variant and batch."""
    ways = list(dict.fromkeys(row["way"] for row in rows if "way" in row))
    print(f"\n{'tokens/s (mbu)':32}" + "".join(f"{way:>20}" for way in ways))
    keys = dict.fromkeys((row["variant"], row["batch"]) for row in rows if "way" in row)
    for variant, batch in keys:
        cells = {row["way"]: row for row in rows if row.get("variant") == variant and row.get("batch") == batch and "way" in row}
        texts = []
        for way in ways:
            row = cells.get(way, {})
            mbu = "" if row.get("mbu") is None else f" ({row['mbu']:.2f})"
            texts.append(f"{row['tokens_per_second']:.1f}{mbu}" if "tokens_per_second" in row else "-")
        print(f"{variant + ' @' + str(batch):32}" + "".join(f"{text:>20}" for text in texts))


if __name__ == "__main__":
    main()
