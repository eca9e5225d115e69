"""Named prompt sets: text files shipped here, one prompt a line, or a file of the user's own.

``mixed`` is the default: 32 beginnings of several kinds, enough for the intervals of many clusters; all are scored, the first
ten are timed and answered. It estimates the mean KLD per position of running text as llama-perplexity scores it in chunks of
128, the second half of each: on the canary it is -3 to +7 % off that (seven variants), and its intervals hold that figure in 19
of 21 cases. Its other 22 prompts are two passages each, since the first ten, which are shorter, come out higher. Further into a
text the KLD is lower, by 8 to 15 % in chunks of 512: for a figure beside llama-perplexity's take ``text:FILE``. ``ten`` is
quick and good for the order of variants, not for the size of a distance.
bench/harness/prompt_sets.py compares them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.scenario import MIN_LENGTH, SEEDED_INPUTS, TEXT_PREFIX, TOKENS_PREFIX, prompt_tokens

_LONG = "ten"
"""The shipped prompts that a prompt of any length is made of."""

_BATCHED = re.compile(r"(?P<name>.+)@(?P<batch>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Prompts under one name; none under the name that stands for seeded inputs. A text is one prompt.

    Where ``tokens`` is not 0, the one prompt is repeated, and cut, to so many.
    """

    name: str
    prompts: tuple[str, ...]
    is_text: bool = False
    tokens: int = 0

    @property
    def alone(self) -> bool:
        """Whether it gets a job of its own: it sets the context of all that a job measures, or takes long."""
        return self.is_text or self.tokens > 0

    def content_hash(self, batch: int = 1) -> str:
        """sha256 of the prompts and of how many are answered together; of seeded inputs their name, which says all of them."""
        if self.name == SEEDED_INPUTS:
            return SEEDED_INPUTS
        sized = [f"tokens {self.tokens}"] * (self.tokens > 0) + [f"batch {batch}"] * (batch > 1)
        return hashlib.sha256("\0".join([*self.prompts, *sized]).encode()).hexdigest()


@cache
def names() -> tuple[str, ...]:
    """The prompt sets that are shipped."""
    return tuple(sorted(entry.name.removesuffix(".txt") for entry in files(__name__).iterdir() if entry.name.endswith(".txt")))


def parse(text: str) -> tuple[str, int]:
    """A set as people ask for it: ``SET``, or ``SET@B`` for one of which B sequences are answered together.

    UsageError for a batch that cannot be; what the set is called is ``check_name``'s to judge.
    """
    found = _BATCHED.fullmatch(text)
    name, batch = (found["name"], int(found["batch"])) if found else (text, 1)
    if batch < 1 or (batch > 1 and (name == SEEDED_INPUTS or name.startswith(TEXT_PREFIX))):
        raise UsageError(f"{name!r} cannot be answered {batch} at a time; give a set such as 'ten' and a batch from 1 on")
    return name, batch


def check_name(name: str) -> None:
    """UsageError with the nearest names unless ``name`` is shipped, is a file, a text, ``tokens:N`` or seeded inputs."""
    if name.startswith(TOKENS_PREFIX):
        if prompt_tokens(name) < MIN_LENGTH:
            raise UsageError(f"prompt set {name!r} has no length; write tokens:N with N from {MIN_LENGTH} on")
        return
    if name.startswith(TEXT_PREFIX):
        if not Path(name.removeprefix(TEXT_PREFIX)).is_file():
            raise UsageError(f"text file {name.removeprefix(TEXT_PREFIX)!r} does not exist; give text:FILE with a UTF-8 text")
        return
    if name not in (*names(), SEEDED_INPUTS) and not Path(name).is_file():
        if name.endswith(".txt") or "/" in name:
            raise UsageError(f"prompt file {name!r} does not exist; give a text file with one prompt a line")
        raise unknown_name("prompt set", name, names())


def load(name: str) -> PromptSet:
    r"""A shipped prompt set by name, or a text file with one prompt a line (blank lines and ``#`` lines are left out).

    In a line, ``\n`` stands for a newline. Raises UsageError for an unknown name, a file that is no UTF-8 text, or one
    without prompts. ``text:FILE`` is the whole file as it is; ``tokens:N`` one prompt of N tokens.
    """
    check_name(name)
    if name == SEEDED_INPUTS:
        return PromptSet(name=name, prompts=())
    if name.startswith(TEXT_PREFIX):
        return _text(name)
    if name.startswith(TOKENS_PREFIX):
        return PromptSet(name=name, prompts=(" ".join(_lines(_LONG)),), tokens=prompt_tokens(name))
    return PromptSet(name=name, prompts=_lines(name))


def _lines(name: str) -> tuple[str, ...]:
    """The prompts of a shipped set, or of a file."""
    try:
        source = (files(__name__) / f"{name}.txt") if name in names() else Path(name)
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"prompt file {name!r} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    lines = (line.strip() for line in text.splitlines())
    prompts = tuple(line.replace("\\n", "\n") for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise UsageError(f"prompt set {name!r} has no prompts; write one prompt a line")
    return prompts


def _text(name: str) -> PromptSet:
    """A file byte for byte but for one newline at its end, which llama-perplexity takes off as well."""
    path = Path(name.removeprefix(TEXT_PREFIX))
    try:
        text = path.read_bytes().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"text file {str(path)!r} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"text file {str(path)!r} cannot be read ({error.strerror}); give one that can") from error
    if not text.strip():
        raise UsageError(f"text file {str(path)!r} is empty; give a text of at least two chunks")
    return PromptSet(name=name, prompts=(text,), is_text=True)
