"""The same matrix by every engine, the loss of a driver and of a machine, results in S3: on clusters of this one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd
import pytest

import quantbench
from quantbench.core.machine import describe
from quantbench.core.scenario import Effort
from quantbench.planning.options import Plan
from quantbench.results.store import Run
from quantbench.running.engines.slurm import SlurmFleet
from quantbench.running.errand import Errand, Order
from quantbench.running.placing import Need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MATRIX = """
control = true
prompts = ["two"]
[methods]
stub = ["exact", "noisy", "error", "odd"]
[conditions]
reference = "stub/exact"
threads = 1
output_tokens = 4
answer_tokens = 4
continuation_tokens = 8
"""
SAME = (
    "scenario_key", "model", "method", "precision", "prompts", "status", "reason", "control", "reference", "is_reference",
    "bits", "device", "threads", "context", "seed", "kernel", "instrument_check", "machine", "versions", "weight_bytes",
    "kld_mean", "kld_mean_se", "kld_median", "kld_max", "top1_agreement", "delta_p_rms", "ppl", "ppl_ratio", "exact_match",
    "token_match", "chrf", "stub_answers", "attempts", "schema_version",
)  # fmt: skip
"""What is the same wherever it is measured."""

LOCAL_SLURM = """
import sys
import pytest
from quantbench.running.engines import slurm
slurm.CLUSTER = "local"
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def place(
    stub_path: Path, stub_cache: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder to run pytest in, with the environment that its children need, clusters among them."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "test_decode.py").write_text("from quantbench.suite.test_latency import test_decode\n")
    (folder / "matrix.toml").write_text(MATRIX)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "PYTHONPATH": str(stub_path), "QUANTBENCH_CACHE": str(stub_cache(folder)), "STUB_UNWATCHED": "1",
            "STUB_WITHOUT_TORCH": "1",
            "PYTEST_ADDOPTS": "", "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        yield folder


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Any]:
    """A head without CPUs, as on Kubernetes, and two machines of one each."""
    pytest.importorskip("ray", reason="needs Ray: tox -e fleet")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.machines = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    made.shutdown()


def arguments(engine: str, results: str, *more: str) -> list[str]:
    """The command that measures the matrix."""
    code = ["-c", LOCAL_SLURM] if engine == "slurm" else ["-m", "pytest"]
    return [
        sys.executable, *code, "-p", "no:cacheprovider", "--quantbench-matrix=matrix.toml", "--quantbench-profile=quick",
        "--quantbench-no-probes", f"--quantbench-engine={engine}", f"--quantbench-results={results}", *more,
    ]  # fmt: skip


