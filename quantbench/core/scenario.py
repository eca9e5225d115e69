"""What is measured: a model, a variant of it, a prompt set, and the conditions that change the result."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import PurePath
from typing import Literal
from urllib.parse import urlsplit

from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.outside import whole_number
from quantbench.core.serving import parse_started
from quantbench.core.text import quoted

MIN_LENGTH = 2
SEEDED_INPUTS = "seeded"
"""The prompt set of a model without tokens: seeded random inputs."""

DUMMY_PREFIX = "dummy:"
"""``dummy:NAME_OR_CONFIG`` names a model: a real architecture with random weights."""

TEXT_PREFIX = "text:"
"""``text:FILE`` names a prompt set: a running text that is scored and not answered."""

TOKENS_PREFIX = "tokens:"
"""``tokens:N`` names a prompt set: one prompt of N tokens."""

Reads = Literal["prompts", "text", "inputs"]
"""What a scenario feeds its model: prompts to answer, a text to score, or seeded inputs for a module without tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """One precision that a method offers; ``bits`` is the nominal figure in its name, None if there is none.

    A precision that is not ``usual`` is measured only if it is named. On the user's own model, one that is not ``first`` is
    measured only if it or its method is named; on a CPU the same holds for one that is not ``first_on_cpu``.
    """

    name: str
    bits: float | None
    title: str = ""
    usual: bool = True
    first: bool = True
    first_on_cpu: bool = True


