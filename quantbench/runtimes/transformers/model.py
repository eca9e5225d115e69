"""What the methods that load through transformers share: decoding, scoring and byte counts of a causal LM."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise, repeat
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from quantbench.core.protocols import SCORE_POSITIONS, Sampling, Settings, until_end
from quantbench.core.trace import Decoding, WeightMemory
from quantbench.runtimes.transformers.decoding import WAYS, Eager, Way, try_way, with_device_step
from quantbench.runtimes.transformers.devices import placed, places_of, settings_on, wait_for
from quantbench.runtimes.transformers.random_weights import load_random
from quantbench.runtimes.transformers.sampled import sample_together

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def load_pretrained(settings: Settings, device: str, **options: Any) -> Any:
    """``AutoModelForCausalLM.from_pretrained`` with what every method here needs: safetensors, eval mode, nothing offloaded.

    A dummy's weights are made meanwhile.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(settings.threads)
    checkpoint = settings.checkpoint
    if checkpoint.random_weights:
        load = partial(load_random, checkpoint)
    else:
        trust = checkpoint.trust_remote_code
        load = partial(AutoModelForCausalLM.from_pretrained, checkpoint.path, use_safetensors=True, trust_remote_code=trust)
    return placed(device, partial(load, **options)).eval()


class TransformersModel:
    """A LoadedModel over a transformers causal LM: batch of one, KV cache of the model's own dtype, no sampling warper."""

    def __init__(
        self,
        model: Any,
        kernel: str,
        state_bytes: Callable[[Any], int] = lambda _: 0,
        counts: Callable[[Any, int], Mapping[str, int | None]] = lambda model, weight_bytes: {},  # noqa: ARG005
        found: Mapping[str, str] = MappingProxyType({}),
        *,
        state_kind: str = "quantization_state",
        decode_path: str = "",
        untimed: str = "",
    ) -> None:
        """``kernel`` names what runs; ``state_bytes`` counts in the model what is neither parameter nor buffer.

        ``state_kind`` says what that is. ``counts`` gives further fields of WeightMemory from the model and its weight bytes;
        ``found`` are further facts. ``decode_path`` is the usual one of what
        runs here; empty means a CUDA graph on a GPU, and eager on a CPU. ``untimed`` says why it must not be timed.
        """
        self.model = model
        self.untimed = untimed
        self._kernel = kernel
        self._state_bytes = state_bytes
        self._counts = counts
        self._found = found
        self._state_kind = state_kind
        self._usual_path = decode_path or ("graph" if model.device.type == "cuda" else "eager")
        self._eager = Eager(model, 0)
        self._ways: dict[int, Way] = {}

    @property
    def facts(self) -> Mapping[str, str]:
        """Kernel class, device, KV cache dtype and attention implementation; on a GPU torch's settings too."""
        device = found_device(self.model)
        return {
            "kernel": self._kernel,
            "device": device,
            "kv_dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": str(self.model.config._attn_implementation),  # noqa: SLF001 - it has no public name
            **settings_on(device),
            **self._found,
        }

    def generate(self, prompt: Sequence[int], limit: int, sampling: Sampling | None = None) -> Iterator[int]:
        """See LoadedModel."""
        return (int(ids) for ids in self._way(1).steps([prompt], limit, _chooser(sampling)))

    def generate_batch(self, prompts: Sequence[Sequence[int]], limit: int) -> Iterator[Sequence[int]]:
        """See Batched. One forward pass a step for all; no row is padded."""
        return (ids[:, 0].tolist() for ids in self._way(len(prompts)).steps(prompts, limit, _chooser(None)))

    def decode_by(self, path: str, prompts: Sequence[Sequence[int]], limit: int, positions: int) -> Decoding:
        """See Decodes."""
        name = path or self._usual_path
        kept = next((way for way in self._ways.values() if way.name == name), None)  # a compiled step serves every batch
        way, decoding = try_way(kept or WAYS[name](self.model, positions), prompts, limit)
        self._ways[len(prompts)] = way
        return with_device_step(way, decoding, prompts, positions)

    def _way(self, sequences: int) -> Way:
        """How so many sequences are decoded together."""
        return self._ways.get(sequences, self._eager)

    def sample_together(
        self, prompts: Sequence[Sequence[int]], limit: int, samplings: Sequence[Sampling], ends: Container[int]
    ) -> Sequence[tuple[int, ...]]:
        """See SamplesTogether."""
        together = sample_together(self.model, prompts, limit, samplings, ends)
        if together is not None:
            return together
        return [until_end(self.generate(*each), ends) for each in zip(prompts, repeat(limit), samplings, strict=False)]

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See LoadedModel. The model's own forward pass with its cache."""
        return self.score_sliced(tokens, first, SCORE_POSITIONS)

    def score_sliced(self, tokens: Sequence[int], first: int, positions: int) -> Iterator[NDArray[np.float32]]:
        """See Sliced."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([list(tokens)], device=self.model.device)
        # What comes before `first` only fills the cache, in passes of its own as when a prompt is read before it is answered:
        # one pass over both would give all of it one scale where activations are quantized as they come.
        edges = [*range(0, first, positions), *range(first, len(tokens), positions), len(tokens)]
        with torch.inference_mode():
            for start, end in pairwise(edges):
                scored = start >= first
                logits = self.model(
                    input_ids=ids[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=0 if scored else 1
                ).logits
                if scored:
                    yield logits[0].float().cpu().numpy()

    def memory(self) -> WeightMemory:
        """Bytes of distinct parameter and buffer storages, plus the quantization state."""
        by_kind = {**bytes_by_kind(self.model), self._state_kind: self._state_bytes(self.model)}
        total = sum(by_kind.values())
        counts = {**_step_counts(self.model, total), **self._counts(self.model, total)}
        return WeightMemory(by_kind=by_kind, footprint_bytes=self.model.get_memory_footprint(), **counts)

    def synchronize(self) -> None:
        """Wait for every GPU in use; the CPU works synchronously."""
        wait_for(self._gpus)

    @cached_property
    def _gpus(self) -> list[str]:
        """Determined once: asking every parameter takes longer than a step of a small model."""
        return places_of(found_device(self.model))


def bytes_by_kind(module: Any) -> dict[str, int]:
    """Bytes of a module's parameters and buffers, and of what wrapper subclasses among them hold; each storage counts once."""
    kinds = {"parameters": 0, "buffers": 0}
    seen: set[int] = set()
    for kind, tensors in (("parameters", module.parameters()), ("buffers", module.buffers())):
        for tensor in tensors:
            name = "tensor_subclasses" if hasattr(tensor, "__tensor_flatten__") else kind
            kinds[name] = kinds.get(name, 0) + sum(distinct_bytes([tensor], seen))
    return kinds


