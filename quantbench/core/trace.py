"""What a worker saw of one scenario: timings, byte counts, generated ids and where the per-position columns lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantbench.core.signals import Found
from quantbench.core.wire import read, write

NO_REFERENCE = "no reference to compare with: it cannot open this checkpoint here"
"""Why there is no similarity, where nobody knows better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMemory:
    """True bytes of everything that stores weights, by kind.

    The kinds ``parameters``, ``buffers`` and ``tensor_subclasses`` (what wrapper subclasses among them really hold) are what
    transformers walks over; any other kind is named for what it is, as people read it (``packed_weights``).
    ``footprint_bytes`` is ``get_memory_footprint()`` as transformers says it, ``state_dict_bytes`` what ``torch.save`` writes
    for the state dict; ``nonzero`` of ``elements`` prunable weights are not zero, and ``sparse_bytes`` would hold all weights
    if zeros were left out. ``step_bytes`` are the weights that one decode step reads, of an input embedding of its own one row;
    ``cache_position_bytes`` are keys and values of one position. None where there is no such figure.
    """

    by_kind: Mapping[str, int]
    footprint_bytes: int | None = None
    state_dict_bytes: int | None = None
    elements: int | None = None
    nonzero: int | None = None
    sparse_bytes: int | None = None
    step_bytes: int | None = None
    cache_position_bytes: int | None = None

    @property
    def weight_bytes(self) -> int:
        """The sum over all kinds."""
        return sum(self.by_kind.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One timed answer: ``prefill_s`` to the first token, ``gaps_s`` between tokens, ``e2e_s`` for all of it.

    A server may send several tokens in one event: ``gaps_s`` then lie between events, ``tokens`` says how many tokens there
    were (by default one more than gaps) and ``first_tokens`` how many came first. ``prompt_tokens`` is None where nobody
    counted them. ``batch`` sequences were answered together: all counts are of all of them, gaps lie between steps.
    """

    prompt: int
    prompt_tokens: int | None
    prefill_s: float
    gaps_s: tuple[float, ...]
    e2e_s: float
    tokens: int = 0
    first_tokens: int = 0
    batch: int = 1

    def __post_init__(self) -> None:
        """Count a token a gap and the first of each sequence, unless told otherwise."""
        if not self.tokens:
            object.__setattr__(self, "tokens", (len(self.gaps_s) + 1) * self.batch)
        if not self.first_tokens:
            object.__setattr__(self, "first_tokens", self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Answers that were timed together; the anchor's round follows the variant's round of the same index."""

    index: int
    variant: tuple[Generation, ...]
    anchor: tuple[Generation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A greedy answer: token ids up to and with the first end-of-sequence id, and their text.

    ``tokens`` is None of a server, which gives text only.
    """

    prompt: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...] | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What the reference said of one prompt set; its full log-probabilities lie beside it in a memory-mapped file.

    ``prompt_tokens`` are the ids that every method gets; ``continuations`` were sampled from the reference, seeded, up to
    and with the first end-of-sequence id, and are what teacher-forced scoring is done on; ``answers`` are greedy.
    """

    parameters: int
    checkpoint_dtype: str
    context_limit: int | None
    prompt_tokens: tuple[tuple[int, ...], ...]
    continuations: tuple[tuple[int, ...], ...]
    answers: tuple[Answer, ...]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write(path, self)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what ``save`` wrote."""
        return read(path, cls)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakMemory:
    """Memory in bytes during one round of generation: of the host from the kernel's high-water mark (VmHWM after a reset).

    ``start_rss_bytes`` is what the process held before the model was opened (a forked worker inherits pages);
    ``load_peak_rss_bytes`` is the high-water mark while it was opened. ``rss_anon_bytes`` and ``rss_file_bytes`` are the parts
    at the sample, one each 2 ms, with the most resident memory. What torch's allocator held or reserved on a device, or held
    while opening, is None on the CPU and 0 of a runtime with its own allocator. NVML's figures are the highest samples: what
    the driver lists as this process's, and ``device_used_bytes``, how much more the boards had given away than before opening.
    """

    peak_rss_bytes: int
    start_rss_bytes: int
    load_peak_rss_bytes: int
    rss_anon_bytes: int
    rss_file_bytes: int
    device_allocated_bytes: int | None = None
    device_reserved_bytes: int | None = None
    load_device_allocated_bytes: int | None = None
    device_process_bytes: int | None = None
    device_used_bytes: int | None = None
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Seconds of single calls of a module without tokens; the anchor's calls follow the variant's of the same round."""

    variant: tuple[float, ...]
    anchor: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDistance:
    """A module's outputs against the reference's on the same seeded inputs, over all of them."""

    inputs: int
    cosine: float
    max_abs_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """A server under ``concurrency`` requests at once: tokens of all answers, the seconds they took together, each TTFT."""

    concurrency: int
    tokens: int
    seconds: float
    ttft_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLogprobs:
    """A server's most likely next tokens against the reference's: positions asked, ``k`` of each, and how they agree.

    ``overlap`` is the share of the reference's k that the server names too; ``error`` the mean absolute difference of their
    log-probabilities in nats, None where none is named by both; ``top1`` the share of positions whose first token is the same.
    """

    positions: int
    k: int
    top1: float
    overlap: float
    error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slicing:
    """Forward passes of at most ``positions`` tokens scored; how the figures differ where they are half as long.

    ``kld`` is of the mean in nats and ``top1`` of the share of equal first tokens, both absolute and over the same positions;
    None without a reference.
    """

    positions: int
    kld: float | None = None
    top1: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Whether something could be done, None where it was not tried; ``note`` says why or how."""

    found: bool | None
    note: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


Probes = dict[str, Probe]
"""What a file of probes holds, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Everything seen of one scenario.

    ``columns`` is an .npz of equally long arrays, one entry per scored position: ``prompt`` int32 (of a text its chunk),
    ``nll`` float64 and, where there is a reference, ``kld`` and ``nll_reference`` float64, ``top1`` bool. ``score_s`` are the
    seconds that scoring each prompt or chunk took, ``score_tokens`` how many the model read meanwhile. ``calls`` and
    ``distance`` are of a module without tokens, ``load_points``,
    ``top_logprobs`` and ``native`` (a server's own timings) of a server. ``absent`` says why a part is missing, by its name.
    """

    import_s: float
    load_s: float | None
    quantize_s: float | None
    measured_s: float
    """From opening the model until this prompt set was done: everything but the harness's own work."""
    parameters: int | None
    weights: WeightMemory | None
    weight_bytes_running: int | None
    artifact_bytes: int | None
    peak: PeakMemory | None
    anchor: str
    rounds: tuple[Round, ...]
    answers: tuple[Answer, ...]
    columns: Path | None
    score_s: tuple[float, ...] = ()
    score_tokens: int = 0
    slicing: Slicing | None = None
    calls: tuple[Calls, ...] = ()
    distance: OutputDistance | None = None
    memory_bandwidth_bps: float | None = None
    """Bytes per second that a copy on this machine's device reads and writes."""
    bytes_per_token: int | None = None
    signals: Mapping[str, Found] = field(default_factory=dict)
    """What the signals of metrics told, by the metric's name; a string says why there is nothing."""
    load_points: tuple[LoadPoint, ...] = ()
    top_logprobs: TopLogprobs | None = None
    native: Mapping[str, float] = field(default_factory=dict)
    prequantized: bool = False
    """Whether it was loaded from files that had been quantized beforehand."""
    probes: Mapping[str, Probe] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was found rather than asked: kernel class, ISA, library versions, KV dtype, checkpoint dtype, threads, context."""

    def save(self, path: Path) -> None:
        """Write as JSON; a worker may be killed while it does."""
        write(path, self)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read what ``save`` wrote."""
        return read(path, cls)
