"""What the methods that load through transformers share: decoding, scoring and byte counts of a causal LM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from quantbench.methods import Sampling, Settings
from quantbench.trace import WeightMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SCORE_LOGIT_BYTES = 64 * 2**20
"""Logits of one scoring chunk take at most this much."""


def load_pretrained(settings: Settings, device: str, **options: Any) -> Any:
    """``AutoModelForCausalLM.from_pretrained`` with what every method here wants: safetensors, eval mode, one device."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(settings.threads)
    checkpoint = settings.checkpoint
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        use_safetensors=True,
        trust_remote_code=checkpoint.trust_remote_code,
        device_map=None if device == "cpu" else device,
        **options,
    )
    return model.eval()


class TransformersModel:
    """A LoadedModel over a transformers causal LM: batch of one, KV cache of the model's own dtype, no sampling warper."""

    def __init__(
        self,
        model: Any,
        kernel: str,
        state_bytes: Callable[[Any], int] = lambda _: 0,
        counts: Callable[[Any, int], Mapping[str, int | None]] = lambda model, weight_bytes: {},  # noqa: ARG005
        found: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """``kernel`` names what runs; ``state_bytes`` counts in the model what is neither parameter nor buffer.

        ``counts`` gives further fields of WeightMemory from the model and its weight bytes; ``found`` are further facts.
        """
        self.model = model
        self._kernel = kernel
        self._state_bytes = state_bytes
        self._counts = counts
        self._found = found

    @property
    def facts(self) -> Mapping[str, str]:
        """Kernel class, KV cache dtype and attention implementation."""
        return {
            "kernel": self._kernel,
            "kv_dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": str(self.model.config._attn_implementation),  # noqa: SLF001 - it has no public name
            **self._found,
        }

    def generate(self, prompt: Sequence[int], limit: int, sampling: Sampling | None = None) -> Iterator[int]:
        """See LoadedModel."""
        import torch
        from transformers import DynamicCache

        choose = _chooser(sampling)
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([list(prompt)], device=self.model.device)
        with torch.inference_mode():
            for _ in range(limit):
                logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                ids = choose(logits[:, -1])
                yield int(ids)

    def score(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See LoadedModel. The model's own forward pass with its cache, in chunks of bounded size."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([list(tokens)], device=self.model.device)
        step = max(1, _SCORE_LOGIT_BYTES // (4 * self.model.config.vocab_size))
        edges = [0, *range(first, len(tokens), step), len(tokens)]
        with torch.inference_mode():
            for start, end in pairwise(sorted(set(edges))):
                keep = 1 if end <= first else 0  # 0 keeps all; what comes before `first` only fills the cache
                logits = self.model(
                    input_ids=ids[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=keep
                ).logits
                if start >= first:
                    yield logits[0].float().cpu().numpy()

    def memory(self) -> WeightMemory:
        """Bytes of distinct parameter and buffer storages, plus the quantization state."""
        by_kind = {
            "parameters": sum(distinct_bytes(self.model.parameters())),
            "buffers": sum(distinct_bytes(self.model.buffers())),
            "quantization_state": self._state_bytes(self.model),
        }
        counts = self._counts(self.model, sum(by_kind.values()))
        return WeightMemory(by_kind=by_kind, footprint_bytes=self.model.get_memory_footprint(), **counts)

    def synchronize(self) -> None:
        """Wait for CUDA; the CPU works synchronously."""
        if self.model.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.model.device)


def distinct_bytes(tensors: Any) -> Iterator[int]:
    """Bytes of each storage once, however many tensors share it."""
    seen: set[int] = set()
    for tensor in tensors:
        for stored in _stored(tensor):
            if stored.data_ptr() not in seen:
                seen.add(stored.data_ptr())
                yield stored.numel() * stored.element_size()


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
