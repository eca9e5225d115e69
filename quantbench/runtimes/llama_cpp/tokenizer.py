"""The tokenizer of a GGUF file, which is llama.cpp's own."""

from __future__ import annotations

from collections.abc import Sequence

from quantbench.core.errors import ModelError
from quantbench.core.job import Checkpoint
from quantbench.models.chat import TEMPLATE_KEY, Template
from quantbench.models.gguf import GgufHeader
from quantbench.runtimes.llama_cpp.templates import unread

_SPECIAL = ("bos", "eos", "sep", "pad", "mask")
"""Special tokens that a template may write, as llama.cpp and transformers name them."""


class GgufTokenizer:
    """A Tokenizer by the vocabulary of a file."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """ModelError if it has no vocabulary that can be read."""
        import llama_cpp
        from llama_cpp import Llama, llama_model_get_vocab, llama_vocab_is_eog

        header = GgufHeader(checkpoint.path)
        self.context_limit = header.get(f"{header.get('general.architecture')}.context_length")
        self._name, self._source = checkpoint.name, header.get(TEMPLATE_KEY) or ""
        try:
            with unread():
                self._llama = Llama(str(checkpoint.path), vocab_only=True, verbose=False)
        except ValueError as error:
            raise ModelError(
                f"{checkpoint.path} is cut short or damaged: llama.cpp cannot read its vocabulary; make or download it again"
            ) from error
        vocabulary = llama_model_get_vocab(self._llama.model)
        self.ends = frozenset(each for each in range(self._llama.n_vocab()) if llama_vocab_is_eog(vocabulary, each))
        numbers = {f"{kind}_token": getattr(llama_cpp, f"llama_vocab_{kind}")(vocabulary) for kind in _SPECIAL}
        self._special = {
            name: llama_cpp.llama_vocab_get_text(vocabulary, number).decode("utf-8", "replace")
            for name, number in numbers.items()
            if number >= 0
        }
        self.bos = self._special.get("bos_token", "")

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, with BOS in front where the model was trained with one."""
        return list(self._llama.tokenize(text.encode(), add_bos=True, special=True))

    def encode_literal(self, text: str) -> list[int]:
        """The same for a running text, in which nothing is a special token."""
        return list(self._llama.tokenize(text.encode(), add_bos=True, special=False))

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a text that the template made: with its special tokens, and without a BOS but its own."""
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=True))

    @property
    def template(self) -> Template:
        """The chat template, with the special tokens that it may write."""
        return Template(source=self._source, special=self._special, owner=self._name)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``."""
        text: bytes = self._llama.detokenize(list(tokens))
        return text.decode("utf-8", "replace")

    def backend(self) -> None:
        """None: llama.cpp decodes by itself."""
