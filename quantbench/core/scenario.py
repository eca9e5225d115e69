"""What is measured: a model, a variant of it, a prompt set, and the conditions that change the result."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import PurePath
from typing import Literal
from urllib.parse import urlsplit

from quantbench.core.errors import UsageError

MIN_LENGTH = 2
SEEDED_INPUTS = "seeded"
"""The prompt set of a model without tokens: seeded random inputs."""

DUMMY_PREFIX = "dummy:"
"""``dummy:NAME_OR_CONFIG`` is a model too: a real architecture with random weights."""

TEXT_PREFIX = "text:"
"""``text:FILE`` is a prompt set too: a running text that is scored and not answered."""

TOKENS_PREFIX = "tokens:"
"""``tokens:N`` is a prompt set too: one prompt of N tokens."""

Reads = Literal["prompts", "text", "inputs"]
"""What a scenario gives its model: prompts to answer, a text to score, or seeded inputs for a module without tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """One precision that a method offers; ``bits`` is the nominal figure its name promises, None where it promises none.

    One that is not ``usual`` is measured only where it is named; one that is not ``first``, on a model of one's own, only
    where it or its method is, and so on a CPU one that is not ``first_on_cpu``.
    """

    name: str
    bits: float | None
    title: str = ""
    usual: bool = True
    first: bool = True
    first_on_cpu: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A method at a precision. A control is the reference measured once more in a process of its own: the noise floor."""

    method: str
    precision: str
    control: bool = False

    @property
    def label(self) -> str:
        """The middle part of a scenario id, for example ``gguf-q4_k_m``."""
        return f"{self.method}-{self.precision}" + ("-control" if self.control else "")

    @property
    def name(self) -> str:
        """``method/precision``, as options and columns spell it."""
        return f"{self.method}/{self.precision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Where a server is: ``url`` up to and with ``/v1``, without a slash at its end; ``model`` is empty where none is named."""

    url: str
    model: str


