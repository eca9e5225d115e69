"""Servers that a run starts: what they are told, every way to fail as one sentence, and nothing left of them afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from quantbench.core.errors import MissingDependency, ModelError, UnsupportedError, UsageError
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.core.serving import StartedServer, parse_started
from quantbench.measuring.passes.server_memory import watched
from quantbench.methods import METHODS, Settings
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.llama_cpp import llama_server
from quantbench.runtimes.openai import started, vllm
from quantbench.runtimes.openai.client import connect
from quantbench.runtimes.openai.started import LocalServer

FAKE = Path(__file__).with_name("fake_server.py")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable that passes for both servers, named by both variables."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {FAKE} \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setenv(llama_server.VARIABLE, str(program))
    monkeypatch.setenv(vllm.VARIABLE, str(tmp_path))
    return program


def llama(*flags: str, patience_s: float = 60.0) -> AbstractContextManager[LocalServer]:
    settings = replace(canary(), threads=2)
    return llama_server.serve(Path("model.gguf"), settings, device="cpu", concurrency=4, flags=flags, patience_s=patience_s)


def canary() -> Settings:
    return Settings(checkpoint=resolve("canary"), threads=1, context=128)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or is about to be forgotten; waits a while for that."""
    with suppress(psutil.NoSuchProcess):
        process, deadline = psutil.Process(pid), time.monotonic() + 20
        while time.monotonic() < deadline:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.02)
        return False
    return True


class TestName:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("gguf/q8_0", ("gguf", "q8_0", ())),
            ("llama-server", ("llama-server", "", ())),
            ("llama-server/q4_k_m:-fa on -np 8", ("llama-server", "q4_k_m", ("-fa", "on", "-np", "8"))),
            ("vllm:--compilation-config '{\"a\": 1}'", ("vllm", "", ("--compilation-config", '{"a": 1}'))),
            ("vllm/fp8", ("vllm", "fp8", ())),
        ],
    )
    def test_kind_precision_and_flags(self, text: str, expected: tuple[str, str, tuple[str, ...]]) -> None:
        kind, precision, flags = expected
        assert parse_started(text) == StartedServer(kind=kind, precision=precision, flags=flags)
        assert Conditions(server=text).server == text

    @pytest.mark.parametrize("text", ["http://vllm/v1", "https://h/v1#vllm"])
    def test_a_url_is_none(self, text: str) -> None:
        assert parse_started(text) is None

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("llama-server/", "names no precision after the slash"),
            ("vllm/../x", "names no precision after the slash"),
            ("vllm:8000/v1", "has no flags after the colon; write vllm:--flag, or a URL"),
            ("vllm:", "has no flags after the colon"),
            ("vllm:--a 'b", "cannot be read"),
            ("gguf/q8_0:--verbose", "does not take; use llama-server"),
            ("llama-server:-fa on --port 80", "cannot be given --port"),
            ("llama-server:--api-key=hush", "cannot be given --api-key"),
            ("llama-server:-m other.gguf", "cannot be given -m"),
            ("vllm:--trust_remote_code", "cannot be given --trust-remote-code"),
            ("vllm:--trust-remote", "cannot be given --trust-remote"),
            ("lama-server", "is not a URL"),
        ],
    )
    def test_what_cannot_be_read_is_said_before_anything_runs(self, text: str, sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence) as caught:
            Conditions(server=text)
        assert "hush" not in str(caught.value)


