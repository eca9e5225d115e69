"""The tokenizer of a GGUF file, which is llama.cpp's own."""

from __future__ import annotations

from collections.abc import Sequence

from quantbench.core.errors import ModelError
from quantbench.core.job import Checkpoint
from quantbench.models.gguf import GgufHeader


class GgufTokenizer:
    """A Tokenizer by the vocabulary of a file."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """ModelError if it has no vocabulary that can be read."""
        from llama_cpp import Llama, llama_model_get_vocab, llama_vocab_is_eog

        header = GgufHeader(checkpoint.path)
        self.context_limit = header.get(f"{header.get('general.architecture')}.context_length")
        try:
            self._llama = Llama(str(checkpoint.path), vocab_only=True, verbose=False)
        except ValueError as error:
            raise ModelError(
                f"{checkpoint.path} is cut short or damaged: llama.cpp cannot read its vocabulary; make or download it again"
            ) from error
        vocabulary = llama_model_get_vocab(self._llama.model)
        self.ends = frozenset(each for each in range(self._llama.n_vocab()) if llama_vocab_is_eog(vocabulary, each))

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, with BOS in front where the model was trained with one."""
        return list(self._llama.tokenize(text.encode(), add_bos=True, special=True))

    def encode_literal(self, text: str) -> list[int]:
        """The same for a running text, in which nothing is a special token."""
        return list(self._llama.tokenize(text.encode(), add_bos=True, special=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``."""
        text: bytes = self._llama.detokenize(list(tokens))
        return text.decode("utf-8", "replace")

    def backend(self) -> None:
        """None: llama.cpp decodes by itself."""