def parse_server(text: str) -> ServerAddress:
    """Read ``http(s)://HOST[:PORT]/v1[#MODEL]``. UsageError for anything else, and for a URL that holds a secret."""
    try:
        parts = urlsplit(text)
        named = bool(parts.hostname) and parts.port != 0  # an impossible port raises here
    except ValueError:
        parts, named = urlsplit(""), False
    if set("@?") & set(text.partition("#")[0]):  # not quoted: what stands there may be a secret
        raise UsageError("the server's URL holds a user, a password or a query; leave it out and set QUANTBENCH_SERVER_KEY")
    if parts.scheme not in ("http", "https") or not named or not text.isprintable() or " " in text:
        raise UsageError(f"server {text!r} is no URL; write it like http://localhost:8080/v1, with #MODEL after it if need be")
    return ServerAddress(url=f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", model=parts.fragment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What is asked besides the three axes, and changes what is measured.

    Lengths are in tokens: ``output_tokens`` are timed, ``answer_tokens`` are compared as greedy text,
    ``continuation_tokens`` are scored teacher-forced, or fewer where the reference ends before. ``context`` 0 stands for the
    shortest that holds all of these. Only the first ``answered_prompts`` of a set are timed and answered greedily (0: all): an
    answer costs many times what it costs to score a prompt, and similarity wants many prompts.
    ``threads`` 0 stands for every core that this process may use. ``calibration`` is a text file for methods that calibrate
    or train; empty stands for text sampled from the model itself. ``server`` is what the method ``server`` asks: a URL, or
    ``gguf/PRECISION`` for a server started here; ``concurrency`` is the most requests that it gets at once. Of a text at
    most ``chunks`` chunks are scored, 0 stands for all; a chunk is as long as ``context``, by default 512 tokens.
    """

    reference: str = "torch/fp32"
    device: str = "cpu"
    threads: int = 0
    context: int = 0
    output_tokens: int = 32
    answer_tokens: int = 64
    continuation_tokens: int = 64
    answered_prompts: int = 10
    seed: int = 0
    calibration: str = ""
    server: str = ""
    concurrency: int = 4
    chunks: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for figures that cannot be measured."""
        for name in ("output_tokens", "answer_tokens", "continuation_tokens"):
            if getattr(self, name) < MIN_LENGTH:
                raise UsageError(f"{name} is {getattr(self, name)}; ask for at least {MIN_LENGTH} tokens")
        for name in ("threads", "context", "seed", "chunks", "answered_prompts"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it cannot be negative")
        if self.server and not self.server.startswith("gguf/"):
            parse_server(self.server)
        if self.concurrency < 1:
            raise UsageError(f"concurrency is {self.concurrency}; ask for at least one request at a time")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"device {self.device!r} is not known; use cpu, cuda or cuda:N")


METHODS_OWN = ("calibration", "server", "concurrency")
"""Conditions that only some methods heed; those put them into the key themselves."""


TEXTS_OWN = ("chunks",)
"""Conditions that only a text heeds."""


def at_batch(prompts: str, batch: int) -> str:
    """The name of a prompt set of which ``batch`` sequences are answered together: ``ten@8``, and ``ten`` where it is one."""
    return prompts if batch == 1 else f"{prompts}@{batch}"


def prompt_tokens(prompts: str) -> int:
    """The length of each prompt where a prompt set's name says it, as ``tokens:512`` does; 0 elsewhere."""
    length = prompts.removeprefix(TOKENS_PREFIX) if prompts.startswith(TOKENS_PREFIX) else ""
    return int(length) if length.isdecimal() else 0


def reads(prompts: str) -> Reads:
    """What a prompt set of that name gives a model."""
    if prompts == SEEDED_INPUTS:
        return "inputs"
    return "text" if prompts.startswith(TEXT_PREFIX) else "prompts"


@cache  # a matrix of thousands has few names
def short_name(name: str) -> str:
    """A model or prompt set as an id shows it: names and hub ids as they are, of a path its last part."""
    if name.startswith(TEXT_PREFIX):
        return TEXT_PREFIX + PurePath(name.removeprefix(TEXT_PREFIX)).name.removesuffix(".txt")
    if name.startswith(DUMMY_PREFIX):
        return DUMMY_PREFIX + short_name(name.removeprefix(DUMMY_PREFIX).removesuffix("/config.json"))
    is_path = name.startswith((".", "/", "~")) or name.endswith((".gguf", ".txt"))
    last = PurePath(name).name or name
    return last.removesuffix(".gguf").removesuffix(".txt") if is_path else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a method is asked to open: a variant of a model, under conditions. It has no part in what it will be asked."""

    model: str
    variant: Variant
    conditions: Conditions = field(default_factory=Conditions)

    def reference(self) -> Spec:
        """That of the reference, under the same conditions."""
        method, _, precision = self.conditions.reference.partition("/")
        return replace(self, variant=Variant(method=method, precision=precision))


JobKey = tuple[str, Variant, Conditions, int]
"""What scenarios share that are measured in one load of the model: its name, variant, conditions, repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Model x method x precision x prompt set. ``id`` is the row key, with ``repeat``, and without repeats the pytest id.

    ``batch`` sequences are answered together. A repeat is the same scenario once more in a fresh process; it is no part of
    what was asked, so keys stay equal.
    """

    model: str
    variant: Variant
    prompts: str
    conditions: Conditions = field(default_factory=Conditions)
    batch: int = 1
    repeat: int = 0

    @property
    def id(self) -> str:
        """``model/method-precision/prompts``, for example ``canary/gguf-q4_k_m/ten``; of a path, its last part.

        Where several sequences are answered together, ``@`` and their number follow: ``canary/gguf-q4_k_m/ten@8``.
        """
        return f"{short_name(self.model)}/{self.variant.label}/{at_batch(short_name(self.prompts), self.batch)}"

    @property
    def test_id(self) -> str:
        """The pytest id: ``id``, and for repeats ``#2``, ``#3`` after it."""
        return f"{self.id}#{self.repeat + 1}" if self.repeat else self.id

    @property
    def is_reference(self) -> bool:
        """Whether this is the unquantized model that the others are compared with (a control is not)."""
        return self.variant.name == self.conditions.reference and not self.variant.control

    @property
    def reads(self) -> Reads:
        """What the model is given."""
        return reads(self.prompts)

    @property
    def spec(self) -> Spec:
        """What its method is asked to open."""
        return Spec(model=self.model, variant=self.variant, conditions=self.conditions)

    @property
    def job(self) -> JobKey:
        """Scenarios with an equal job share one load of the model."""
        return self.model, self.variant, self.conditions, self.repeat

    def reference(self) -> Scenario:
        """The scenario of the reference for the same model and prompts, which are compared one by one."""
        return replace(self, variant=self.spec.reference().variant, batch=1, repeat=0)

    def heeded(self) -> dict[str, str | int]:
        """The conditions that count here, by name: not those that some other method or a text alone heeds."""
        others = METHODS_OWN if self.reads == "text" else (*METHODS_OWN, *TEXTS_OWN)
        return {name: value for name, value in asdict(self.conditions).items() if name not in others}

    def key(self, identity: Mapping[str, str]) -> str:
        """sha256 of what was asked and changes what is measured.

        ``identity`` is the content behind the names of model and prompts (revision and hashes), known at run time only, and
        what the method asks besides: calibration, kernel, server.
        """
        asked = {"variant": asdict(self.variant), "conditions": self.heeded(), "identity": dict(identity)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to try; stays out of the scenario key.

    ``precision`` is the half-width of the confidence interval of the median, relative, at which rounds stop. ``most_scored``
    tokens of a prompt's continuation are sampled and scored at most, whatever the conditions ask for.
    """

    min_rounds: int = 6
    max_rounds: int = 30
    budget_s: float = 2.0
    precision: float = 0.02
    timeout_s: float = 900.0
    most_scored: int = sys.maxsize

    def asked(self, conditions: Conditions) -> Conditions:
        """The conditions with continuations no longer than ``most_scored``: less is asked for, so that keys differ."""
        return replace(conditions, continuation_tokens=min(conditions.continuation_tokens, self.most_scored))


PROFILES: Mapping[str, Effort] = {
    "quick": Effort(min_rounds=3, max_rounds=5, budget_s=1.0, most_scored=32),
    "default": Effort(),
    "thorough": Effort(min_rounds=10, max_rounds=100, budget_s=60.0, precision=0.01, timeout_s=3600.0),
}
