"""Dummies: a real architecture with random, seeded weights, to measure memory and latency with nothing to download.

``python -m quantbench.models._dummy FOLDER SOURCE`` fills a folder that holds a config.json; the weights are made in that
process of its own, so that whoever asks for a dummy does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantbench.cache import CACHE_VARIABLE, artifact, file_sha256
from quantbench.errors import MissingDependency, ModelError, QuantbenchError
from quantbench.job import Checkpoint
from quantbench.machine import available_memory, versions
from quantbench.models import MODELS
from quantbench.models._configs import CONFIG, config_file, read_config_file
from quantbench.scenario import DUMMY_PREFIX
from quantbench.units import format_bytes

SEED = 0
RECIPE = 1
"""Counts changes in how a dummy is made; older ones are then made again."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_TOKENIZER_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
_TOKENIZER_SIZE = 2048
_LEFT_OUT = ("quantization_config", "auto_map")
_BFLOAT16_BYTES = 2
_SHARD = "2GB"
_MAKERS = ("torch", "transformers")


def make_dummy(name: str) -> Checkpoint:
    """The checkpoint behind ``dummy:NAME_OR_CONFIG``, made on first use and kept in the cache.

    Its tokenizer is the canary's, which reads any text with the first 2048 ids. Raises ModelError for a configuration that
    cannot be used, and where disk or memory cannot hold the weights in bfloat16.
    """
    missing = [each for each in _MAKERS if find_spec(each) is None]
    if missing:
        raise MissingDependency(f"model {name!r} takes {', '.join(missing)}, not installed; pip install 'quantbench[torch]'")
    source = config_file(name.removeprefix(DUMMY_PREFIX))
    config = _unquantized(read_config_file(source))
    canary = MODELS["canary"].folder()
    asked: dict[str, object] = {
        "config": config, "seed": SEED, "recipe": RECIPE,
        "tokenizer": [file_sha256(canary / each) for each in _TOKENIZER_FILES],
    }  # fmt: skip
    makers = {each: number for each, number in versions().items() if each in _MAKERS}

    def make(folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(config))
        for each in _TOKENIZER_FILES:
            shutil.copyfile(canary / each, folder / each)
        _make_elsewhere(folder, source)

    content = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    folder = artifact("dummy", {**asked, "versions": makers}, make)
    return Checkpoint(name=name, kind="hf", path=folder, revision=f"seed {SEED}", content_hash=content, random_weights=True)


def _unquantized(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the plain model without code of its own, with the special ids of the tokenizer that a dummy has."""
    return {**{key: value for key, value in config.items() if key not in _LEFT_OUT}, **_TOKENIZER_IDS}


def _make_elsewhere(folder: Path, source: Path) -> None:
    """Fill the folder with weights, in a process of its own."""
    command = [sys.executable, "-m", __name__, str(folder), str(source)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode == 0:
        return
    if done.returncode == -signal.SIGKILL:
        raise ModelError(f"the process that made the dummy of {source} was killed: out of memory; take a smaller configuration")
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    own = done.returncode == QuantbenchError.exit_code
    raise ModelError(last if own else f"transformers cannot make a model from {source} ({last}); give another configuration")


def write_weights(folder: Path, source: str) -> None:
    """Make the model that config.json in ``folder`` describes and save its weights beside it, in bfloat16.

    Memory holds the model and one shard. ``source`` is what messages name.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    vocabulary = config.get_text_config().vocab_size
    if vocabulary < _TOKENIZER_SIZE:
        raise ModelError(
            f"{source} has a vocabulary of {vocabulary} and a dummy's prompts are encoded with {_TOKENIZER_SIZE} ids; "
            f"set vocab_size to {_TOKENIZER_SIZE} or more"
        )
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    _require_room(folder, sum(each.numel() for each in shape.parameters()), source)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    model.save_pretrained(folder, max_shard_size=_SHARD)


def _require_room(folder: Path, parameters: int, source: str) -> None:
    """ModelError where disk or memory cannot hold so many parameters in bfloat16."""
    needed = parameters * _BFLOAT16_BYTES
    takes = f"the dummy of {source} takes {format_bytes(needed)} ({parameters:,} parameters in bfloat16)"
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(f"{takes} and the cache's disk has {format_bytes(free)} free; set {CACHE_VARIABLE} to a larger one")
    memory = available_memory()
    if needed > memory:
        raise ModelError(f"{takes} and {format_bytes(memory)} of memory are free; free some, or take a smaller configuration")


def main() -> int:
    """Fill the folder named on the command line; what is wrong is the last line on stderr."""
    folder, source = sys.argv[1:]
    try:
        write_weights(Path(folder), source)
    except QuantbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