class TestCommand:
    def test_llama_server_gets_the_file_the_slots_and_only_what_the_row_names(
        self, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMA_ARG_THREADS", "7")
        with llama("--tell", str(tmp_path / "told"), "-fa", "on") as server:
            assert server.kernel == "llama-server cpu b1-abc"
        told = json.loads((tmp_path / "told").read_text())
        arguments, env = told["arguments"], told["env"]
        expected = {"--model": "model.gguf", "--ctx-size": "512", "--parallel": "4", "--threads": "2", "-fa": "on"}
        assert {name: arguments[arguments.index(name) + 1] for name in expected} == expected
        assert env["LLAMA_API_KEY"] == server.key
        assert server.key not in " ".join(arguments)
        assert server.key not in repr(server)
        assert "LLAMA_ARG_THREADS" not in env
        assert env["CUDA_VISIBLE_DEVICES"] == ""

    @pytest.mark.parametrize(
        ("device", "layers", "expected"),
        [
            ("cpu", None, ["--n-gpu-layers", "0"]), ("cuda", None, ["--n-gpu-layers", "999"]),
            ("cuda:1", 20, ["--n-gpu-layers", "20", "--device", "CUDA1"]),
        ],
    )  # fmt: skip
    def test_llama_server_gets_the_device_and_how_many_layers_are_on_it(
        self, fake: Path, tmp_path: Path, device: str, layers: int | None, expected: list[str]
    ) -> None:
        assert fake.exists()
        flags = ("--tell", str(tmp_path / "told"))
        with llama_server.serve(Path("m.gguf"), canary(), device=device, concurrency=1, flags=flags, gpu_layers=layers):
            arguments = json.loads((tmp_path / "told").read_text())["arguments"]
        start = arguments.index("--n-gpu-layers")
        assert arguments[start : arguments.index("--tell")] == expected

    @pytest.mark.parametrize(
        ("precision", "expected"), [("", []), ("bf16", ["--dtype", "bfloat16"]), ("fp8", ["--quantization", "fp8"])]
    )
    def test_vllm_gets_the_folder_and_the_precision(
        self, fake: Path, tmp_path: Path, precision: str, expected: list[str]
    ) -> None:
        flags = ("--tell", str(tmp_path / "told"))
        with vllm.serve(canary(), precision=precision, device="cpu", flags=flags) as server:
            assert server.kernel == "vllm cpu 0.0"
        told = json.loads((tmp_path / "told").read_text())
        arguments, env = told["arguments"], told["env"]
        assert arguments[1:3] == ["serve", str(resolve("canary").path)]
        assert arguments[arguments.index("--max-model-len") + 1] == "128"
        assert "--no-enable-prefix-caching" in arguments
        assert [each for each in arguments if each in ("--dtype", "--quantization")] == expected[:1]
        assert set(expected) <= set(arguments)
        assert (env["VLLM_API_KEY"], env["VLLM_NO_USAGE_STATS"], env["HF_HUB_OFFLINE"]) == (server.key, "1", "1")
        assert len(env["VLLM_CPU_OMP_THREADS_BIND"].split(",")) == 1

    def test_a_build_for_cpus_is_not_started_for_a_gpu(self, fake: Path) -> None:
        info = fake.parents[1] / "lib" / "python3.11" / "site-packages" / "vllm-0.32.0+cpu.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
        opened = vllm.serve(canary(), precision="", device="cuda", flags=())
        with pytest.raises(UnsupportedError, match="is built for CPUs and the device is cuda"), opened:
            pass


class TestMissing:
    @pytest.mark.parametrize("module", [llama_server, vllm])
    def test_a_program_that_is_not_there(self, module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv(module.VARIABLE, raising=False)
        with pytest.raises(MissingDependency, match=f"on the path; install .* set {module.VARIABLE} to"):
            module.executable()
        monkeypatch.setenv(module.VARIABLE, str(tmp_path))
        with pytest.raises(MissingDependency, match=f"{module.VARIABLE}={tmp_path} "):
            module.executable()

    def test_a_checkpoint_needs_a_precision_and_vllm_a_folder(self, tmp_path: Path) -> None:
        for server, checkpoint, sentence in (
            ("llama-server", resolve("canary"), "say in which precision, for example --server llama-server/q8_0"),
            ("vllm", _gguf(tmp_path), "vllm serves checkpoint folders"),
        ):
            variant = Variant(method="server", precision="as-served")
            spec = Spec(model="m", variant=variant, conditions=Conditions(server=server))
            opened = METHODS["server"].open_endpoint(spec, Settings(checkpoint=checkpoint, threads=1, context=64))
            with pytest.raises((UsageError, UnsupportedError), match=sentence), opened:
                pass


def _gguf(folder: Path) -> Checkpoint:
    return Checkpoint(name="m.gguf", kind="gguf", path=folder / "m.gguf", revision="", content_hash="")


def test_a_checkpoint_quantized_elsewhere_is_served_but_only_where_a_server_is_named() -> None:
    server = METHODS["server"]
    server.check(replace(resolve("canary"), quantized="gptq"))
    assert server.held({"quant_method": "gptq"}) == ()
    with pytest.raises(UnsupportedError, match="already quantized \\(novel\\)"):
        server.check(replace(resolve("canary"), quantized="novel"))


class TestFailures:
    def test_one_that_ends_at_once_says_so_with_its_last_lines(self, fake: Path) -> None:
        opened = llama("--die", "one\ntwo\n\x1b[31mthree\nfour")
        with pytest.raises(ModelError) as caught, opened:
            pass
        words = "llama-server ended as it started (exit code 1; its last lines were: two | [31mthree | four)"
        assert str(caught.value) == words

    def test_the_first_exception_comes_before_those_that_follow_from_it(self, fake: Path) -> None:
        said = "INFO as OSError: x\n(W pid=1) ERROR [a.py:1] ValueError: fp9 is unknown\na\nb\nRuntimeError: x"
        opened = llama("--die", said)
        with pytest.raises(ModelError, match=r": ValueError: fp9 is unknown \| a \| b \| RuntimeError: x\)"), opened:
            pass

    def test_one_that_never_becomes_healthy_is_ended(self, fake: Path, tmp_path: Path) -> None:
        opened = llama("--deaf", "--child", str(tmp_path / "pids"), patience_s=1.5)
        with pytest.raises(ModelError, match=r"llama-server was not ready within 1.5 s; free memory"), opened:
            pass
        assert all(map(is_gone, json.loads((tmp_path / "pids").read_text())))

    def test_another_program_on_its_port_is_not_taken_for_it(self, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Yes(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
                """Keep quiet."""

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

        other = HTTPServer(("127.0.0.1", 0), Yes)
        thread = Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(started, "_free_port", lambda: other.server_address[1])
        try:
            with pytest.raises(ModelError, match=r"ended as it started .*Address already in use"), llama():
                pass
        finally:
            other.shutdown()
            thread.join()
            other.server_close()

    def test_one_that_is_killed_while_it_is_used(self, fake: Path, tmp_path: Path) -> None:
        pids = tmp_path / "pids"

        def use() -> None:
            with llama("--child", str(pids)) as server, connect(server.address, key=server.key, facts={}) as endpoint:
                assert endpoint.answer("Say", 3).pieces == ("a", "b", "c")
                os.kill(json.loads(pids.read_text())[0], signal.SIGKILL)
                endpoint.answer("Say", 3)

        with pytest.raises(ModelError, match=r"^llama-server ended while it was used \(SIGKILL\)$"):
            use()
        assert all(map(is_gone, json.loads(pids.read_text())))


class TestUse:
    def test_its_own_timings_come_with_an_answer(self, fake: Path) -> None:
        """Two tokens in 4 ms: the first is the prompt's."""
        with llama() as server, connect(server.address, key=server.key, facts={}) as endpoint:
            answer = endpoint.timed("Say", 3)
            again = endpoint.native("Say", 3)
        assert answer.native == {"prompt_tokens": 3, "prefill_s": 0.006, "tokens": 2, "decode_s": 0.004}
        assert again == {}

    def test_its_memory_is_that_of_all_its_processes_and_not_of_others(self, fake: Path, tmp_path: Path) -> None:
        with llama("--child", str(tmp_path / "pids")) as server:
            with watched(server.pid, "cpu") as watch:
                pass
            each = [psutil.Process(pid).memory_full_info().pss for pid in json.loads((tmp_path / "pids").read_text())]
        found = watch.found()
        assert found.pss_bytes == pytest.approx(sum(each), rel=0.2)
        assert min(each) > 0
        assert (found.device_bytes, found.absent) == (None, {"device_bytes": "the model ran on the CPU"})


class TestEnd:
    def test_nothing_is_left_of_it(self, fake: Path, tmp_path: Path) -> None:
        """Not even a process that left its group."""
        with llama("--child", str(tmp_path / "pids")):
            pids = json.loads((tmp_path / "pids").read_text())
            assert all(map(psutil.pid_exists, pids))
        assert all(map(is_gone, pids))

    def test_it_ends_with_a_worker_that_is_killed(self, fake: Path, tmp_path: Path) -> None:
        pids = tmp_path / "pids"
        program = (
            "import sys, time; from pathlib import Path; from quantbench.core.protocols import Settings\n"
            "from quantbench.models.checkpoint import resolve; from quantbench.runtimes.llama_cpp import llama_server\n"
            "settings = Settings(checkpoint=resolve('canary'), threads=1, context=64)\n"
            "with llama_server.serve(Path('m'), settings, device='cpu', concurrency=1, flags=['--child', sys.argv[1]]):\n"
            "    print('ready', flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-c", program, str(pids)], stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
            worker.kill()
        assert all(map(is_gone, json.loads(pids.read_text())))
