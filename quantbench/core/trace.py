"""What a worker measured for one scenario: timings, byte counts, generated ids and the file with per-position columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantbench.core.signals import Found
from quantbench.core.wire import read, write

NO_REFERENCE = "no reference to compare with: it cannot open this checkpoint here"
"""Why there is no similarity, if no better reason is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMemory:
    """True bytes of everything that stores weights, by kind.

    The kinds ``parameters``, ``buffers`` and ``tensor_subclasses`` (what wrapper subclasses among them really hold) are those
    that transformers counts; any other kind has a readable name of its own (``packed_weights``).
    ``footprint_bytes`` is transformers' ``get_memory_footprint()``, ``state_dict_bytes`` what ``torch.save`` writes for the
    state dict; ``nonzero`` of ``elements`` prunable weights are not zero, and ``sparse_bytes`` would hold all weights if zeros
    were left out. ``step_bytes`` are the weights that one decode step reads, only one row of an untied input embedding;
    ``cache_position_bytes`` are the keys and values of one position. None if there is no such figure.
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

    A server may send several tokens in one event: ``gaps_s`` are then between events, ``tokens`` says how many tokens there
    were (by default one more than gaps) and ``first_tokens`` how many came in the first event. ``prompt_tokens`` is None if
    they were not counted. ``batch`` sequences were answered together: counts cover all of them, gaps are between steps.
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
        """Count one token per gap plus the first one of each sequence, unless counts are given."""
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
    """A greedy answer: token ids up to and including the first end-of-sequence id, and their text.

    ``tokens`` is None for a server, which gives text only.
    """

    prompt: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...] | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The reference's results for one prompt set; its full log-probabilities are beside it in a memory-mapped file.

    ``prompt_tokens`` are the ids that every method gets; ``continuations`` were sampled from the reference, seeded, up to and
    including the first end-of-sequence id, and are scored teacher-forced; ``answers`` are greedy.
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
    """Memory in bytes during one round of generation; host memory is the kernel's high-water mark (VmHWM after a reset).

    ``start_rss_bytes`` is what the process held before the model was opened (a forked worker inherits pages);
    ``load_peak_rss_bytes`` is the high-water mark while it was opened. ``rss_anon_bytes`` and ``rss_file_bytes`` are the parts
    of the sample (one every 2 ms) with the most resident memory. What torch's allocator held or reserved on a device, or held
    during opening, is None on the CPU and 0 for a runtime with its own allocator. NVML's figures are the highest samples: what
    the driver attributes to this process, and ``device_used_bytes``, the growth of memory in use on the boards since opening.
    ``device_context_bytes`` is what CUDA's context took before that.
    ``absent`` says by field why one is None: a kernel may lack what host memory is read from.
    """

    peak_rss_bytes: int | None
    start_rss_bytes: int | None
    load_peak_rss_bytes: int | None
    rss_anon_bytes: int | None
    rss_file_bytes: int | None
    device_allocated_bytes: int | None = None
    device_reserved_bytes: int | None = None
    load_device_allocated_bytes: int | None = None
    device_process_bytes: int | None = None
    device_used_bytes: int | None = None
    device_context_bytes: int | None = None
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
    """A server under ``concurrency`` requests at once: tokens of all answers, their total wall time in seconds, each TTFT."""

    concurrency: int
    tokens: int
    seconds: float
    ttft_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMemory:
    """Most memory in bytes of all processes of a server while it answered: on the host (PSS), and on the GPUs as NVML lists it.

    ``absent`` says by field why one is None.
    """

    pss_bytes: int | None
    device_bytes: int | None
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLogprobs:
    """A server's most likely next tokens against the reference's: positions compared, ``k`` tokens each, and the agreement.

    ``overlap`` is the share of the reference's k that the server names too; ``error`` the mean absolute difference of their
    log-probabilities in nats, None if they share no token; ``top1`` the share of positions whose first token is the same.
    ``kld`` is the mean divergence in nats over the server's tokens and one bucket for all others, which holds ``tail`` of the
    reference's probability on average.
    """

    positions: int
    k: int
    top1: float
    overlap: float
    error: float | None
    kld: float
    tail: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slicing:
    """How much figures scored in forward passes of at most ``positions`` tokens change if the passes are half as long.

    ``kld`` is the absolute change of the mean in nats, ``top1`` that of the share of equal first tokens, over the same
    positions; None without a reference.
    """

    positions: int
    kld: float | None = None
    top1: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Whether something works, None if it was not tried; ``note`` says why or how."""

    found: bool | None
    note: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


Probes = dict[str, Probe]
"""What a file of probes holds, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """The way that tokens were decoded in: its name, and why it is not the one that was asked for (empty if it is).

    ``compile_s`` is what compiling or capturing took; None where nothing was. ``device_step_s`` is the time that a step's
    kernels take on the device without their launching; None with the reason in ``no_device_step``. ``difference`` is how far
    eager's greedy ids were below the choice of the path that was asked for, at most, in roundings of the largest logit: 0 where
    both chose the same; None where eager was asked for, or nothing came to be compared.
    """

    path: str
    reason: str = ""
    difference: float | None = None
    compile_s: float | None = None
    device_step_s: float | None = None
    no_device_step: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Everything measured for one scenario.

    ``columns`` is an .npz of equally long arrays, one entry per scored position: ``prompt`` int32 (for a text, its chunk),
    ``nll`` float64 and, if there is a reference, ``kld``, ``nll_reference``, ``ear`` (the probability that both give to the
    same tokens) and ``confidence`` (the reference's largest probability) float64, ``top1`` bool. ``rounded`` holds the same of
    the same positions for the reference itself with rounding noise; only the control has it. ``score_s`` are the seconds that
    scoring each prompt or chunk took, ``score_tokens`` how many tokens the model read for it. ``calls`` and ``distance`` belong
    to a module without tokens; ``load_points``, ``top_logprobs``, ``native`` (a server's own timings), ``halves`` (answers half
    as long, one after each answer of the rounds) and ``server_memory`` to a server. ``absent`` says why a part is missing, by
    its name.
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
    rounded: Path | None = None
    score_s: tuple[float, ...] = ()
    score_tokens: int = 0
    slicing: Slicing | None = None
    calls: tuple[Calls, ...] = ()
    distance: OutputDistance | None = None
    memory_bandwidth_bps: float | None = None
    """Bytes per second that a copy on the device reads and writes."""
    bytes_per_token: int | None = None
    signals: Mapping[str, Found] = field(default_factory=dict)
    """What the metrics' signals reported, by metric name; a string says why there is nothing."""
    load_points: tuple[LoadPoint, ...] = ()
    top_logprobs: TopLogprobs | None = None
    native: Mapping[str, float] = field(default_factory=dict)
    halves: tuple[Generation, ...] = ()
    server_memory: ServerMemory | None = None
    decoding: Decoding | None = None
    """None where the runtime decides by itself how it decodes."""
    prequantized: bool = False
    """Whether it was loaded from files that had been quantized beforehand."""
    probes: Mapping[str, Probe] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was found rather than requested: kernel class, ISA, library versions, KV and checkpoint dtype, threads, context."""

    def save(self, path: Path) -> None:
        """Write as JSON, atomically: the worker may be killed meanwhile."""
        write(path, self)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read what ``save`` wrote."""
        return read(path, cls)