def run(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A driver, from its start to its end."""
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)


def rows(results: str | Path) -> pd.DataFrame:
    """All rows by scenario."""
    return quantbench.load(str(results)).set_index("scenario_id").sort_index()


@pytest.fixture(scope="module")
def by_process(place: Path) -> pd.DataFrame:
    """The rows of the usual engine."""
    ended = run(place, *arguments("process", "by-process"))
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED, ended.stdout  # two stubs fail
    return rows(place / "by-process")


class TestTheSameMatrixHasEqualRows:
    def compared(self, place: Path, engine: str, by_process: pd.DataFrame, *more: str) -> str:
        """Run it by an engine, and compare; what it printed."""
        ended = run(place, *arguments(engine, f"by-{engine}", *more))
        assert ended.returncode == pytest.ExitCode.TESTS_FAILED, ended.stdout + ended.stderr
        found = rows(place / f"by-{engine}")
        assert found.status.value_counts().to_dict() == {"ok": 3, "error": 2}
        for name in SAME:
            pd.testing.assert_series_equal(found[name], by_process[name])
        (own,) = pd.read_parquet(place / f"by-{engine}" / "runs").to_dict("records")
        assert (own["engine"], own["planned"], own["finished"], own["ok"], own["interrupted"]) == (engine, 5, 5, 3, False)
        return ended.stdout

    def test_inline(self, place: Path, by_process: pd.DataFrame) -> None:
        self.compared(place, "inline", by_process)

    def test_ray(self, place: Path, by_process: pd.DataFrame, cluster: Any) -> None:
        said = self.compared(place, "ray", by_process, f"--quantbench-ray-address={cluster.address}")
        assert "3 passed" in said  # pytest shows what came back

    def test_slurm(self, place: Path, by_process: pd.DataFrame) -> None:
        pytest.importorskip("submitit", reason="needs submitit: tox -e fleet")
        self.compared(place, "slurm", by_process)


def wait_for_rows(results: Path, driver: subprocess.Popen[str], count: int = 1) -> list[Path]:
    """The files of the first rows, as soon as there are so many."""
    deadline = time.monotonic() + 120
    while len(stored := sorted(results.glob("scenarios/*/[!.]*.parquet"))) < count:
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return stored


def test_rows_outlive_the_driver_and_a_resumed_run_goes_on_after_them(
    place: Path, cluster: Any, by_process: pd.DataFrame
) -> None:
    command = arguments("ray", "cut", f"--quantbench-ray-address={cluster.address}")
    with subprocess.Popen(command, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
        wait_for_rows(place / "cut", driver)
        os.kill(driver.pid, signal.SIGKILL)
    ok = {path: path.stat().st_mtime_ns for path in (place / "cut").glob("scenarios/*/*.parquet")}
    ok = {path: when for path, when in ok.items() if pd.read_parquet(path).status[0] == "ok"}

    ended = run(place, *command, "--quantbench-resume=last")

    assert ended.returncode == pytest.ExitCode.TESTS_FAILED, ended.stdout
    found = rows(place / "cut")
    assert found.index.tolist() == by_process.index.tolist()
    assert found.status.tolist() == by_process.status.tolist()
    assert len(set(found.run_id)) == 1
    assert ok
    assert all(path.stat().st_mtime_ns == when for path, when in ok.items())
    assert "had been measured before" in ended.stdout


def test_the_job_of_a_lost_machine_goes_to_another(place: Path, cluster: Any, by_process: pd.DataFrame) -> None:
    command = arguments("ray", "lost", f"--quantbench-ray-address={cluster.address}")
    with subprocess.Popen(command, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
        wait_for_rows(place / "lost", driver)
        cluster.remove_node(cluster.machines.pop(), allow_graceful=False)  # both are at work until there is nothing left to do
        said, _ = driver.communicate(timeout=240)
    cluster.machines.append(cluster.add_node(num_cpus=1))

    assert driver.returncode == pytest.ExitCode.TESTS_FAILED, said
    assert "a machine of the Ray cluster was lost, and the job of stub-" in said
    found = rows(place / "lost")
    assert found.index.tolist() == by_process.index.tolist()
    assert found.status.tolist() == by_process.status.tolist(), found.reason.tolist()


def test_without_timing_there_are_bytes_and_quality(place: Path, cluster: Any) -> None:
    ended = run(place, *arguments("ray", "untimed", f"--quantbench-ray-address={cluster.address}", "--quantbench-untimed"))
    assert "3 skipped" in ended.stdout, ended.stdout
    found = rows(place / "untimed")
    assert found.decode_tps.isna().all()
    assert found.kld_mean.notna().sum() == found.weight_bytes.notna().sum() == 3
    assert "--untimed was asked for" in found.null_reasons["canary/stub-noisy/two"]


@pytest.fixture(scope="module")
def bucket(place: Path) -> Iterator[str]:
    """The URI of a folder in an S3 that is only this test's."""
    server = pytest.importorskip("moto.server", reason="needs moto's server: tox -e fleet")
    boto3 = pytest.importorskip("boto3", reason="comes with moto")
    served = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    served.start()
    host, port = served.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="bench")
    yield f"s3://bench/results?region=us-east-1&scheme=http&endpoint_override={quote(f'{host}:{port}')}"
    served.stop()


