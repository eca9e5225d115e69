"""One table of settings: pytest options, ini keys and ``quantbench run`` options are all made from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from quantbench.core.errors import UsageError, unknown_name
from quantbench.core.scenario import PROFILES, Conditions, Effort, Scenario, reads, split_batch
from quantbench.models import MODELS
from quantbench.planning.matrix import Matrix, default_matrix, left_out, read_matrix, scenarios, select, told
from quantbench.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class Option:
    """One setting. ``kind`` ``list`` is comma-separated or repeated; a default of None means: not given."""

    name: str
    kind: Literal["text", "list", "int", "float", "flag"]
    default: str | None
    metavar: str
    help: str

    @property
    def key(self) -> str:
        """The name as a Python identifier."""
        return self.name.replace("-", "_")


OPTIONS = (
    Option("model", "list", None, "MODEL", "built-in, folder, .gguf, hub ORG/NAME[@REVISION][:TYPE], dummy:CONFIG, server"),
    Option("method", "list", None, "METHOD", "only these methods"),
    Option("precision", "list", None, "PRECISION", "only these precisions"),
    Option("prompts", "list", None, "SET", "shipped names, files, a prompt a line, tokens:N for one of N, text:FILE to score"),
    Option("matrix", "text", None, "FILE", "TOML file with the scenarios (without one: every method on the canary)"),
    Option("reference", "text", None, "METHOD/PRECISION", "what the variants are compared with (torch/fp32)"),
    Option("results", "text", "results", "PATH", "where the parquet tables go: a folder or any URI that pyarrow knows"),
    Option("device", "text", None, "DEVICE", "cpu, cuda or cuda:N"),
    Option("threads", "int", None, "N", "worker threads (default: all cores this process may use)"),
    Option("context", "int", None, "TOKENS", "context length (default: the shortest that holds every prompt with its answer)"),
    Option("batch", "list", None, "N", "answer so many sequences together, one scenario each: 1,8,32 (1; also SET@N)"),
    Option("chunks", "int", None, "N", "score at most so many chunks of a text (all)"),
    Option("output-tokens", "int", None, "TOKENS", "length of the timed answers (32)"),
    Option("seed", "int", None, "N", "seed of everything that is sampled (0)"),
    Option("calibration", "text", None, "FILE", "text for methods that calibrate or train (default: sampled from the model)"),
    Option("server", "text", None, "URL", "what method server asks: http(s)://HOST[:PORT]/v1[#MODEL], or gguf/PRECISION here"),
    Option("concurrency", "int", None, "N", "the most requests that a server gets at once (4)"),
    Option("engine", "text", "process", "ENGINE", "process or inline"),
    Option("profile", "text", "default", "PROFILE", "how hard to try: quick (scores 32 tokens a prompt), default or thorough"),
    Option("repeats", "int", "1", "N", "measure everything so many times, each time in fresh processes"),
    Option("timeout", "float", None, "SECONDS", "limit for one variant with all its prompt sets"),
    Option("resume", "text", None, "RUN", "go on with a run, by its id or 'last': what it measured well is not measured again"),
    Option("compare", "text", None, "BASELINE", "compare the run with a results folder, a file or ids of earlier runs"),
    Option("fail-on", "text", "worse", "WHAT", "what of the comparison fails: worse, insufficient (or worse), or never"),
    Option("keep-jobs", "text", None, "DIR", "keep job folders; python -m quantbench.measuring.worker DIR/RUN/JOB reruns one"),
    Option("probes", "flag", None, "", "try what a variant can do besides also on a model of one's own: LoRA, saving, devices"),
    Option("no-probes", "flag", None, "", "do not try what a variant can do besides: LoRA, saving, other devices"),
    Option("trust-remote-code", "flag", None, "", "let a checkpoint run its own Python code"),
)

Values = Mapping[str, Any]
FAIL_ON = ("worse", "insufficient", "never")
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_CONVERT: Mapping[str, Callable[[str], Any]] = {"text": str, "int": int, "float": float}


def convert(option: Option, raw: str | Sequence[str] | bool | None) -> Any:
    """A raw option or ini value as the option's type; UsageError when it is none such."""
    if option.kind == "flag":
        return _flag(option, str(raw or "no").lower())
    if option.kind == "list":
        parts = [raw] if isinstance(raw, str) else list(raw or [])  # type: ignore[arg-type]  # flags were handled above
        return tuple(name.strip() for part in parts for name in part.split(",") if name.strip())
    if raw is None or raw == "":
        return None
    try:
        return _CONVERT[option.kind](str(raw))
    except ValueError:
        raise UsageError(f"--{option.name} {raw!r} is no {option.kind}; give a number") from None


