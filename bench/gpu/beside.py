"""What else runs the same weights, beside quantbench's own loop: plain ``generate``, a static cache, a CUDA graph, ``torch.compile``.

Each variant is opened once through quantbench, so that the weights and kernels are the same; then the same prompt is answered in
several ways. One JSON line each, and a table at the end. Of a way that cannot be used the reason is kept.

    quantbench        its own loop: DynamicCache, one forward pass a token, waiting for each token
    generate          module.generate(), as most people call it
    static            module.generate(cache_implementation="static"), not compiled
    graph             StaticCache, and one decode step captured as a CUDA graph, replayed for each token
    graph, no waits   the same, waiting only at the end
    compiled          module.generate(cache_implementation="static"), which transformers compiles where it may
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

STEPS = 32
REPEATS = 3
VARIANTS = ("torch/bf16", "bitsandbytes/nf4", "gptq/int4-g128", "torchao/int4-wo", "torchao/int8-wo", "awq/int4-g128", "torch/fp32",
            "torchao/fp8", "bitsandbytes/int8")  # fmt: skip
"""LLM.int8() comes last: it waits inside each layer, and a capture that fails may leave something behind."""

COMPILED = ("torch/bf16", "torchao/int8-wo", "torchao/int4-wo")
"""Compiling takes about a minute each: at batch 1, after everything else, and only where it is the question."""

STATIC = {"cache_implementation": "static"}


def main() -> None:
    """Measure until the seconds are over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="dummy:llama-2-7b")
    parser.add_argument("--prompt", type=int, default=480)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--variants", default=",".join(VARIANTS))
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
    variants = asked.variants.split(",")
    compiled = [each for each in variants if each in COMPILED] if asked.device != "cpu" else []
    for variant, compiling in [*((each, False) for each in variants), *((each, True) for each in compiled)]:
        if time.perf_counter() > deadline - (90 if compiling else 30):
            keep(variant=variant, compiling=compiling, failed="no time was left")
            continue
        try:
            measure(variant, asked, bandwidth, deadline, keep, compiling=compiling)
        except Exception as error:  # noqa: BLE001 - the next variant goes on
            keep(variant=variant, failed=f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}")
        clear(asked.device)
    show(rows)


def measure(
    variant: str, asked: argparse.Namespace, bandwidth: float | None, deadline: float, keep: Callable[..., None], *, compiling: bool
) -> None:
    """All ways of one variant at all batch sizes, or ``compiled`` at batch 1 alone."""
    import torch

    from quantbench.core.scenario import Conditions, Spec, Variant
    from quantbench.methods import METHODS, Settings
    from quantbench.models.checkpoint import resolve

    name, _, precision = variant.partition("/")
    spec = Spec(model=asked.model, variant=Variant(method=name, precision=precision), conditions=Conditions(device=asked.device))
    batches = [int(each) for each in asked.batches.split(",")]
    settings = Settings(checkpoint=resolve(asked.model), threads=torch.get_num_threads(), context=asked.prompt + STEPS + 32,
                        batch=max(batches))  # fmt: skip
    method = METHODS[name]
    method.prepare(spec, settings)
    with ExitStack() as stack:
        started = time.perf_counter()
        model = stack.enter_context(method.open(spec, settings))
        model.synchronize()
        opened_s = time.perf_counter() - started
        memory = model.memory()
        vocabulary = model.model.config.vocab_size
        keep(variant=variant, what="opened", seconds=round(opened_s, 2), kernel=model.facts["kernel"], weight_bytes=memory.weight_bytes)
        for batch in [1] if compiling else batches:
            generator = torch.Generator().manual_seed(batch)
            prompts = torch.randint(3, vocabulary, (batch, asked.prompt), generator=generator).tolist()
            ways: dict[str, Callable[[], Any]] = {
                "quantbench": lambda p=prompts: own_loop(model, p),
                "generate": lambda p=prompts: plain(model.model, p, asked.device, {}),
            }
            if batch == 1:
                ways["static"] = lambda p=prompts: plain(model.model, p, asked.device, {**STATIC, "disable_compile": True})
            if asked.device != "cpu":
                ways["graph"] = lambda p=prompts: graph(model.model, p, wait=True)
                ways["graph, no waits"] = lambda p=prompts: graph(model.model, p, wait=False)
            if compiling:
                ways = {"compiled": lambda p=prompts: plain(model.model, p, asked.device, STATIC)}
            told: dict[str, Any] = {}
            for way, work in ways.items():
                if time.perf_counter() > deadline - 10:
                    keep(variant=variant, batch=batch, way=way, failed="no time was left")
                    continue
                try:
                    step_s, first_s, ids = work()
                except Exception as error:  # noqa: BLE001 - that this way is closed is the finding
                    text = str(error).splitlines()[0][:240] if str(error) else ""
                    keep(variant=variant, batch=batch, way=way, failed=f"{type(error).__name__}: {text}")
                    clear(asked.device)
                    continue
                told.setdefault("ids", ids)
                same = sum(a == b for a, b in zip(ids, told["ids"], strict=False)) / max(1, len(ids))
                read = None
                if memory.step_bytes is not None and memory.cache_position_bytes is not None:
                    read = memory.step_bytes + batch * memory.cache_position_bytes * (asked.prompt + STEPS / 2)
                keep(variant=variant, batch=batch, way=way, step_ms=round(1000 * step_s, 3), tokens_per_second=round(batch / step_s, 1),
                     first_ms=round(1000 * first_s, 2), same_tokens=round(same, 3),
                     mbu=round(read / step_s / bandwidth, 3) if read and bandwidth else None)  # fmt: skip
        del model


