"""One table of settings: pytest options, ini keys and ``quantbench run`` options are all made from it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.outside import exists, expanded, is_folder, whole_number
from quantbench.core.scenario import PROFILES, Conditions, Effort, Scenario, Variant
from quantbench.models import MODELS
from quantbench.planning.matrix import (
    Matrix,
    chosen_references,
    default_matrix,
    hints,
    left_out,
    scenarios,
    select,
    with_artifacts,
)
from quantbench.planning.matrix_file import read_matrix
from quantbench.planning.published import artifact_variant
from quantbench.planning.reference import Compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a session is to measure, and with how much effort.

    ``keep_jobs``: leave job folders there for a rerun by hand. ``probed`` are the names of the variants of which it is tried
    what they can do besides answering.
    ``left_out`` is what was not planned because it is slow and was not named; ``hints`` say how else a model can be measured.
    ``ray_address`` is the cluster that the engine ``ray`` joins; None leaves the choice to Ray.
    """

    scenarios: tuple[Scenario, ...]
    effort: Effort
    engine: str
    keep_jobs: Path | None = None
    trust_remote_code: bool = False
    probed: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    ray_address: str | None = None


RESULTS = "results"
"""The folder that results go to, and are read from, unless another is named."""

Kind = Literal["text", "list", "int", "float", "flag"]
Raw = str | Sequence[str] | bool | None
"""An option as it was given, or an ini value."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting. A ``kind`` of ``list`` is comma-separated or repeated; a default of None means not given."""

    name: str
    kind: Kind
    default: str | None
    metavar: str
    help: str

    @property
    def key(self) -> str:
        """The name as a Python identifier."""
        return self.name.replace("-", "_")


