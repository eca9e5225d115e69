"""GPTQ and AWQ dummies: random weights written directly in the packed format at the disk's speed; nothing is quantized."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantbench.core.cache import artifact, made_by, require_room
from quantbench.core.errors import UnsupportedError
from quantbench.core.job import Checkpoint
from quantbench.core.scenario import Variant
from quantbench.models.config import CONFIG, read_architecture, read_config
from quantbench.models.pool import SEED, SPREAD, cut
from quantbench.models.safetensors import Stored, file_bytes, header
from quantbench.runtimes.gptqmodel.checkpoint import grouping
from quantbench.runtimes.gptqmodel.forecast import packed_tensors, refusal, shards

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_CHECKPOINT = "checkpoint"
_WEIGHTS = "model.safetensors"
_WRITER = "quantbench"
_SCALES = 0.8, 1.2
_POOL = 2**20 - 3
"""Size of the pools that tensors are cut from: a prime, so that rows of a matrix start at different values."""

_WORD_BITS = 32
_WORD_MASK = 2**_WORD_BITS - 1
_BFLOAT16_ONE = 0x3F80
_LAYOUTS: Mapping[str, Mapping[str, object]] = {
    "gptq": {"format": "gptq", "checkpoint_format": "gptq", "sym": True},
    "awq": {"format": "gemm", "checkpoint_format": "gemm", "version": "gemm", "zero_point": True},
}


def dummy_folder(checkpoint: Checkpoint, variant: Variant) -> Path:
    """The packed checkpoint of a dummy, written once, as gptqmodel would write one of a model of that architecture.

    Raises UnsupportedError if gptqmodel could not make one that loads, ModelError if the disk cannot hold it.
    """
    architecture = read_architecture(str(checkpoint.path))
    if why := refusal(variant.method, variant.precision, architecture):
        raise UnsupportedError(f"no dummy of {checkpoint.name} can be written for {variant.name}: {why}")
    bits, group_size = grouping(variant.precision)
    asked = {
        "content": checkpoint.content_hash, "method": variant.method, "bits": bits, "group_size": group_size,
        "seed": SEED,
        "made_by": made_by(
            __name__, "quantbench.runtimes.gptqmodel.forecast", "quantbench.models.pool", "quantbench.models.safetensors"
        ),
    }  # fmt: skip

    def make(folder: Path) -> None:
        files = list(shards(list(packed_tensors(variant.method, variant.precision, architecture))))
        require_room(folder, sum(map(file_bytes, files)), f"the dummy of {checkpoint.name} in {variant.name}")
        place = folder / _CHECKPOINT
        place.mkdir()
        _write_weights(place, files, PackedValues(variant.method, bits, group_size))
        _write_configs(place, checkpoint.path, variant)

    return artifact("packed-dummy", asked, make) / _CHECKPOINT


class PackedValues:
    """Seeded values, zero on average, for packed layers and the tensors beside them."""

    def __init__(self, method: str, bits: int, group_size: int) -> None:
        """The lowest code is not used, as in symmetric quantizers, so that codes are centred on the zero point.

        Otherwise wide layers would add up the offset, and activations would leave the range of float16.
        """
        import numpy as np

        rng = np.random.default_rng(SEED)
        middle = 2 ** (bits - 1)
        codes = np.arange(1, 2**bits)
        scales = rng.uniform(*_SCALES, _POOL).astype(np.float32) * np.float32(SPREAD / codes.std())
        self._group_size = group_size
        self._symmetric = method == "gptq"
        self._floats = _bfloat16(rng.standard_normal(_POOL, dtype=np.float32) * np.float32(SPREAD))
        self._scales = scales.astype("<f2") if self._symmetric else _bfloat16(scales)
        self._codes = _words(bits, lambda: rng.integers(codes[0], codes[-1] + 1, _POOL, dtype=np.uint64))
        if self._symmetric:  # the first version of the format stores one less than the zero point
            self._zeros = _words(bits, lambda: np.full(1, middle - 1, np.uint64))
        else:
            self._zeros = _words(bits, lambda: rng.integers(middle - 1, middle + 2, _POOL, dtype=np.uint64))

    def of(self, stored: Stored) -> Iterator[Array]:
        """The values of a tensor in the order of the file, in pieces."""
        import numpy as np

        name, _, shape = stored
        count = math.prod(shape)
        kind = name.rpartition(".")[2]
        if kind == "qweight":
            yield from self._qweight(name, shape)
        elif kind == "qzeros" and self._symmetric:
            yield np.tile(np.resize(self._zeros, shape[1]), shape[0])
        elif kind == "qzeros":
            yield from _cut(self._zeros[0], name, count)
        elif kind == "scales":
            yield from _cut(self._scales, name, count)
        elif kind == "g_idx":
            yield (np.arange(count) // self._group_size).astype("<i4")
        elif kind == "bias":
            yield np.zeros(count, "<u2")
        elif len(shape) == 1:
            yield np.full(count, _BFLOAT16_ONE, "<u2")
        else:
            yield from _cut(self._floats, name, count)

    def _qweight(self, name: str, shape: Sequence[int]) -> Iterator[Array]:
        """Words; where codes cross from one into the next, those that belong together stand one below the other."""
        import numpy as np

        lanes, (rows, columns) = len(self._codes), shape
        if lanes == 1:
            yield from _cut(self._codes[0], name, rows * columns)
            return
        block = rows // lanes * columns
        pieces = (np.concatenate(list(_cut(lane, name, block))).reshape(-1, columns) for lane in self._codes)
        yield np.stack(list(pieces), axis=1)


def _words(bits: int, draw: Callable[[], Array]) -> Array:
    """Words of 32 bits filled with codes, the first lowest, as [words that codes share, words of each call of ``draw``]."""
    import numpy as np

    lanes = math.lcm(bits, _WORD_BITS) // _WORD_BITS
    words: list[Any] = [0] * (lanes + 1)
    for place in range(0, lanes * _WORD_BITS, bits):
        lane, shift = divmod(place, _WORD_BITS)
        code = draw() << np.uint64(shift)
        words[lane] |= code & np.uint64(_WORD_MASK)
        words[lane + 1] |= code >> np.uint64(_WORD_BITS)
    return np.stack(words[:lanes]).astype("<u4")


def _bfloat16(values: Array) -> Array:
    """The upper halves of float32 values, rounded."""
    import numpy as np

    return ((values.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2")


def _cut(pool: Array, name: str, count: int) -> Iterator[Array]:
    return (pool[piece] for piece in cut(name, count, _POOL))


def _write_weights(place: Path, files: Sequence[Sequence[Stored]], values: PackedValues) -> None:
    """The files under gptqmodel's names, with an index if there are several; only one tensor is in memory at a time."""
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(files, 1):
        name = _WEIGHTS if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        with (place / name).open("wb") as stream:
            stream.write(header(tensors))
            for stored in tensors:
                for piece in values.of(stored):
                    stream.write(piece.data)
            total += stream.tell()
        weight_map |= {stored[0]: name for stored in tensors}
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (place / f"{_WEIGHTS}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_configs(place: Path, source: Path, variant: Variant) -> None:
    """What belongs to the weights: how they are packed, in both files that gptqmodel writes, and the dummy's tokenizer."""
    bits, group_size = grouping(variant.precision)
    quantization = {
        "bits": bits, "group_size": group_size, "desc_act": False, "lm_head": False, "method": variant.method,
        "quant_method": variant.method, "pack_dtype": "int32", "meta": {"quantizer": [_WRITER]}, **_LAYOUTS[variant.method],
    }  # fmt: skip
    config = {key: value for key, value in read_config(source).items() if key != "torch_dtype"}
    config |= {"dtype": "bfloat16", "quantization_config": quantization}
    (place / CONFIG).write_text(json.dumps(config, indent=2))
    (place / "quantize_config.json").write_text(json.dumps(quantization, indent=2))
    for path in source.glob("tokenizer*"):
        shutil.copyfile(path, place / path.name)
