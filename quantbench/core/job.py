"""What a worker receives: one variant with all its prompt sets, as a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from quantbench.core.cache import write_atomically
from quantbench.core.conversation import Conversation
from quantbench.core.identity import HashedFile
from quantbench.core.record import Status
from quantbench.core.scenario import Conditions, Effort, Spec, Variant
from quantbench.core.wire import read, write

JobKind = Literal["measure", "prepare", "probe", "reference"]
JOB_FILE = "job.json"
FAILURE_FILE = "failure.json"
STAGE_FILE = "stage"
TRACE_FILE = "trace-{}.json"
REFERENCE_FOLDER = "reference-{}"


def enter_stage(folder: Path, stage: str) -> None:
    """Note what the worker does from now on, for progress displays; call it between passes, never while one is timed."""
    write_atomically(folder / STAGE_FILE, stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a scenario, or all or the rest of a job, has no results."""

    status: Status
    reason: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's files.

    ``kind`` is ``hf`` (a folder with config.json), ``gguf`` (one file), ``module`` (a built-in module without tokens),
    ``server`` (a URL; no files) or what another runtime opens. ``quantized`` is the ``quant_method`` of a checkpoint that was
    quantized elsewhere. ``random_weights``: the weights are random, so comparing its outputs is meaningless.
    """

    name: str
    kind: str
    path: Path
    revision: str
    content_hash: str
    trust_remote_code: bool = False
    quantized: str = ""
    random_weights: bool = False
    files: tuple[HashedFile, ...] = ()
    """The files that were hashed, with their identity at that time."""

    @property
    def speaks(self) -> bool:
        """Whether it is a language model in files, which can be opened locally and gives logits."""
        return self.kind not in ("module", "server")

    @property
    def comparable(self) -> bool:
        """Whether its outputs can be compared; those of random weights cannot."""
        return self.speaks and not self.random_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One prompt set of a job; ``reference`` is the folder of the reference's artifact, made before any variant runs.

    If that is None, ``no_reference`` says why.

    If ``is_text``, the one prompt is a running text to be scored in chunks; if ``tokens`` is not 0, the prompt is repeated or
    cut to that length. ``batch`` sequences are answered together. Where there are ``conversations``, the model's template makes
    what it reads of them, and ``prompts`` are how they are shown.
    """

    prompts_name: str
    prompts: tuple[str, ...]
    reference: Path | None
    is_text: bool = False
    tokens: int = 0
    batch: int = 1
    no_reference: str = ""
    conversations: tuple[Conversation, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether it needs its own job: it dictates the context or batch of the whole job, or it takes long."""
        return self.is_text or self.tokens > 0 or self.batch > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The work of one process.

    ``kind``: ``measure`` the variant, ``prepare`` its artifacts outside any timing, ``probe`` what it can do, or make the
    ``reference`` artifact that variants are compared with. ``probes`` is the file with an earlier probe's findings.
    """

    kind: JobKind
    checkpoint: Checkpoint
    variant: Variant
    conditions: Conditions
    effort: Effort
    tasks: tuple[Task, ...]
    probes: Path | None = None
    original: Checkpoint | None = None
    """The model itself where the variant is a published artifact of it, and has a checkpoint of its own."""
    preloaded: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the fork server spent on imports which this worker inherits, by package."""
    root: tuple[int, int] | None = None
    """Process id and start time (ticks after boot) of the run's first process: all below it is the run's own work."""

    @property
    def spec(self) -> Spec:
        """What the method has to open."""
        return Spec(model=self.checkpoint.name, variant=self.variant, conditions=self.conditions)

    @property
    def model(self) -> Checkpoint:
        """The checkpoint of the model itself, whose tokenizer encodes and which anchors are made from."""
        return self.original or self.checkpoint

    def save(self, folder: Path) -> None:
        """Write ``job.json`` into ``folder``."""
        write(folder / JOB_FILE, self)

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read what ``save`` wrote."""
        return read(folder / JOB_FILE, cls)
