"""Several prompts sampled together: what is drawn is what each prompt alone would draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quantbench.core.scenario import Spec, Variant
from quantbench.methods import METHODS, LoadedModel, SamplesTogether, Sampling, Settings, until_end
from quantbench.models.checkpoint import resolve
from quantbench.runtimes.transformers import sampled

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPTS = [[1, 5, 9], [1, 300], [1, *range(40, 90)], [1, 7, 7, 7, 8]]
SAMPLINGS = [Sampling(seed=seed) for seed in range(4)]


@pytest.fixture(scope="module")
def model() -> Iterator[LoadedModel]:
    spec = Spec(model="canary", variant=Variant(method="torch", precision="fp32"))
    with METHODS["torch"].open(spec, Settings(checkpoint=resolve("canary"), threads=1, context=128)) as opened:
        yield opened


@pytest.mark.parametrize("ends", [(), (11, 13)])
def test_sampled_together_is_what_each_says_alone(model: LoadedModel, ends: tuple[int, ...]) -> None:
    alone = [until_end(model.generate(prompt, 12, each), ends) for prompt, each in zip(PROMPTS, SAMPLINGS, strict=True)]
    assert isinstance(model, SamplesTogether)
    assert list(model.sample_together(PROMPTS, 12, SAMPLINGS, ends)) == alone


def test_more_than_a_pass_holds_come_in_order(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(model, SamplesTogether)
    whole = list(model.sample_together(PROMPTS, 4, SAMPLINGS, ()))
    monkeypatch.setattr(sampled, "TOGETHER", 3)
    assert list(model.sample_together(PROMPTS, 4, SAMPLINGS, ())) == whole


def test_a_model_that_minds_padding_samples_one_by_one(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(model, SamplesTogether)
    whole = list(model.sample_together(PROMPTS, 4, SAMPLINGS, ()))
    monkeypatch.setattr(sampled, "same_alone", lambda *_: False)
    assert list(model.sample_together(PROMPTS, 4, SAMPLINGS, ())) == whole
