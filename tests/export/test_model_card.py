"""The table for a model's page: its cells, what its notes say, and a command that plans the same variants."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from quantbench.core.errors import UsageError
from quantbench.core.record import Missing
from quantbench.export import export
from quantbench.planning.options import RunOptions, plan
from quantbench.results.store import load

if TYPE_CHECKING:
    from quantbench.core.record import Record

Make = Callable[..., "Record"]
Store = Callable[[list["Record"]], str]

NO_GAP = "every answer came in one piece, so there is no time between tokens"
OTHERS = "others took 40% of the CPU time"
ONE = "one prompt has no spread between prompts"


def _figures(size: int, kld: float, tps: float, **changes: Any) -> dict[str, Any]:
    ends = (("low", 0.9, 0.98), ("high", 1.1, 1.02))
    spread = {f"{name}_{end}": value for end, a, b in ends for name, value in (("kld_mean", kld * a), ("decode_tps", tps * b))}
    figures = {"weight_bytes": size, "bits_per_weight": size / 125_000, "kld_mean": kld, "decode_tps": tps}
    return {**figures, **spread, "top1_agreement": 1 - kld / 2, "clusters": 10, **changes}


@pytest.fixture
def rows(make: Make) -> list[Record]:
    """A run of a million parameters: the pick, what is tied with it, and what for some reason is not."""
    ratio = {"ppl_ratio": 1.021, "ppl_ratio_low": 1.012, "ppl_ratio_high": 1.03}
    return [
        make("torch/fp32", **_figures(4_000_000, 0.0, 100.0)),
        make("torch/fp32-control", **_figures(4_000_000, 3e-6, 101.0)),
        make("gguf/q4_k_m", **_figures(612_500, 0.042, 400.0, **ratio)),
        make("gguf/q6_k", **_figures(820_000, 0.0045, 395.0)),
        make("bitsandbytes/nf4", **_figures(825_000, 0.043, 402.0, disturbed=True, disturbance=OTHERS)),
        make("gguf/q8_0", **_figures(1_062_500, 0.00076, 300.0, kld_mean_low=Missing(ONE), kld_mean_high=Missing(ONE))),
        make("gguf/f16", **_figures(2_000_000, 7e-7, 200.0, decode_tps=Missing(NO_GAP))),
        make("torch/fp16", status="oom", reason="no room"),
    ]


def _cells(text: str) -> list[list[str]]:
    """The cells of the first table as a reader of Markdown shows them, its line of rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    shown = [[re.sub(r"\\([\\`*\[\]|~])", r"\1", cell.strip()) for cell in cells] for cells in split]
    return [cells for cells in shown if set("".join(cells)) != set("-:")]


def _card(store: Store, rows: list[Record], **options: Any) -> str:
    return "".join(export("model-card", load(store(rows)), **options))


def test_the_cells_are_the_figures_by_size(store: Store, rows: list[Record]) -> None:
    assert _cells(_card(store, rows)) == [
        ["Variant", "Bits/weight", "Size", "KLD, nats", "Top-1", "PPL, x reference", "Decode, tokens/s"],
        ["gguf/q4_k_m", "4.90", "612 kB", "0.042 (0.038 to 0.046)", "97.9%", "1.02", "400 (392 to 408)"],
        ["gguf/q6_k", "6.56", "820 kB", "0.0045 (0.004 to 0.005)", "99.8%", "–", "395 (387 to 403)"],
        ["bitsandbytes/nf4", "6.60", "825 kB", "0.043 (0.039 to 0.047)", "97.9%", "–", "402 (394 to 410)~"],
        ["gguf/q8_0", "8.50", "1.06 MB", "7.6e-04", "100.0%", "–", "300 (294 to 306)"],
        ["gguf/f16", "16.00", "2 MB", "7.0e-07 (6.3e-07 to 7.7e-07)", "100.0%", "–", "–"],
        ["torch/fp32", "32.00", "4 MB", "0", "100.0%", "–", "100 (98 to 102)"],
    ]


def test_what_it_was_measured_on_and_what_to_know_stand_beside_it(store: Store, rows: list[Record]) -> None:
    text = _card(store, rows)
    for said in (
        "Ship gguf/q4_k_m", "against torch/fp32", "Example CPU, 2 threads", "2026-01-02",
        "Measured by quantbench 0.1.0, with torch 2.13.0",
        "prompts ten", "canary is an instrument check", f"{OTHERS} (bitsandbytes/nf4)", f"{ONE} (gguf/q8_0)",
        f"no Decode, tokens/s: {NO_GAP}", "has a KLD of 3.0e-06 nats from itself",
        "1 of 8 variants planned have no figures: 1 oom",
    ):  # fmt: skip
        assert said in text, said


def test_only_what_the_decision_could_not_tell_apart_is_tied(store: Store, rows: list[Record]) -> None:
    notes = [line for line in _card(store, rows).splitlines() if "tied" in line]
    assert [note.partition(" (")[0] for note in notes] == ["- tied in speed with gguf/q4_k_m: gguf/q6_k"]


def test_the_command_plans_every_variant_of_the_table(store: Store, rows: list[Record]) -> None:
    text = _card(store, rows)
    command = shlex.split(re.findall(r"```console\n(.*)\n```", text)[0])
    assert command[:2] == ["quantbench", "run"]
    given = dict(zip((name.removeprefix("--") for name in command[2::2]), command[3::2], strict=True))
    options = RunOptions.read(lambda option: given.get(option.name, option.default))
    planned = {scenario.id for scenario in plan(options).scenarios}
    assert {f"canary/{cells[0].replace('/', '-')}/ten" for cells in _cells(text)[1:]} <= planned


def test_metrics_narrow_the_columns(store: Store, rows: list[Record]) -> None:
    text = _card(store, rows, metrics=["kld_mean", "weight_bytes"])
    assert _cells(text)[0] == ["Variant", "Size", "KLD, nats"]
    with pytest.raises(UsageError, match="unknown metric with a direction 'peak_rss_bytes'"):
        _card(store, rows, metrics=["peak_rss_bytes"])


def test_a_hostile_name_stays_text(store: Store, make: Make) -> None:
    name = "evil|<img src=x>*b*`c`\n```\n# d"
    text = _card(store, [make(each, model=name, **_figures(1000, 0.01, 10.0)) for each in ("torch/fp32", "gguf/q8_0")])
    assert "<img" not in text.partition("```console")[0]
    assert [line for line in text.splitlines() if line.startswith(("```", "#"))][1:] == ["```console", "```"]
    assert len({len(cells) for cells in _cells(text)}) == 1


def test_a_run_in_which_nothing_was_measured_has_no_card(store: Store, make: Make) -> None:
    assert _card(store, [make("torch/fp16", status="oom", reason="no room")]) == ""
