"""Writes the header of a dummy's F16 file with llama.cpp's converter, in a child process as that has its own gguf package.

The header has the converter's metadata and the canary's vocabulary; the answer is the tensors that the converter computes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from quantbench.core.children import answer
from quantbench.models.config import CONFIG, read_config

_NAME = "Random weights"


def write_header(request: Mapping[str, Any]) -> dict[str, list[float]]:
    """Write the header of a file of ``tensors``; the values of those that the converter computes, such as rotary factors."""
    sys.path[:0] = [request["converter"], str(Path(request["converter"]) / "gguf-py")]
    import numpy as np
    import torch

    gguf = import_module("gguf")
    source, target = Path(request["source"]), Path(request["target"])
    _name_architecture(source / CONFIG)
    with torch.inference_mode():
        model = _model(source, target, gguf.LlamaFileType.MOSTLY_F16)
        values = {
            name: tensor.float().tolist()
            for given, computed in model.generate_extra_tensors()
            for name, tensor in model.modify_tensors(computed, given, None)
        }
        writer = model.gguf_writer
        for name, shape, kind, size in request["tensors"]:
            writer.add_tensor_info(name, shape, np.dtype(np.float16), size, raw_dtype=gguf.GGMLQuantizationType[kind])
        model.prepare_metadata(vocab_only=False)
    writer.write_header_to_file(path=target)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return values


def _name_architecture(path: Path) -> None:
    """Say in config.json, as a saved model's does, which class of transformers it is: the converter goes by that."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    config = read_config(path)
    if named := CLASSES.get(config["model_type"]):
        path.write_text(json.dumps({**config, "architectures": [named]}))


def _model(source: Path, target: Path, file_type: Any) -> Any:
    """The converter's model of a folder without weights; whatever vocabulary it would look for, it takes the sentencepiece."""
    conversion = import_module("conversion")
    hparams = conversion.ModelBase.load_hparams(source, False)
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    model = conversion.get_model_class(architecture)(source, file_type, target, model_name=_NAME)
    sentencepiece = model._set_vocab_sentencepiece  # noqa: SLF001 - the converter has no public way to choose one
    for name in dir(model):
        if name.startswith("_set_vocab_") and name not in ("_set_vocab_sentencepiece", "_set_vocab_none"):
            setattr(model, name, lambda *_, **__: sentencepiece())
    return model


if __name__ == "__main__":
    answer(write_header)
