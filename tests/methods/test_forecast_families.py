"""Forecasts for models of no known family are, to the byte, what the methods hold once they have loaded one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quantbench.core.scenario import Conditions, Spec, Variant
from quantbench.methods import METHODS, Settings
from quantbench.models import meta
from quantbench.models.architecture.shapes import from_shapes
from quantbench.models.checkpoint import resolve
from quantbench.models.config import read_architecture

SMALL: Mapping[str, Any] = {
    "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "vocab_size": 2051, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
KINDS = ("olmo2", "cohere", "granite", "stablelm", "starcoder2", "olmoe")
VARIANTS = ("torch/fp32", "torch/bf16", "bitsandbytes/int8", "bitsandbytes/nf4", "torchao/int8-wo")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A checkpoint of each kind with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp(kind)
        config = AutoConfig.for_model(kind, **SMALL, **({"num_experts": 4} if kind == "olmoe" else {}))
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folders[kind])
    return folders


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_headers_and_transformers_module_foretell_what_is_loaded(saved: Mapping[str, Path], kind: str, variant: str) -> None:
    from transformers import AutoConfig

    folder, (method, _, precision) = saved[kind], variant.partition("/")
    forecaster = METHODS[method].forecaster
    assert forecaster
    body = json.loads((folder / "config.json").read_text())
    from_headers = read_architecture(str(folder))
    described = meta.describe(meta.build(AutoConfig.from_pretrained(folder)))
    from_module = from_shapes(body, kind, kind, meta.as_shapes(described))
    spec = Spec(model=str(folder), variant=Variant(method=method, precision=precision), conditions=Conditions())
    with METHODS[method].open(spec, Settings(checkpoint=resolve(str(folder)), threads=1, context=64)) as loaded:
        held = loaded.memory().weight_bytes
    assert [forecaster(each, [precision])[precision].weight_bytes for each in (from_headers, from_module)] == [held, held]
