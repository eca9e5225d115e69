"""Make this folder's data again: what llama.cpp's own tools print of the canary's GGUF levels and a text.

``python tests/data/llama_cpp/regenerate.py [--bin DIR]`` takes minutes. Without ``--bin`` it builds ``llama-perplexity`` and
``llama-bench`` with cmake and the C++ compiler found, from the source distribution of the installed llama-cpp-python.
``text.txt`` is made of the interpreter's own documentation (``pydoc_data.topics``; see ``LICENSE-PSF.txt``), so another
interpreter makes another text. Where llama.cpp's extra buffers crash in this build, both sides run without them.

llama-perplexity reads four chunks in one batch. Where three are left over for the last one, llama.cpp takes other paths through
its kernels, and these three chunks come out differently (by up to 0.03 nats a token; with one, two or four in a batch nothing
differs): the text's length is chosen to leave none or two.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import platform
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from quantbench.core import machine
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.llama_cpp.converter import SOURCE_SHA256
from quantbench.runtimes.llama_cpp.files import quantized_file
from quantbench.runtimes.llama_cpp.probe import extra_buffers_work

HERE = Path(__file__).parent
TEXT_FILE = HERE / "text.txt"
RESULT_FILE = HERE / "calibration.json"

LEVELS = ("f16", "q8_0", "q4_k_m", "q2_k")
CONTEXT = 512
THREADS = 2
TEXT_CHARACTERS = 47_000
BASE_FILE = "base.dat"
TOOLS = ("llama-perplexity", "llama-bench")
NOT_BUILT = ("TESTS", "EXAMPLES", "SERVER", "MTMD", "UI")

LABELS = {
    "Mean PPL(Q)": "ppl", "Mean PPL(base)": "ppl_reference", "Cor(ln(PPL(Q)), ln(PPL(base)))": "nll_correlation",
    "Mean ln(PPL(Q)/PPL(base))": "ln_ppl_ratio", "Mean PPL(Q)/PPL(base)": "ppl_ratio",
    "Mean PPL(Q)-PPL(base)": "ppl_difference", "RMS Δp": "delta_p_rms", "Same top p": "top1_agreement",
}  # fmt: skip
SPREADS = {"KLD": "kld", "Δp": "delta_p"}
PLACES = {
    "Mean": "mean", "Maximum": "max", "99.9%": "p999", "99.0%": "p99", "95.0%": "p95", "90.0%": "p90", "75.0%": "p75",
    "Median": "median", "25.0%": "p25", "10.0%": "p10", "5.0%": "p05", "1.0%": "p01", "0.1%": "p001", "Minimum": "min",
}  # fmt: skip
_NUMBER = r"-?(?:\d+\.\d+|nan|inf)"
_STATISTIC = re.compile(rf"^\s*(?P<label>.+?)\s*:\s+(?P<value>{_NUMBER})(?: ±\s+(?P<error>{_NUMBER}))?\s*(?P<percent>%?)$")


class Said(NamedTuple):
    """What a tool printed, and the command without the folder it ran in."""

    command: str
    output: str


def main() -> None:
    """Make text, GGUF files, base file and statistics; write calibration.json and the raw outputs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bin", type=Path, help="folder with llama-perplexity and llama-bench; default: build them")
    asked = parser.parse_args()
    TEXT_FILE.write_text(assembled_text(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tools = asked.bin.resolve() if asked.bin else build(folder)
        (folder / TEXT_FILE.name).write_bytes(TEXT_FILE.read_bytes())
        RESULT_FILE.write_text(json.dumps(calibrate(tools, folder), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def assembled_text() -> str:
    """Language reference topics by name, whole paragraphs, up to a length; without special tokens."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    paragraphs = "\n\n".join(topics[name].strip() for name in sorted(topics)).split("\n\n")
    kept: list[str] = []
    while sum(len(each) + 2 for each in kept) < TEXT_CHARACTERS:
        kept.append(paragraphs[len(kept)])
    text = "\n\n".join(kept) + "\n"
    assert not re.search(r"</?s>|<unk>", text), "llama.cpp and transformers read special tokens in a text differently"
    return text


def build(folder: Path) -> Path:
    """The tools, built from the source distribution of the installed llama-cpp-python."""
    installed = version("llama_cpp_python")
    digest = SOURCE_SHA256.get(installed)
    pin = f"llama-cpp-python=={installed}" + (f" --hash=sha256:{digest}" if digest else "")
    (folder / "requirement.txt").write_text(pin + "\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
    subprocess.run([*pip, "--dest", str(folder), "--requirement", str(folder / "requirement.txt")], check=True)
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (source,) = folder.glob("llama_cpp_python-*/vendor/llama.cpp")
    off = ("BUILD_SHARED_LIBS", *(f"LLAMA_{part}" for part in ("CURL", "OPENSSL", *(f"BUILD_{each}" for each in NOT_BUILT))))
    flags = [f"-D{name}=OFF" for name in off]
    subprocess.run(["cmake", "-S", str(source), "-B", str(folder / "build"), *flags], check=True)
    subprocess.run(["cmake", "--build", str(folder / "build"), "--target", *TOOLS, "--parallel"], check=True)
    return folder / "build" / "bin"


def calibrate(tools: Path, folder: Path) -> dict[str, Any]:
    """Run the tools in ``folder`` and collect what they say."""
    canary = resolve("canary")
    files = {level: quantized_file(canary, level).path for level in LEVELS}
    for level, path in files.items():
        (folder / f"{level}.gguf").symlink_to(path)
    options = ["-t", str(THREADS)] + ([] if extra_buffers_work() else ["--no-repack"])
    return {
        "llama_cpp_python": version("llama_cpp_python"),
        "source_sha256": SOURCE_SHA256.get(version("llama_cpp_python")),
        "version": run([str(tools / TOOLS[0]), "--version"], folder).output.strip().splitlines(),
        "extra_buffers": extra_buffers_work(),
        "machine": {"cpu": machine.describe().cpu, "isa": machine.describe().isa, "python": platform.python_version()},
        "text_sha256": hashlib.sha256(TEXT_FILE.read_bytes()).hexdigest(),
        "tensors": {level: tensors(path) for level, path in files.items()},
        **scored(tools / TOOLS[0], folder, options),
        "bench": benched(tools / TOOLS[1], folder),
    }


def scored(tool: Path, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Make a base file with F16, then compare every level with it, F16 itself too."""
    score = [str(tool), "-f", TEXT_FILE.name, "-c", str(CONTEXT), *options, "--kl-divergence-base", BASE_FILE]
    base = run([*score, "-m", "f16.gguf"], folder)
    said = {level: run([*score, "-m", f"{level}.gguf", "--kl-divergence"], folder) for level in LEVELS}
    for level, each in {"base": base, **said}.items():
        keep(each, level)
    header = base_header(folder / BASE_FILE)
    assert header["chunks"] % 4 != 3, f"{header['chunks']} chunks leave three for the last batch; change TEXT_CHARACTERS"
    return {
        "base": {"command": base.command, **header, **final_estimate(base.output)},
        "levels": {level: {"command": each.command, "statistics": parsed(each.output)} for level, each in said.items()},
    }


def benched(tool: Path, folder: Path) -> dict[str, Any]:
    """Prefill and decode speed of every level; figures of the machine that made this folder, for the record."""
    files = [part for level in LEVELS for part in ("-m", f"{level}.gguf")]
    options = ["-p", str(CONTEXT), "-n", "64", "-r", "3", "-t", str(THREADS), "--repack", str(int(extra_buffers_work()))]
    said = run([str(tool), *files, *options, "-o", "json"], folder)
    keep(said, "bench")
    return {"command": said.command, "tests": bench_tests(said.output)}


def keep(said: Said, name: str) -> None:
    """Write what a tool printed, after its command, into this folder."""
    (HERE / f"{name}.txt").write_text(f"$ {said.command}\n{said.output}", encoding="utf-8")


def run(command: Sequence[str], folder: Path) -> Said:
    """Run a tool in ``folder``; both of its streams together, without the folder's name and blanks at line ends."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    output = done.stdout.decode("utf-8").replace(str(folder.resolve()), ".")
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{output[-2000:]}")
    shown = " ".join([Path(command[0]).name, *command[1:]])
    return Said(command=shown, output="\n".join(line.rstrip() for line in output.splitlines()) + "\n")


def base_header(path: Path) -> dict[str, Any]:
    """What a base file says before its probabilities: chunk length, vocabulary, and the ids (count and sha256 as int32)."""
    with path.open("rb") as stream:
        assert stream.read(8) == b"_logits_"
        context, vocabulary, chunks = struct.unpack("<3i", stream.read(12))
        ids = stream.read(4 * context * chunks)
    rest = path.stat().st_size - 20 - len(ids)
    assert rest == chunks * (context - 1 - context // 2) * 2 * (2 * ((vocabulary + 1) // 2) + 4)
    digest = hashlib.sha256(ids).hexdigest()
    return {"context": context, "vocabulary": vocabulary, "chunks": chunks, "ids": len(ids) // 4, "ids_sha256": digest}


def final_estimate(output: str) -> dict[str, str]:
    """The perplexity that the run without a base file printed, and its error."""
    found = re.search(rf"Final estimate: PPL = ({_NUMBER}) \+/- ({_NUMBER})", output)
    assert found
    return {"ppl": found[1], "error": found[2]}


def parsed(output: str) -> dict[str, dict[str, Any]]:
    """The statistics after the last chunk, as printed, by quantbench's column names."""
    statistics = {}
    for line in output.splitlines():
        if match := _STATISTIC.match(line):
            place, _, kind = match["label"].partition(" ")
            spread = SPREADS.get(kind.strip())
            name = LABELS.get(match["label"]) or (f"{spread}_{PLACES[place]}" if spread else None)
            if name:
                statistics[name] = {"value": match["value"], "error": match["error"], "percent": bool(match["percent"])}
    assert len(statistics) == 34, sorted(statistics)
    return statistics


def tensors(path: Path) -> dict[str, Any]:
    """Bytes and sha256 of a GGUF file's tensors, in their order."""
    from gguf import GGUFReader

    digest = hashlib.sha256()
    count = 0
    for tensor in GGUFReader(path).tensors:
        digest.update(tensor.data.tobytes())
        count += int(tensor.n_bytes)
    return {"bytes": count, "sha256": digest.hexdigest()}


def bench_tests(output: str) -> list[dict[str, Any]]:
    """The figures of llama-bench's JSON that describe a test."""
    kept = ("model_filename", "model_size", "model_n_params", "n_prompt", "n_gen", "n_threads", "avg_ts", "stddev_ts")
    start = output.index("[\n")
    return [{name: each[name] for name in kept} for each in json.JSONDecoder().raw_decode(output[start:])[0]]


if __name__ == "__main__":
    main()
