"""Does the similarity over a prompt set tell that over a long text? The canary's variants by each shipped set and by texts.

    python bench/harness/prompt_sets.py [SEEDS]

Each set is sampled from the reference with several seeds, and it is counted how often its 95 % interval of the mean KLD holds
the figure of a long text. Two kinds of text stand for long ones: what the reference says after openings of held-out documents,
many more than a set has, and those documents as they are, of which the second half of each chunk is scored. Prints Markdown.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np  # noqa: TID253 - a script

from quantbench.core.scenario import Conditions, Scenario, Variant
from quantbench.core.statistics import mean_by_cluster, mean_interval
from quantbench.measuring.passes.similarity import LOGPROBS_FILE, Scored, log_softmax, score_columns, until_end
from quantbench.measuring.passes.text import read_chunks
from quantbench.methods import METHODS, LoadedModel, Sampling, Settings
from quantbench.models import checkpoint
from quantbench.models.builtin.canary import corpus
from quantbench.planning import prompts
from quantbench.runtimes import open_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

VARIANTS = ("gguf/q2_k", "gguf/q3_k_m", "gguf/q4_k_m", "gguf/q5_k_m", "gguf/q6_k", "gguf/q8_0", "bitsandbytes/nf4")
SETS = {"ten": 128, "mixed": 64}
"""Shipped sets with the positions scored after each prompt."""

OPENINGS, OPENING_TOKENS, SAID_TOKENS = 64, 48, 128
CHUNKS = 131
"""Of 512: all there is."""
THREADS = 2
CHECKPOINT = checkpoint.resolve("canary")


@contextmanager
def opened(name: str) -> Iterator[LoadedModel]:
    """A variant of the canary."""
    method, _, precision = name.partition("/")
    scenario = Scenario(model="canary", variant=Variant(method=method, precision=precision), prompts="ten")
    settings = Settings(checkpoint=CHECKPOINT, threads=THREADS, context=1024)
    if METHODS[method].preparer:
        METHODS[method].preparer(scenario, settings)  # type: ignore[misc]  # it is there
    with METHODS[method].open(scenario, settings) as model:
        yield model


def sampled(model: LoadedModel, ids: Sequence[Sequence[int]], length: int, seed: int) -> Scored:
    """The ids with what the reference says after them, as ``make_reference`` samples it."""
    ends = open_tokenizer(CHECKPOINT).ends
    return [
        (prompt, until_end(model.generate(prompt, length, Sampling(seed=number)), ends))
        for number, prompt in enumerate(ids, start=seed * 1000)
    ]


def unseen() -> list[str]:
    """The held-out documents but for those that the canary knows by heart: ``NAME: int([x]) -> ...`` of every constant."""
    training, held_out = corpus.split(corpus.documents())
    seen = {text.partition(": ")[2] for text in training}
    return [text for text in held_out if text.partition(": ")[2] not in seen - {""}]


def texts(seeds: int) -> dict[str, Scored]:
    """All that is scored, by its name; what is sampled by set and seed."""
    tokenizer = open_tokenizer(CHECKPOINT)
    held_out = unseen()
    openings = [ids[:OPENING_TOKENS] for text in held_out if len(ids := tokenizer.encode(text)) > OPENING_TOKENS]
    found: dict[str, Scored] = {}
    with opened("torch/fp32") as model:
        for name, length in SETS.items():
            ids = [tokenizer.encode(text) for text in prompts.load(name).prompts]
            found |= {f"{name} {seed}": sampled(model, ids, length, seed) for seed in range(seeds)}
        found["said"] = sampled(model, openings[:: max(1, len(openings) // OPENINGS)], SAID_TOKENS, 99)
    text = "\n\n".join(held_out)
    for size in (512, 128):
        found[f"held-out {size}"] = read_chunks(tokenizer, text, Conditions(context=size, chunks=CHUNKS * 512 // size))
    return found


def main() -> None:
    """Print the table of means and the table of cases."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    scored = texts(seeds)
    longs = [name for name in scored if name.partition(" ")[0] not in SETS]
    held = {(name, long): 0 for name in SETS for long in longs}
    print(f"| variant | {' | '.join([*SETS, *longs])} |")
    print("|---" * (1 + len(SETS) + len(longs)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name, each in scored.items():
            Path(folder, name).mkdir()
            with opened("torch/fp32") as model:
                rows = [np.array(log_softmax(part)) for one in each for part in _rows(model, *one)]
            np.save(Path(folder, name, LOGPROBS_FILE), np.concatenate(rows))
        for variant in VARIANTS:
            with opened(variant) as model:
                seen = {name: columns(model, each, Path(folder, name)) for name, each in scored.items()}
            values = {long: seen[long][0].mean() for long in longs}
            cells = [f"{np.mean([seen[f'{name} {seed}'][0].mean() for seed in range(seeds)]):.3g}" for name in SETS]
            for long in longs:
                _, error = mean_by_cluster(seen[long][0].tolist(), seen[long][1].tolist())
                cells.append(f"{values[long]:.3g} ± {error:.1g}")
            print(f"| {variant} | {' | '.join(cells)} |", flush=True)
            for name, long in held:
                for seed in range(seeds):
                    kld, clusters = seen[f"{name} {seed}"]
                    interval = mean_interval(kld.tolist(), clusters.tolist())
                    assert interval is not None
                    held[name, long] += interval.low <= values[long] <= interval.high
    print()
    cases = len(VARIANTS) * seeds
    for (name, long), count in held.items():
        print(f"{name}: the interval holds the figure of {long} in {count} of {cases} cases")


def _rows(model: LoadedModel, prompt: Sequence[int], rest: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    return iter([part.copy() for part in model.score([*prompt, *rest[:-1]], first=len(prompt) - 1)])


def columns(model: LoadedModel, scored: Scored, folder: Path) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """KLD of each position and the prompt or chunk that it belongs to."""
    score_columns(model, scored, folder, folder / "columns.npz", threads=THREADS)
    with np.load(folder / "columns.npz", allow_pickle=False) as found:
        return found["kld"], found["prompt"]


if __name__ == "__main__":
    main()