@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_rows_go_to_s3_and_a_run_in_it_is_resumed(
    place: Path, bucket: str, engine: str, by_process: pd.DataFrame, request: pytest.FixtureRequest
) -> None:
    results = bucket.replace("results", f"by-{engine}")
    more = [f"--quantbench-ray-address={request.getfixturevalue('cluster').address}"] if engine == "ray" else []
    ended = run(place, *arguments(engine, results, *more))
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED, ended.stdout + ended.stderr
    assert rows(results).status.value_counts().to_dict() == {"ok": 3, "error": 2}, rows(results).reason.tolist()
    again = run(place, *arguments(engine, results, *more, "--quantbench-resume=last"))
    assert "resumed: 3 of the 5 scenarios" in " ".join(again.stdout.split()), again.stdout
    found = rows(results)
    for name in SAME:
        pd.testing.assert_series_equal(found[name], by_process[name])


def test_a_method_brings_an_environment_of_its_own(place: Path, cluster: Any) -> None:
    """Which reaches the processes that measure."""
    (place / "test_own.py").write_text(
        "from quantbench.methods import METHODS\n"
        "METHODS['stub'].runtime_env = {'env_vars': {'STUB_NOISE': '0'}}\n"
        "from quantbench.suite.test_latency import test_decode\n"
    )
    command = arguments("ray", "own", f"--quantbench-ray-address={cluster.address}", "test_own.py", "-k", "noisy or exact")
    assert run(place, *command).returncode == 0
    assert rows(place / "own").kld_mean["canary/stub-noisy/two"] == 0  # the noisy stub is exact with that


SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/script"
echo Submitted batch job 7
"""


def test_the_script_that_slurm_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit", reason="needs submitit: tox -e fleet")
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(SBATCH)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    facts: dict[str, Any] = {"versions": {}, "command": "", "commit": "", "profile": "quick", "engine": "slurm"}
    plan = Plan(scenarios=(), effort=Effort(timeout_s=60), engine="slurm")
    order = Order(run=Run(machine=describe(), **facts), plan=plan, results=str(tmp_path), folder=tmp_path)
    of = Errand(order=order, scenarios=(), numbers={}, probed=False, need=Need(cpus=1, gpus=1, alone=True))

    SlurmFleet(submitit.AutoExecutor(folder=tmp_path / "logs", cluster="slurm")).send([of, of, of])

    script = (tmp_path / "script").read_text()
    for wanted in ("--exclusive", "--gpus-per-node=1", "--mem=0", "--time=4", "--array=0-2%3", "--job-name=quantbench"):
        assert f"#SBATCH {wanted}\n" in script
    assert "\nsrun " not in script


BAD = {
    "an address where nothing answers": (["--engine=ray", "--ray-address=127.0.0.1:1"], "no Ray answers at 127.0.0.1:1 ("),
    "no address at all": (["--engine=ray", "--ray-address=a:b"], "no Ray answers at a:b ("),
    "an address of no use": (["--engine=process", "--ray-address=auto"], "--ray-address is of no use to engine 'process'"),
    "no Slurm here": (["--engine=slurm"], "finds no sbatch and srun here"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(place: Path, case: str) -> None:
    given, sentence = BAD[case]
    if "ray" in given[0]:
        pytest.importorskip("ray", reason="needs Ray: tox -e fleet")
    if "slurm" in given[0]:
        pytest.importorskip("submitit", reason="needs submitit: tox -e fleet")
    ended = run(place, sys.executable, "-c", "from quantbench.cli import main; main()", "run", "--matrix=matrix.toml", *given)
    said = " ".join((ended.stdout + ended.stderr).split())
    assert ended.returncode == 2, said
    assert sentence in said
    assert "Traceback" not in said
