"""Asked for a GPU and found on the CPU is an error with both named, from the check itself to the worker's report."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import ModelError
from quantbench.core.job import FAILURE_FILE, Job, Task
from quantbench.core.scenario import SEEDED_INPUTS, Conditions, Effort, Precision, Spec, Variant
from quantbench.measuring.anchor import Anchor
from quantbench.measuring.subjects import causal, check_device, module
from quantbench.measuring.worker import run_job
from quantbench.methods import METHODS, Settings, method
from quantbench.models.checkpoint import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

PLACES = {"lost": "cpu", "partly": "cpu+cuda:0", "offloaded": "cuda:0+meta", "other": "cuda:1", "silent": "", "there": "cuda:0"}


@pytest.mark.parametrize(
    ("asked", "found"),
    [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cuda", "cuda:0+cuda:1"), ("cpu", "")],
)
def test_a_model_where_it_should_be_is_fine(asked: str, found: str) -> None:
    check_device(asked, {"device": found}, "m/p")
    if asked == "cpu":
        check_device(asked, {}, "m/p")


@pytest.mark.parametrize(
    ("asked", "found", "words"),
    [
        ("cuda", "cpu", "weights of m/p are on cpu;"),
        ("cuda", "cpu+cuda:0", "are on cpu and cuda:0;"),
        ("cuda:0", "cuda:0+meta", "are on cuda:0 and meta;"),
        ("cuda:1", "cuda:0", "are on cuda:0;"),
        ("cpu", "cuda:0", "are on cuda:0;"),
        ("cpu", "cpu+meta", "are on cpu and meta;"),
        ("cuda", "vulkan0", "are on vulkan0;"),
        ("cuda:0", "", "m/p does not say where its weights are"),
    ],
)
def test_a_model_elsewhere_is_an_error_that_names_both(asked: str, found: str, words: str) -> None:
    with pytest.raises(ModelError, match=r"^[^.]*$") as error:
        check_device(asked, {"device": found}, "m/p")
    assert f"device {asked!r} was asked for and" in str(error.value)
    assert words in str(error.value)


class Placed:
    """A model, or a module, that says where it is and comes no further."""

    parameters = 1

    def __init__(self, place: str) -> None:
        self.facts: Mapping[str, str] = {"kernel": "fake", **({"device": place} if place else {})}

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def memory(self) -> Any:
        raise RuntimeError("it was let through")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plug_in: Callable[..., None]
) -> Callable[[str, str], dict[str, str]]:
    """What a worker reports of a job on ``cuda`` with the method ``placed``."""

    @method(
        "placed", precisions=[Precision(name=name, bits=8) for name in PLACES], requires=[], anchor="placed/there",
        kinds=("hf", "module"),
    )  # fmt: skip
    @contextmanager
    def open_placed(spec: Spec, settings: Settings) -> Iterator[Any]:
        yield Placed(PLACES[spec.variant.precision])

    plug_in(METHODS, open_placed)
    for subject in (causal, module):
        monkeypatch.setattr(subject, "memory_bandwidth", lambda *_: "not here", raising=False)

    def report(model: str, precision: str, kind: Any = "measure") -> dict[str, str]:
        prompts = (SEEDED_INPUTS, ("",)) if model == "lstm" else ("two", ("a prompt",))
        Job(
            kind=kind, checkpoint=resolve(model), variant=Variant(method="placed", precision=precision),
            conditions=Conditions(device="cuda", threads=1), effort=Effort(),
            tasks=(Task(prompts_name=prompts[0], prompts=prompts[1], reference=None),),
        ).save(tmp_path)  # fmt: skip
        assert run_job(tmp_path) == 1
        failure: dict[str, str] = json.loads((tmp_path / FAILURE_FILE).read_text())
        return failure

    return report


@pytest.mark.parametrize("model", ["canary", "lstm"])
@pytest.mark.parametrize("precision", ["lost", "partly", "offloaded", "silent"])
def test_a_worker_that_falls_back_reports_an_error_not_a_slow_row(
    model: str, precision: str, run: Callable[[str, str], dict[str, str]]
) -> None:
    failure = run(model, precision)
    assert failure["status"] == "error"
    assert failure["reason"].startswith(
        f"device 'cuda' was asked for and {'' if precision == 'silent' else 'weights of '}placed/"
    )


@pytest.mark.parametrize("model", ["canary", "lstm"])
def test_a_model_on_the_device_goes_on(model: str, run: Callable[[str, str], dict[str, str]]) -> None:
    assert "it was let through" in run(model, "there")["reason"]


def test_a_reference_that_falls_back_is_an_error_too(run: Callable[..., dict[str, str]]) -> None:
    assert run("canary", "lost", kind="reference")["reason"].startswith(
        "device 'cuda' was asked for and weights of placed/lost"
    )


@pytest.mark.parametrize("opener", [causal._open_anchor, module._open_anchor])
def test_an_anchor_that_falls_back_is_an_error_too(opener: Callable[..., Any], run: Callable[..., dict[str, str]]) -> None:
    settings = Settings(checkpoint=resolve("canary"), threads=1, context=64)

    there = Variant(method="placed", precision="there")

    def anchor(precision: str) -> Anchor:
        variant = Variant(method="placed", precision=precision)
        spec = Spec(model="canary", variant=variant, conditions=Conditions(device="cuda"))
        return Anchor(name=variant.name, spec=spec, settings=settings)

    with ExitStack() as stack:
        assert opener(stack, Placed("cuda:0"), anchor("other"), there).facts["device"] == "cuda:1"
        with pytest.raises(ModelError, match="the anchor placed/lost"):
            opener(stack, Placed("cuda:0"), anchor("lost"), there)