def _option(kind: Kind, metavar: str, about: str, *, default: str | None = None) -> Any:
    return field(metadata={"option": (kind, default, metavar, about)})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The settings of a run: pytest options, ini keys and ``quantbench run`` options are made from these fields.

    None, or an empty value, means that the setting was not given.
    """

    model: tuple[str, ...] = _option(
        "list", "MODEL", "built-in, folder, .gguf, hub ORG/NAME[@REVISION][:TYPE], dummy:CONFIG, server"
    )
    method: tuple[str, ...] = _option("list", "METHOD", "only these methods")
    precision: tuple[str, ...] = _option("list", "PRECISION", "only these precisions")
    artifact: tuple[str, ...] = _option(
        "list", "NAME=WHERE", "a published quantization of the model, compared with it: folder, .gguf, hub ORG/REPO[:TYPE]"
    )
    prompts: tuple[str, ...] = _option(
        "list", "SET",
        "a shipped name, a file (one prompt per line; .jsonl: conversations), tokens:N for one of N tokens, text:FILE to score",
    )
    matrix: str | None = _option("text", "FILE", "TOML file with the scenarios (without one: every method on the canary)")
    reference: str | None = _option("text", "METHOD/PRECISION", "what the variants are compared with (torch/fp32)")
    results: str = _option(
        "text", "PATH", "where the parquet tables go: a folder or any URI that pyarrow supports", default=RESULTS
    )
    device: str | None = _option("text", "DEVICE", "cpu, cuda or cuda:N")
    threads: int | None = _option("int", "N", "worker threads (default: all cores this process may use)")
    context: int | None = _option(
        "int", "TOKENS", "context length (default: the shortest that holds every prompt with its answer)"
    )
    batch: tuple[str, ...] = _option(
        "list", "N", "answer N sequences together, one scenario per N: 1,8,32 (1; also SET@N)"
    )
    decode_path: str | None = _option("text", "PATH", "how transformers decodes: eager, static, graph or compiled")
    n_gpu_layers: str | None = _option("text", "N", "layers of a GGUF model on the GPU: a number, or auto: all that fit (all)")
    chunks: int | None = _option("int", "N", "score at most N chunks of a text (all)")
    answered_prompts: int | None = _option("int", "N", "time and answer only the first N prompts of a set (10; 0: all)")
    output_tokens: int | None = _option("int", "TOKENS", "length of the timed answers (32, on a GPU 128)")
    seed: int | None = _option("int", "N", "seed for all sampling (0)")
    calibration: str | None = _option(
        "text", "FILE", "text for methods that calibrate or train (default: sampled from the model)"
    )
    server: str | None = _option(
        "text", "SERVER",
        "what method server measures: a URL, or what it starts: gguf, llama-server or vllm, with /PRECISION and :FLAGS"
    )
    concurrency: int | None = _option("int", "N", "the most requests sent to a server at once (4)")
    engine: str = _option(
        "text", "ENGINE", "process, inline, or on many machines ray or slurm", default="process"
    )
    ray_address: str | None = _option(
        "text", "ADDRESS", "the Ray cluster that --engine ray joins: HOST:PORT, auto, or local to start one here"
    )
    profile: str = _option(
        "text", "PROFILE", "how much effort: brief, quick (scores 32 tokens per prompt), default or thorough", default="default"
    )
    repeats: int = _option("int", "N", "measure everything N times, each time in fresh processes", default="1")
    timeout: float | None = _option("float", "SECONDS", "time limit for one variant with all its prompt sets")
    resume: str | None = _option(
        "text", "RUN", "resume a run, by its id or 'last': what succeeded is not measured again"
    )
    compare: str | None = _option("text", "BASELINE", "compare the run with a results folder, a file, or ids of earlier runs")
    fail_on: str = _option(
        "text", "WHAT", "comparison outcome that fails the run: worse, insufficient (or worse), or never", default="worse"
    )
    keep_jobs: str | None = _option(
        "text", "DIR", "keep job folders here; python -m quantbench.measuring.worker DIR/RUN/JOB reruns one"
    )
    probes: bool = _option("flag", "", "probe every variant, also of your own models: do LoRA training and saving work?")
    no_probes: bool = _option("flag", "", "do not probe whether LoRA training, saving and other devices work")
    untimed: bool = _option("flag", "", "time nothing: only bytes and quality, so that the jobs of a fleet share its machines")
    no_energy: bool = _option("flag", "", "do not answer again to count energy, which takes up to a quarter of a job's time")
    trust_remote_code: bool = _option("flag", "", "let a checkpoint run its own Python code")

    @classmethod
    def read(cls, raw: Callable[[Option], Raw]) -> RunOptions:
        """Each option as its own type, from what ``raw`` gives for it; UsageError where that does not convert."""
        return cls(**{option.key: convert(option, raw(option)) for option in OPTIONS})


OPTIONS = tuple(Option(each.name.replace("_", "-"), *each.metadata["option"]) for each in fields(RunOptions))
"""The fields of ``RunOptions`` as a table."""

OF_A_SCENARIO = tuple(option.key for option in OPTIONS if option.key in {each.name for each in fields(Conditions)})
"""Settings that each scenario could have its own of; the others hold for a whole run, or say what is planned."""

_MOST_SCENARIOS = 10**6
"""Of one run: years of measuring, and gigabytes to list."""

FAIL_ON = ("worse", "insufficient", "never")
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_CONVERT: Mapping[str, Callable[[str], Any]] = {"text": str, "int": int, "float": float}


def results_option(results: str) -> str:
    """What a command has to be given to read ``results``, with a space before it; empty where it reads them anyway."""
    if "://" not in results:
        path = expanded(results).resolve()
        here = Path.cwd()
        results = str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
    return "" if results == RESULTS else f" --results={shlex.quote(results)}"


def convert(option: Option, raw: Raw) -> Any:
    """A raw option or ini value as the option's type; UsageError when it does not convert."""
    if option.kind == "flag":
        return _flag(option, str(raw or "no").lower())
    if option.kind == "list":
        parts = [raw] if isinstance(raw, str) else list(raw or [])  # type: ignore[arg-type]  # flags were handled above
        return tuple(name.strip() for part in parts for name in part.split(",") if name.strip())
    if raw == "":
        raw = option.default
    if raw is None:
        return None
    try:
        return _CONVERT[option.kind](str(raw))
    except ValueError:
        raise UsageError(f"--{option.name} {raw!r} is not a valid {option.kind}; give a number") from None


def _flag(option: Option, raw: str) -> bool:
    if raw not in (*_TRUE, *_FALSE):
        raise UsageError(f"--{option.name} {raw!r} is neither true nor false; write true or false")
    return raw in _TRUE


def plan(options: RunOptions) -> Plan:
    """The plan that a set of options asks for. UsageError for anything that does not exist or cannot be done."""
    if options.fail_on not in FAIL_ON:
        raise unknown_name("--fail-on", options.fail_on, FAIL_ON)
    if options.probes and options.no_probes:
        raise UsageError("--probes and --no-probes are opposites; drop one of them")
    if options.ray_address and options.engine != "ray":
        raise UsageError(f"--ray-address is of no use to engine {options.engine!r}; add --engine ray, or drop it")
    effort = _effort(options)
    matrix = _matrix(options, effort)
    unasked = not options.probes and any(name not in MODELS for name in matrix.models)
    references = chosen_references(matrix)
    planned = tuple(_scenarios(matrix, references, options.repeats))
    return Plan(
        scenarios=planned,
        effort=replace(effort, energy=matrix.energy and not options.no_energy),
        engine=options.engine,
        keep_jobs=_kept_jobs(options.keep_jobs) if options.keep_jobs else None,
        trust_remote_code=options.trust_remote_code,
        probed=frozenset() if options.no_probes or unasked else _probed(matrix, planned, everything=options.probes),
        left_out=(*left_out(matrix), *(["probes (--probes)"] if unasked and not options.no_probes else [])),
        hints=hints(matrix, references),
        ray_address=options.ray_address,
    )


