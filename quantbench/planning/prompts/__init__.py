"""Named prompt sets: text files shipped here, one prompt per line, or a file of the user's own; ``.jsonl`` holds conversations.

``chat`` is the default of models with a chat template: 32 conversations of several kinds. ``mixed`` is that of the others: 32
openings of several kinds. Either is enough clusters for the intervals; all are scored, the first ten are timed and answered.
``mixed`` estimates the mean KLD per position of running text as llama-perplexity scores it in chunks of 128 (the
second half of each): on the canary it is off by -3 to +7 % (seven variants), and its intervals cover that figure in 19 of 21
cases. Its other 22 prompts are two passages each, since the first ten, which are shorter, come out higher. Further into a text
the KLD is lower, by 8 to 15 % in chunks of 512: for a figure comparable to llama-perplexity's use ``text:FILE``. ``ten`` is
quick and ranks variants well, but does not size their distances.
bench/harness/prompt_sets.py compares them.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import astuple, dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from quantbench.core.conversation import Conversation, transcript
from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.outside import is_file, read_bytes, read_text, whole_number
from quantbench.core.scenario import MIN_LENGTH, SEEDED_INPUTS, TEXT_PREFIX, TOKENS_PREFIX, prompt_tokens
from quantbench.planning.prompts._conversations import SUFFIX, read_conversations

_LONG = "ten"
"""The shipped prompts from which a prompt of any length is made."""

_BATCHED = re.compile(r"(?P<name>.+)@(?P<batch>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Prompts under one name; seeded inputs have none, and a text is a single prompt.

    Where ``tokens`` is not 0, the single prompt is repeated and cut to that many tokens. Where there are ``conversations``,
    those are asked, and ``prompts`` are how they are shown.
    """

    name: str
    prompts: tuple[str, ...]
    conversations: tuple[Conversation, ...] = ()
    is_text: bool = False
    tokens: int = 0

    @property
    def alone(self) -> bool:
        """Whether it gets its own job: it takes long, or would set the context for everything else in the job."""
        return self.is_text or self.tokens > 0

    def content_hash(self, batch: int = 1) -> str:
        """sha256 of the prompts and of how many are answered together; for seeded inputs just their name.

        The template that makes texts of conversations is a part of the model, and hashed with its files.
        """
        if self.name == SEEDED_INPUTS:
            return SEEDED_INPUTS
        sized = [f"tokens {self.tokens}"] * (self.tokens > 0) + [f"batch {batch}"] * (batch > 1)
        # No plain prompt is empty, so a set that begins with one is none.
        asked = ["", *map(_as_json, self.conversations)] if self.conversations else self.prompts
        return hashlib.sha256("\0".join([*asked, *sized]).encode()).hexdigest()


@cache
def names() -> tuple[str, ...]:
    """The shipped prompt sets."""
    return tuple(sorted(_shipped()))


@cache
def _shipped() -> dict[str, Traversable]:
    """Their files by name."""
    suffixes = (".txt", SUFFIX)
    return {Path(entry.name).stem: entry for entry in files(__name__).iterdir() if entry.name.endswith(suffixes)}


def parse(text: str) -> tuple[str, int]:
    """A set's name and batch, from ``SET`` or ``SET@B``, with B sequences answered together.

    UsageError for an impossible batch; the name itself is checked by ``check_name``.
    """
    found = _BATCHED.fullmatch(text)
    name, batch = (found["name"], whole_number(found["batch"])) if found else (text, 1)
    if not batch or (batch > 1 and (name == SEEDED_INPUTS or name.startswith(TEXT_PREFIX))):
        at_once = found["batch"] if found else batch
        raise UsageError(f"{name!r} cannot be answered {at_once} at a time; give a set such as 'ten' and a batch of at least 1")
    return name, batch


def check_name(name: str) -> None:
    """UsageError with the nearest names unless ``name`` is shipped, is a file, a text, ``tokens:N`` or seeded inputs."""
    if name.startswith(TOKENS_PREFIX):
        if prompt_tokens(name) < MIN_LENGTH:
            raise UsageError(f"prompt set {name!r} has no length; write tokens:N with N of at least {MIN_LENGTH}")
        return
    if name.startswith(TEXT_PREFIX):
        if not is_file(name.removeprefix(TEXT_PREFIX)):
            raise UsageError(f"text file {name.removeprefix(TEXT_PREFIX)!r} does not exist; give text:FILE with UTF-8 text")
        return
    if name not in (*names(), SEEDED_INPUTS) and not is_file(name):
        if name.endswith(SUFFIX):
            raise UsageError(f"prompt file {name!r} does not exist; give a JSONL file with one conversation per line")
        if name.endswith(".txt") or "/" in name:
            raise UsageError(f"prompt file {name!r} does not exist; give a text file with one prompt per line")
        raise unknown_name("prompt set", name, names())


def load(name: str) -> PromptSet:
    r"""A shipped prompt set by name, or a text file with one prompt per line (blank lines and ``#`` lines are left out).

    In a line, ``\n`` stands for a newline. A ``.jsonl`` file has conversations, one object with ``messages`` per line. Raises
    UsageError for an unknown name, a file that is not UTF-8 text, or one without prompts. ``text:FILE`` is the whole file as
    one prompt; ``tokens:N`` is one prompt of N tokens.
    """
    check_name(name)
    if name == SEEDED_INPUTS:
        return PromptSet(name=name, prompts=())
    if name.startswith(TEXT_PREFIX):
        return _text(name)
    if name.startswith(TOKENS_PREFIX):
        return PromptSet(name=name, prompts=(" ".join(_lines(_LONG)),), tokens=prompt_tokens(name))
    if _source(name).name.endswith(SUFFIX):
        conversations = read_conversations(_content(name), name)
        return PromptSet(name=name, prompts=tuple(map(transcript, conversations)), conversations=conversations)
    return PromptSet(name=name, prompts=_lines(name))


def _source(name: str) -> Traversable:
    """The file of a shipped set, or the user's own."""
    return _shipped().get(name) or Path(name)


def _content(name: str) -> str:
    try:
        source = _source(name)
        return read_text(source, "utf-8-sig") if isinstance(source, Path) else source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"prompt file {name!r} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"prompt file {name!r} cannot be read ({error.strerror}); give a readable one") from error


def _as_json(conversation: Conversation) -> str:
    return json.dumps([astuple(message) for message in conversation])


def _lines(name: str) -> tuple[str, ...]:
    """The prompts of a shipped set, or of a file."""
    lines = (line.strip() for line in _content(name).splitlines())
    prompts = tuple(line.replace("\\n", "\n") for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise UsageError(f"prompt set {name!r} has no prompts; write one prompt per line")
    return prompts


def _text(name: str) -> PromptSet:
    """A file byte for byte, except for one final newline, which llama-perplexity removes too."""
    path = Path(name.removeprefix(TEXT_PREFIX))
    try:
        text = read_bytes(path).decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"text file {str(path)!r} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"text file {str(path)!r} cannot be read ({error.strerror}); give a readable one") from error
    if not text.strip():
        raise UsageError(f"text file {str(path)!r} is empty; give a text of at least two chunks")
    return PromptSet(name=name, prompts=(text,), is_text=True)
