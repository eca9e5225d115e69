"""Whether llama.cpp's extra weight buffers (AMX, repacking) work in this build: tried once, in a child process.

Some compilers (GCC 12 among them) drop stores that ggml's AMX tile configuration depends on: the first batch through a
quantized matrix then dies of a general protection fault. A build like that still works with the extra buffers off.
"""

from __future__ import annotations

import json
import signal
from importlib.metadata import version
from pathlib import Path

from quantbench.core.cache import artifact
from quantbench.core.children import answer, call
from quantbench.core.errors import ChildError, QuantbenchError
from quantbench.core.machine import describe

_WIDTH = 256
_TOKENS = 64
_RESULT = "result.json"
_DEADLY = (signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT)


def extra_buffers_work() -> bool:
    """Whether a batch through a quantized model survives with llama.cpp's default buffers; remembered in the cache."""
    import llama_cpp

    library_files = sorted(Path(llama_cpp.__file__).parent.glob("lib/libggml-cpu*"))
    built = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in library_files}

    def probe(folder: Path) -> None:
        model = folder / "probe.gguf"
        write_model(model)
        code = 0
        try:
            call(__name__, str(model), "llama.cpp's trial")
        except ChildError as error:
            code = error.code
            if -code not in _DEADLY:
                raise QuantbenchError(
                    f"llama.cpp could not be tried out (exit code {code}: {error.reason}); reinstall it"
                ) from error
        (folder / _RESULT).write_text(json.dumps({"works": code == 0, "returncode": code}))
        model.unlink()

    asked = {"llama_cpp_python": version("llama_cpp_python"), "built": built, "isa": describe().isa}
    folder = artifact("probe", asked, probe)
    return bool(json.loads((folder / _RESULT).read_text())["works"])


def write_model(path: Path) -> None:
    """A one-layer Llama of zeros in Q8_0, a type that every extra buffer takes."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(_TOKENS)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_WIDTH)
    writer.add_tokenizer_model("no_vocab")
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(_WIDTH, dtype=np.float32))
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quants.quantize(np.zeros((_WIDTH, _WIDTH), dtype=np.float32), q8_0)
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up")
    for name in ("token_embd", "output", *(f"blk.0.{matrix}" for matrix in matrices)):
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def score(model_path: str) -> None:
    """Score a batch with a model; if the build is broken, this process dies."""
    from quantbench.runtimes.llama_cpp.model import open_gguf_file

    with open_gguf_file(Path(model_path), threads=1, context=_TOKENS, device="cpu", extra_buffers=True) as model:
        for _ in model.score(range(_TOKENS)):
            pass


if __name__ == "__main__":
    answer(score)