def baseline(reference: str, device: str) -> str:
    """What speeds are compared with on a device: ``reference``; on a GPU, where fp32 is nobody's alternative, bf16 for it."""
    return "torch/bf16" if reference == "torch/fp32" and device.startswith("cuda") else reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A method at a precision. A control is the reference measured once more in a separate process: the noise floor.

    ``artifact`` is the name that was given to a quantization which somebody published; its files are at ``place`` (a folder, a
    file or a hub id). Until they are read, its method and precision are empty.
    """

    method: str
    precision: str
    control: bool = False
    artifact: str = ""
    place: str = ""

    @property
    def label(self) -> str:
        """The middle part of a scenario id, for example ``gguf-q4_k_m``, or the name of an artifact."""
        return self.artifact or f"{self.method}-{self.precision}" + ("-control" if self.control else "")

    @property
    def name(self) -> str:
        """``method/precision``, as options and columns spell it, or the name of an artifact."""
        return self.artifact or f"{self.method}/{self.precision}"

    def asked(self) -> dict[str, str | bool]:
        """What of it enters a key. Where an artifact's files are is no part of it: their content is, as the identity."""
        if self.artifact:
            return {"artifact": self.artifact}
        return {"method": self.method, "precision": self.precision, "control": self.control}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """A server's address: ``url`` up to and including ``/v1``, without a trailing slash; ``model`` is empty if not given."""

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
        raise UsageError("the server's URL holds a user, a password or a query; remove it and set QUANTBENCH_SERVER_KEY")
    if parts.scheme not in ("http", "https") or not named or not text.isprintable() or " " in text:
        raise UsageError(f"server {text!r} is not a URL; write http://localhost:8080/v1, with #MODEL to name a model")
    return ServerAddress(url=f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", model=parts.fragment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Everything besides the three axes that changes what is measured.

    Lengths are in tokens: ``output_tokens`` are timed, ``answer_tokens`` are compared as greedy text,
    ``continuation_tokens`` are scored teacher-forced, or fewer if the reference ends earlier. ``context`` 0 means the shortest
    that holds all of these. Only the first ``answered_prompts`` of a set are timed and answered greedily (0: all): answering a
    prompt costs many times as much as scoring it, and similarity needs many prompts.
    ``threads`` 0 means every core that this process may use. ``calibration`` is a text file for methods that calibrate or
    train; empty means text sampled from the model itself. ``server`` is what the method ``server`` queries: a URL, or a server
    that quantbench starts (see ``core.serving``); ``concurrency`` is the most requests that it gets at once. At most
    ``chunks`` chunks of a text are scored (0: all); a chunk is as long as ``context``, by default 512 tokens.
    ``decode_path`` is one of DECODE_PATHS; empty means the usual one of the method on that device. ``n_gpu_layers`` of a model
    that llama.cpp runs go to the GPU: a number, or AUTO for as many as fit; empty means all.
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
    decode_path: str = ""
    n_gpu_layers: str = ""

    def __post_init__(self) -> None:
        """Raise UsageError for values that cannot be measured."""
        self._require_counts()
        if self.server and not parse_started(self.server):
            parse_server(self.server)
        if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", self.device):
            raise UsageError(f"device {self.device!r} is not known; use cpu, cuda or cuda:N")
        if self.decode_path and self.decode_path not in DECODE_PATHS:
            raise unknown_name("decode path", self.decode_path, DECODE_PATHS)
        if self.decode_path == "graph" and self.device == "cpu":
            raise UsageError("decode path 'graph' is a CUDA graph, and the device is cpu; use static or compiled, or a GPU")
        self._require_layers()

    def _require_layers(self) -> None:
        asked = self.n_gpu_layers
        if asked not in ("", AUTO) and not 0 < (whole_number(asked) or 0) <= _MOST:
            raise UsageError(f"n_gpu_layers is {quoted(asked)}; give a whole number from 1 on, or {AUTO!r} for all that fit")
        if asked and self.device == "cpu":
            raise UsageError(f"n_gpu_layers is {asked!r}, and the device is cpu; name a GPU, or leave it out")

    def _require_counts(self) -> None:
        for name in ("output_tokens", "answer_tokens", "continuation_tokens"):
            if getattr(self, name) < MIN_LENGTH:
                raise UsageError(f"{name} is {quoted(getattr(self, name))}; ask for at least {MIN_LENGTH} tokens")
        for name in ("threads", "context", "seed", "chunks", "answered_prompts"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {quoted(getattr(self, name))}; it cannot be negative")
        if self.concurrency < 1:
            raise UsageError(f"concurrency is {quoted(self.concurrency)}; ask for at least one request at a time")
        for name in (each.name for each in fields(self) if isinstance(each.default, int)):
            most = _MOST_SEED if name == "seed" else _MOST
            if getattr(self, name) > most:
                raise UsageError(f"{name} is above {most}, which cannot be measured; give a smaller number")


_MOST, _MOST_SEED = 10**12, 2**63 - 1
"""No model holds so many tokens; a seed fits the column that keeps it."""

DECODE_PATHS = ("eager", "static", "graph", "compiled")
"""The ways to decode that can be asked of methods that run on transformers; others have one way of their own."""

AUTO = "auto"
"""As many layers on the GPU as fit."""

METHODS_OWN = ("calibration", "server", "concurrency", "n_gpu_layers")
"""Conditions that only some methods use; those methods put them into the key themselves."""


TEXTS_OWN = ("chunks",)
"""Conditions that only a text uses."""


def at_batch(prompts: str, batch: int) -> str:
    """The name of a prompt set of which ``batch`` sequences are answered together: ``ten@8``, or ``ten`` for a batch of one."""
    return prompts if batch == 1 else f"{prompts}@{batch}"


def prompt_tokens(prompts: str) -> int:
    """The prompt length that a prompt set's name gives, as in ``tokens:512``; 0 for any other name."""
    length = prompts.removeprefix(TOKENS_PREFIX) if prompts.startswith(TOKENS_PREFIX) else ""
    return whole_number(length) or 0


def reads(prompts: str) -> Reads:
    """What a prompt set of that name feeds a model."""
    if prompts == SEEDED_INPUTS:
        return "inputs"
    return "text" if prompts.startswith(TEXT_PREFIX) else "prompts"


@cache  # a matrix of thousands of scenarios has few distinct names
def short_name(name: str) -> str:
    """A model or prompt set as an id shows it: names and hub ids unchanged, only the last part of a path."""
    if name.startswith(TEXT_PREFIX):
        return TEXT_PREFIX + PurePath(name.removeprefix(TEXT_PREFIX)).name.removesuffix(".txt")
    if name.startswith(DUMMY_PREFIX):
        return DUMMY_PREFIX + short_name(name.removeprefix(DUMMY_PREFIX).removesuffix("/config.json"))
    is_path = name.startswith((".", "/", "~")) or name.endswith((".gguf", ".txt", ".jsonl"))
    last = PurePath(name).name or name
    return last.removesuffix(".gguf").removesuffix(".txt").removesuffix(".jsonl") if is_path else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a method has to open: a variant of a model, under conditions. It does not say which prompts will follow."""

    model: str
    variant: Variant
    conditions: Conditions = field(default_factory=Conditions)

    def reference(self) -> Spec:
        """The spec of the reference, under the same conditions."""
        method, _, precision = self.conditions.reference.partition("/")
        return replace(self, variant=Variant(method=method, precision=precision))


JobKey = tuple[str, Variant, Conditions, int]
"""What scenarios measured in one load of the model share: its name, variant, conditions, repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Model x method x precision x prompt set. ``id`` is the row key, with ``repeat``, and without repeats the pytest id.

    ``batch`` sequences are answered together. A repeat is the same scenario once more in a fresh process; it does not change
    what is measured, so keys stay equal.
    """

    model: str
    variant: Variant
    prompts: str
    conditions: Conditions = field(default_factory=Conditions)
    batch: int = 1
    repeat: int = 0

    @property
    def id(self) -> str:
        """``model/method-precision/prompts``, for example ``canary/gguf-q4_k_m/ten``; a path is cut to its last part.

        An artifact's name stands in the place of method and precision. If several sequences are
        answered together, ``@`` and their number follow: ``canary/gguf-q4_k_m/ten@8``.
        """
        return f"{short_name(self.model)}/{self.variant.label}/{at_batch(short_name(self.prompts), self.batch)}"

    @property
    def test_id(self) -> str:
        """The pytest id: ``id``, followed by ``#2``, ``#3`` and so on for repeats."""
        return f"{self.id}#{self.repeat + 1}" if self.repeat else self.id

    @property
    def is_reference(self) -> bool:
        """Whether this is the unquantized model that the others are compared with (a control is not)."""
        return self.variant.name == self.conditions.reference and not self.variant.control

    @property
    def reads(self) -> Reads:
        """What the model is fed."""
        return reads(self.prompts)

    @property
    def spec(self) -> Spec:
        """What its method has to open."""
        return Spec(model=self.model, variant=self.variant, conditions=self.conditions)

    @property
    def job(self) -> JobKey:
        """Scenarios with an equal job share one load of the model."""
        return self.model, self.variant, self.conditions, self.repeat

    def reference(self) -> Scenario:
        """The reference's scenario for the same model and prompts; its batch is 1, as prompts are compared one by one."""
        return replace(self, variant=self.spec.reference().variant, batch=1, repeat=0)

    def heeded(self) -> dict[str, str | int]:
        """The conditions that count here, by name, without those that only certain methods or only texts use.

        A decode path counts where one was asked for; what is usual is found, not asked.
        """
        others = METHODS_OWN if self.reads == "text" else (*METHODS_OWN, *TEXTS_OWN)
        others = others if self.conditions.decode_path else (*others, "decode_path")
        return {name: value for name, value in asdict(self.conditions).items() if name not in others}

    def key(self, identity: Mapping[str, str]) -> str:
        """sha256 of everything in the request that changes what is measured.

        ``identity`` is the content behind the names of model and prompts (revision and hashes), known only at run time, and
        what the method adds: calibration, kernel, server.
        """
        asked = {"variant": self.variant.asked(), "conditions": self.heeded(), "identity": dict(identity)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to measure; not part of the scenario key.

    ``precision`` is the relative half-width of the median's confidence interval at which rounds stop. At most ``most_scored``
    tokens of a prompt's continuation are sampled and scored, whatever the conditions say. ``untimed`` says
    why nothing is to be timed (other tests run at the same time); it is empty where timings are wanted. ``energy`` says whether
    answers are generated once more to count the energy that they take, ``besides`` whether what no choice rests on is found
    too: the memory bandwidth, and known mistakes in the files of published artifacts.
    """

    min_rounds: int = 6
    max_rounds: int = 30
    budget_s: float = 2.0
    precision: float = 0.02
    timeout_s: float = 900.0
    most_scored: int = sys.maxsize
    untimed: str = ""
    energy: bool = True
    besides: bool = True

    def asked(self, conditions: Conditions) -> Conditions:
        """The conditions with continuations cut to ``most_scored``: a shorter continuation changes the key, as it must."""
        return replace(conditions, continuation_tokens=min(conditions.continuation_tokens, self.most_scored))


PROFILES: Mapping[str, Effort] = {
    "brief": Effort(budget_s=0.7, besides=False),
    "quick": Effort(min_rounds=3, max_rounds=5, budget_s=1.0, most_scored=32),
    "default": Effort(),
    "thorough": Effort(min_rounds=10, max_rounds=100, budget_s=60.0, precision=0.01, timeout_s=3600.0),
}
