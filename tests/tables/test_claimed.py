"""The claimed cells are the tutorial's, word for word."""

from __future__ import annotations

from quantbench.claims.claimed import claims
from quantbench.methods import METHODS

PRECISION = {
    "Precision": ["FP32", "FP16", "INT8", "INT4"],
    "Bits/value": ["32bit", "16bit", "8bit", "4bit"],
    "7B size": ["28GB", "14GB", "7GB", "3.5GB"],
    "13B size": ["52GB", "26GB", "13GB", "6.5GB"],
    "70B size": ["280GB", "140GB", "70GB", "35GB"],
    "Quality loss": ["None", "Nearly none", "Minimal", "Slight"],
    "Inference speed": ["Slow", "Fast", "Very fast", "Fastest"],
}
GGUF = {
    "Quantization": ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"],
    "Bits": ["2bit", "3bit", "4bit", "5bit", "6bit", "8bit"],
    "7B size": ["2.7GB", "3.3GB", "4.1GB", "4.8GB", "5.5GB", "7.2GB"],
    "Quality": ["Low", "Fair", "Good", "Very good", "Excellent", "Near lossless"],
    "Recommended": ["Not recommended", "Limited", "General use", "High quality", "High quality", "When memory allows"],
}
METHODS_TABLE = {
    "Method": ["bitsandbytes", "GGUF", "AWQ", "GPTQ"],
    "Speed": ["On-load conversion", "Pre-quantized", "Pre-quantized", "Pre-quantized"],
    "CPU support": ["No", "Yes", "No", "No"],
    "Inference speed": ["Medium", "Fast (CPU)", "Fast (GPU)", "Fast (GPU)"],
    "Fine-tuning support": ["Yes (QLoRA)", "No", "Limited", "Limited"],
}


def _columns(name: str) -> dict[str, list[str]]:
    table = claims()[name]
    return {heading: [row.cells[key] for row in table.rows] for key, heading in table.headings.items()}


def test_every_cell_is_the_tutorials() -> None:
    assert _columns("precision") == PRECISION
    assert _columns("gguf") == GGUF
    assert _columns("methods") == METHODS_TABLE


def test_columns_keep_the_tutorials_order() -> None:
    assert list(_columns("precision")) == list(PRECISION)
    assert list(_columns("gguf")) == list(GGUF)
    assert list(_columns("methods")) == list(METHODS_TABLE)


def test_every_claim_names_its_source_and_a_variant_that_can_be_measured() -> None:
    for table in claims().values():
        assert table.source.startswith("Day 23: Quantization Guide")
        assert table.date
        for row in table.rows:
            method, _, precision = row.variant.partition("/")
            assert METHODS[method].precision(precision)
