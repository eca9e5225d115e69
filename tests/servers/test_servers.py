"""Real servers, started by a run: ``tox -e servers`` makes them and names their folder in ``QUANTBENCH_TEST_SERVERS``.

Nothing here is about how fast they are: that is measured with nothing beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import quantbench
from quantbench.core.errors import ModelError
from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.measuring.passes.similarity import log_softmax
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.runtimes import open_tokenizer

MADE = os.environ.get("QUANTBENCH_TEST_SERVERS", "")
pytestmark = pytest.mark.skipif(not MADE, reason="needs real servers: tox -e servers")

PROMPT = "The function returns"
SERVERS = ("llama-server/q8_0", "vllm/bf16:--enforce-eager")
LOCAL = {"llama-server/q8_0": "gguf/q8_0", "vllm/bf16:--enforce-eager": "torch/bf16"}


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTBENCH_LLAMA_SERVER", f"{MADE}/llama-server")
    monkeypatch.setenv("QUANTBENCH_VLLM", f"{MADE}/vllm")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def settings() -> Settings:
    return Settings(checkpoint=resolve("canary"), threads=1, context=128)


def spec(server: str, variant: str = "server/as-served") -> Spec:
    method, _, precision = variant.partition("/")
    conditions = Conditions(server=server, concurrency=2)
    return Spec(model="canary", variant=Variant(method=method, precision=precision), conditions=conditions)


def processes() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("server", SERVERS)
def test_it_says_what_the_same_weights_say_here(server: str) -> None:
    """The greedy text, the log-probabilities, counts of tokens; and nothing is left of it."""
    tokenizer = open_tokenizer(resolve("canary"))
    ids = tokenizer.encode(PROMPT)
    with METHODS[LOCAL[server].partition("/")[0]].open(spec("", LOCAL[server]), settings()) as model:
        expected = tokenizer.decode(list(model.generate(ids, 12)))
        (logprobs,) = log_softmax(np.concatenate([chunk.copy() for chunk in model.score(ids, first=len(ids) - 1)]))
    before = processes()
    with METHODS["server"].open_endpoint(spec(server), settings()) as endpoint:
        assert processes() > before
        given = endpoint.top_tokens(PROMPT, 5)
        answer = endpoint.answer(PROMPT, 12)
        fixed = endpoint.timed(PROMPT, 60)
        facts = endpoint.facts
    assert processes() == before
    assert "".join(answer.pieces).strip() == expected.strip()
    assert (answer.tokens, answer.prompt_tokens) == (12, len(ids))
    assert fixed.tokens == 60
    assert (fixed.native["prompt_tokens"], fixed.native["tokens"]) == (len(ids), pytest.approx(59, rel=1e-3))
    assert given is not None
    np.testing.assert_allclose(sorted(given.values(), reverse=True), np.sort(logprobs)[::-1][:5], atol=0.1)
    assert facts["kernel"].startswith(server.partition("/")[0])
    assert facts["request_extras"].startswith("asked for: usage, no prompt cache")


def test_what_vllm_refuses_is_said_in_its_own_words() -> None:
    with (
        pytest.raises(ModelError, match=r"vllm serve ended as it started \(exit code \d; .*fp9"),
        METHODS["server"].open_endpoint(spec("vllm/fp9"), settings()),
    ):
        pass


def rows(folder: Path, server: str, *, kill: bool) -> dict[str, dict[str, Any]]:
    """The rows of a run with the server's variant and the local one, by variant; ``kill`` the server as soon as it is there."""
    local, _, precision = LOCAL[server].partition("/")
    command = [
        sys.executable, "-c", "from quantbench.cli import main; main()",
        "run", "--model", "canary", "--method", f"{local},server",
        "--precision", f"{precision},as-served", "--prompts", "two", "--server", server, "--concurrency", "4",
        "--results", str(folder), "--threads", "1", "--profile", "quick", "--no-energy", "--no-probes",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
        while kill and run.poll() is None and not _killed(run.pid):
            time.sleep(0.01)
    found = quantbench.load(str(folder)).astype(object)
    return {f"{row['method']}/{row['precision']}": row for row in found.where(found.notna(), None).to_dict("records")}


def _killed(pid: int) -> bool:
    """Kill the server that runs somewhere below ``pid``; False where there is none yet."""
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if process.name() == "llama-server":
                process.kill()
                return True
    return False


@pytest.mark.parametrize("server", SERVERS)
def test_a_run_has_every_figure_or_its_reason(server: str, tmp_path: Path) -> None:
    found = rows(tmp_path, server, kill=False)
    row = found["server/as-served"]
    assert row["status"] == found[LOCAL[server]]["status"] == "ok", row["reason"]
    absent = json.loads(row["null_reasons"])
    for name in ("decode_tps", "tpot_s", "tpot_difference_s", "ttft_s", "concurrent_tps", "topk_kld", "native_decode_tps"):
        assert row[name] > 0, absent.get(name)
    assert 0 < row["topk_tail"] < 1
    assert row["server_pss_bytes"] > 2e7
    assert absent["server_device_bytes"] == "the model ran on the CPU"
    assert row["saturation_concurrency"] in (1, 2) or "not saturated at 4" in absent["saturation_concurrency"]


def test_a_server_that_is_killed_costs_its_row_only(tmp_path: Path) -> None:
    found = rows(tmp_path, "llama-server/q8_0", kill=True)
    assert found["gguf/q8_0"]["status"] == "ok"
    assert found["server/as-served"]["status"] == "error"
    assert "llama-server ended" in found["server/as-served"]["reason"]
    assert "SIGKILL" in found["server/as-served"]["reason"]
