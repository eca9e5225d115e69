"""What quantizing the model may cost."""

import pytest

MODEL = "canary"  # a built-in model of 5.8 M parameters; put yours here: a folder, a .gguf file or a hub id


@pytest.fixture(scope="module")
def q8(quantbench_measure):
    return quantbench_measure(MODEL, "gguf/q8_0")


def test_it_predicts_what_the_original_predicts(q8):
    assert q8.kld_mean.surely_below(0.01)
    assert q8.top1_agreement > 0.95


def test_it_takes_about_a_byte_a_weight(q8):
    assert q8.weight_bytes < 1.1 * q8.parameters


@pytest.mark.speed
def test_it_is_not_slower_than_16_bits(q8):
    assert not q8.decode_ratio.surely_below(1)