def single(options: RunOptions, model: str, variant: str, prompts: str = "") -> Scenario:
    """The scenario of one variant of a model under the conditions that the options, or their matrix file, ask for.

    ``variant`` is written METHOD/PRECISION, or NAME=WHERE for a published artifact; ``prompts`` as on the command line: SET or
    SET@B; without it, the one set of the options. UsageError for whatever does not exist.
    """
    asked = artifact_variant(variant) if "=" in variant else _variant(variant)
    matrix = _matrix(options, _effort(options))
    planned = scenarios(
        replace(
            matrix, models=(model,), variants=() if asked.artifact else (asked,),
            prompts=(prompts,) if prompts else matrix.prompts, batches=(), control=False, for_builtin=False,
            artifacts=(asked,) if asked.artifact else (),
        )
    )  # fmt: skip
    planned = [each for each in planned if each.variant == asked]  # not the reference, which goes with an artifact
    if len(planned) > 1:
        sets = ", ".join(matrix.prompts)
        raise UsageError(f"one prompt set is measured at a time, and the options name {sets}; name one of them")
    return planned[0]


def _kept_jobs(name: str) -> Path:
    """Where job folders stay; UsageError for what is there and is no folder."""
    if (exists(name) or Path(name).is_symlink()) and not is_folder(name):
        raise UsageError(f"--keep-jobs {name!r} is no folder; name one, or a place where one can be made")
    return Path(name)


def _variant(text: str) -> Variant:
    method, _, precision = text.partition("/")
    if not method or not precision:
        raise UsageError(f"{text!r} names no variant; write METHOD/PRECISION, for example gguf/q4_k_m")
    return Variant(method=method, precision=precision)


def _probed(matrix: Matrix, planned: Sequence[Scenario], *, everything: bool) -> frozenset[str]:
    """Names of the variants to probe: those that the matrix names, where it names some and not everything is asked for."""
    names = frozenset(scenario.variant.name for scenario in planned)
    return names if everything or matrix.probes is None else names & matrix.probes


def _matrix(options: RunOptions, effort: Effort) -> Matrix:
    """The matrix as the options narrow it, with the conditions that they and the profile ask for."""
    matrix = read_matrix(Path(options.matrix)) if options.matrix else default_matrix()
    matrix = select(
        matrix, models=options.model, methods=options.method, precisions=options.precision, prompts=options.prompts
    )
    matrix = replace(matrix, batches=tuple(map(_batch, options.batch)))
    if options.artifact:
        matrix = with_artifacts(matrix, options.artifact, alone=not (options.method or options.precision or options.matrix))
    matrix = _with_conditions(matrix, options)
    return replace(matrix, conditions=effort.asked(matrix.conditions))


def _scenarios(matrix: Matrix, references: Mapping[str, Compared], repeats: int) -> list[Scenario]:
    planned = scenarios(matrix, references)
    if repeats < 1:
        raise UsageError(f"--repeats {repeats} measures nothing; ask for at least 1")
    if repeats * len(planned) > _MOST_SCENARIOS:
        count = repeats * len(planned)
        raise UsageError(f"--repeats {repeats} plans {count:,} scenarios; at most {_MOST_SCENARIOS:,} are planned")
    return [replace(scenario, repeat=repeat) for repeat in range(repeats) for scenario in planned]


def _batch(text: str) -> int:
    found = whole_number(text)
    if not found:
        raise UsageError(f"--batch {text!r} is not a number of sequences; give whole numbers of at least 1")
    return found


def _with_conditions(matrix: Matrix, options: RunOptions) -> Matrix:
    found = {each.name: getattr(options, each.name, None) for each in fields(Conditions)}  # not every one is an option
    asked = {name: value for name, value in found.items() if value is not None}
    return replace(matrix, conditions=replace(matrix.conditions, **asked), given=matrix.given | asked.keys())


def _effort(options: RunOptions) -> Effort:
    if options.profile not in PROFILES:
        raise unknown_name("profile", options.profile, PROFILES)
    effort = PROFILES[options.profile]
    if options.timeout is None:
        return effort
    if not 0 < options.timeout < math.inf:
        raise UsageError(f"--timeout {options.timeout:g} is not positive; give seconds")
    return replace(effort, timeout_s=options.timeout)