def _flag(option: Option, raw: str) -> bool:
    if raw not in (*_TRUE, *_FALSE):
        raise UsageError(f"--{option.name} {raw!r} is neither true nor false; write true or false")
    return raw in _TRUE


def plan(values: Values) -> Plan:
    """The plan that a set of option values asks for. UsageError for anything that does not exist or cannot be."""
    if values["fail_on"] not in FAIL_ON:
        raise unknown_name("--fail-on", values["fail_on"], FAIL_ON)
    if values["probes"] and values["no_probes"]:
        raise UsageError("--probes and --no-probes are opposites; leave one out")
    effort = _effort(values)
    matrix = _matrix(values, effort)
    unasked = not values["probes"] and any(name not in MODELS for name in matrix.models)
    return Plan(
        scenarios=tuple(_scenarios(matrix, values["repeats"])),
        effort=effort,
        engine=values["engine"],
        keep_jobs=Path(values["keep_jobs"]) if values["keep_jobs"] else None,
        trust_remote_code=values["trust_remote_code"],
        probes=not (values["no_probes"] or unasked),
        left_out=(*left_out(matrix), *(["probes (--probes)"] if unasked and not values["no_probes"] else [])),
        told=told(matrix),
    )


def _matrix(values: Values, effort: Effort) -> Matrix:
    """The matrix as the options narrow it, with the conditions that they and the profile ask for."""
    matrix = read_matrix(Path(values["matrix"])) if values["matrix"] else default_matrix()
    matrix = select(
        matrix, models=values["model"], methods=values["method"], precisions=values["precision"], prompts=values["prompts"]
    )
    matrix = replace(matrix, prompts=tuple(_batched(matrix.prompts, values["batch"])))
    matrix = _with_conditions(matrix, values)
    return replace(matrix, conditions=effort.asked(matrix.conditions))


def _scenarios(matrix: Matrix, repeats: int) -> list[Scenario]:
    planned = scenarios(matrix)
    if repeats < 1:
        raise UsageError(f"--repeats {repeats} measures nothing; ask for at least 1")
    return [replace(scenario, repeat=repeat) for repeat in range(repeats) for scenario in planned]


def _batched(prompts: Sequence[str], batches: Sequence[str]) -> Iterator[str]:
    """Prompt sets at each of the batch sizes asked for; a text is scored alone, and inputs of a module are single."""
    for name in prompts:
        base, own = split_batch(name)
        if not batches or reads(base) != "prompts":
            yield name
            continue
        if own > 1:
            raise UsageError(f"prompt set {name!r} names a batch and --batch {','.join(batches)} another; leave one out")
        for each in batches:
            if not each.isdecimal() or int(each) < 1:
                raise UsageError(f"--batch {each!r} is no number of sequences; give whole numbers from 1 on")
            yield base if int(each) == 1 else f"{base}@{int(each)}"


def _with_conditions(matrix: Matrix, values: Values) -> Matrix:
    names = {each.name for each in fields(Conditions)}
    asked = {name: value for name, value in values.items() if name in names and value is not None}
    return replace(matrix, conditions=replace(matrix.conditions, **asked))


def _effort(values: Values) -> Effort:
    if values["profile"] not in PROFILES:
        raise unknown_name("profile", values["profile"], PROFILES)
    effort = PROFILES[values["profile"]]
    if values["timeout"] is None:
        return effort
    if not 0 < values["timeout"] < math.inf:
        raise UsageError(f"--timeout {values['timeout']:g} is not positive; give seconds")
    return replace(effort, timeout_s=values["timeout"])