def distinct_bytes(tensors: Any, seen: set[int] | None = None) -> Iterator[int]:
    """Bytes of each storage once, however many tensors share it, in whole or in part; ``seen`` are those counted before."""
    known = set() if seen is None else seen
    for tensor in tensors:
        for stored in _stored(tensor):
            storage = stored.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                yield storage.nbytes()


def found_device(module: Any) -> str:
    """Where a module's parameters and saved buffers are: ``cuda:0``, several places joined by ``+``; empty if it has none."""
    saved = (
        buffer
        for each in module.modules()
        for name, buffer in each.named_buffers(recurse=False)
        if name not in each._non_persistent_buffers_set  # noqa: SLF001 - it has no public name
    )
    return "+".join(sorted({str(tensor.device) for tensor in (*module.parameters(), *saved)}))


def _step_counts(model: Any, weight_bytes: int) -> dict[str, int | None]:
    """What a decode step reads; unknown for experts, of which it reads some, and for caches that do not keep everything."""
    config = model.config.get_text_config()
    experts = any("expert" in name and isinstance(count, int) and count > 1 for name, count in config.to_dict().items())
    step = None if experts else weight_bytes - _unread_rows(model)
    limited = any(getattr(config, name, None) for name in ("sliding_window", "kv_lora_rank"))
    heads = getattr(config, "num_attention_heads", None)
    if limited or not heads or set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return {"step_bytes": step}
    kept = (getattr(config, "num_key_value_heads", None) or heads) * (
        getattr(config, "head_dim", None) or config.hidden_size // heads
    )
    return {"step_bytes": step, "cache_position_bytes": 2 * config.num_hidden_layers * kept * model.dtype.itemsize}


def _unread_rows(model: Any) -> int:
    """Bytes of the input embedding less one row; none where the output layer reads the same weights."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and getattr(output, "weight", None) is embedding.weight:
        return 0
    table = sum(distinct_bytes(embedding.parameters()))
    return table - table // int(embedding.weight.shape[0])


def _stored(tensor: Any) -> Iterator[Any]:
    """The tensor itself, or what a wrapper subclass really holds: its own shape and dtype are those of the dense tensor."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _stored(getattr(tensor, name))


def _chooser(sampling: Sampling | None) -> Any:
    """A function from logits [1, vocabulary] to the next id [1, 1]."""
    import torch

    if sampling is None:
        return lambda logits: logits.argmax(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(sampling.seed)

    def draw(logits: Any) -> Any:
        probabilities = torch.softmax(logits.float().cpu() / sampling.temperature, dim=-1)
        return torch.multinomial(probabilities, 1, generator=generator).to(logits.device)

    return draw