def own_loop(model: Any, prompts: list[list[int]]) -> tuple[float, float, list[int]]:
    """Quantbench's own generate(), timed as its latency pass times it."""
    from quantbench.measuring.passes.latency import timed_answer

    first = prompts[0]
    timed_answer(model, 0, first, 8, len(prompts))
    steps, prefills, ids = [], [], ()
    for _ in range(REPEATS):
        answer, ids = timed_answer(model, 0, first, STEPS, len(prompts))
        steps.append(sum(answer.gaps_s) / (STEPS - 1))
        prefills.append(answer.prefill_s)
    return median(steps), median(prefills), list(ids)


def plain(module: Any, prompts: list[list[int]], device: str, options: dict[str, Any]) -> tuple[float, float, list[int]]:
    """``module.generate``: the time of an answer less that of one of a single token, over the tokens between."""
    import torch

    ids = torch.tensor(rows_of(prompts), device=module.device)

    def answer(length: int) -> tuple[float, Any]:
        wait(device)
        started = time.perf_counter()
        with torch.inference_mode():
            out = module.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=length, max_new_tokens=length,
                                  pad_token_id=0, **options)  # fmt: skip
        wait(device)
        return time.perf_counter() - started, out

    for _ in range(3 if options == STATIC else 1):
        answer(STEPS)
    answer(1)
    whole = [answer(STEPS) for _ in range(REPEATS)]
    single = median(answer(1)[0] for _ in range(REPEATS))
    return (median(each for each, _ in whole) - single) / (STEPS - 1), single, whole[-1][1][0, ids.shape[1] :].tolist()


def graph(module: Any, prompts: list[list[int]], *, wait: bool) -> tuple[float, float, list[int]]:
    """A decode step over a static cache, captured once and replayed; the prompt pass is not captured.

    The cache is as long as prompt and answer, since all of it is read. Each repeat begins where the prompt ended.
    """
    import torch
    from transformers import StaticCache

    ids = torch.tensor(rows_of(prompts), device=module.device)
    length = ids.shape[1]
    cache = StaticCache(config=module.config, max_cache_len=length + STEPS)
    with torch.inference_mode():
        torch.cuda.synchronize()
        started = time.perf_counter()
        logits = module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
        first = token.clone()
        beginning = int(first[0])
        first_s = time.perf_counter() - started

        def step() -> None:
            out = module(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token.copy_(out[:, -1].argmax(-1, keepdim=True))

        def rewind() -> None:
            token.copy_(first)
            for layer in cache.layers:
                layer.cumulative_length.fill_(length)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        times = []
        for _ in range(REPEATS):
            rewind()
            said = [beginning]
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(STEPS - 1):
                captured.replay()
                if wait:
                    said.append(int(token[0]))
            torch.cuda.synchronize()
            times.append((time.perf_counter() - started) / (STEPS - 1))
    return median(times), first_s, said


def rows_of(prompts: list[list[int]]) -> list[list[int]]:
    """The batch that quantbench makes of its first prompt."""
    from quantbench.measuring.passes.latency import together

    return together(prompts[0], len(prompts))


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
