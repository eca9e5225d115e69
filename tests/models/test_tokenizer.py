"""Where a sequence ends, and how long it may be, as a folder's configuration or a GGUF file says it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantbench.core.job import Checkpoint
from quantbench.models.checkpoint import resolve
from quantbench.models.tokenizer import DECODER_FILE, save_decoder
from quantbench.runtimes import open_decoder, open_tokenizer
from quantbench.runtimes.llama_cpp.files import f16_file

END, TURN, MESSAGE = 2, 5, 7


def _folder(to: Path, config: dict[str, Any], generation: dict[str, Any] | None = None, special: str = "") -> Checkpoint:
    """The canary's tokenizer beside another configuration; ``special`` is added to its vocabulary."""
    from transformers import AutoTokenizer

    canary = resolve("canary").path
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(canary / name, to / name)
    if special:
        tokenizer = AutoTokenizer.from_pretrained(to)
        tokenizer.add_special_tokens({"additional_special_tokens": [special]})
        tokenizer.save_pretrained(to)
    (to / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (to / "generation_config.json").write_text(json.dumps(generation))
    return Checkpoint(name="other", kind="hf", path=to, revision="local", content_hash="c")


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ({"eos_token_id": END}, None, {END}),
        ({"eos_token_id": [END, TURN]}, None, {END, TURN}),
        ({"eos_token_id": TURN}, {"eos_token_id": [MESSAGE, TURN]}, {END, TURN, MESSAGE}),
        ({"eos_token_id": None}, {}, {END}),
        ({"text_config": {"eos_token_id": TURN}}, None, {END, TURN}),
    ],
    ids=["one", "a list", "both files", "the tokenizer's own", "a composite model"],
)
def test_every_end_that_a_folder_names_counts(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, ends: set[int]
) -> None:
    tokenizer = open_tokenizer(_folder(tmp_path, {"model_type": "llama", **config}, generation))
    assert tokenizer.ends == ends


def test_the_end_of_a_turn_counts_where_only_the_vocabulary_names_it(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(_folder(tmp_path, {"model_type": "llama", "eos_token_id": END}, special="<|im_end|>"))
    (turn,) = tokenizer.encode("<|im_end|>")[1:]
    assert tokenizer.ends == {END, turn}


def test_a_composite_model_says_its_context_in_its_text_part(tmp_path: Path) -> None:
    config = {"model_type": "llama", "text_config": {"max_position_embeddings": 77}}
    assert open_tokenizer(_folder(tmp_path, config)).context_limit == 77


@pytest.mark.usefixtures("artifacts")
def test_a_gguf_file_ends_at_its_end_of_turn_too(tmp_path: Path) -> None:
    """Llama.cpp counts the end of text, of turn and of message as ends of generation."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, Keys
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    path = tmp_path / "turns.gguf"
    reader = GGUFReader(f16_file(resolve("canary")))
    writer = GGUFWriter(path, "llama")
    named = {Keys.Tokenizer.EOT_ID: TURN, Keys.Tokenizer.EOM_ID: MESSAGE}
    copy_with_new_metadata(
        reader, writer, {key: MetadataDetails(GGUFValueType.UINT32, number) for key, number in named.items()}, []
    )
    assert open_tokenizer(resolve(str(path))).ends == {END, TURN, MESSAGE}


def test_what_is_saved_decodes_as_the_tokenizer_does_special_tokens_and_torn_characters_too(tmp_path: Path) -> None:
    checkpoint = _folder(tmp_path, {"eos_token_id": END}, special="<|im_end|>")
    tokenizer = open_tokenizer(checkpoint)
    save_decoder(tokenizer, [[1, 300, 301]], tmp_path)

    found = open_decoder(checkpoint, tmp_path)

    assert found.ends == tokenizer.ends
    assert type(found) is not type(tokenizer)
    random = np.random.default_rng(3)
    special = [*tokenizer.ends, 0, 1]
    for _ in range(200):
        ids = random.choice([*range(2048), *special * 50], size=random.integers(30)).tolist()
        assert found.decode(ids) == tokenizer.decode(ids)


def test_what_is_saved_is_read_without_transformers(tmp_path: Path) -> None:
    save_decoder(open_tokenizer(resolve("canary")), [], tmp_path)
    code = (
        "import sys; from pathlib import Path; from quantbench.runtimes import open_decoder; "
        "from quantbench.models.checkpoint import resolve; "
        "text = open_decoder(resolve('canary'), Path(sys.argv[1])).decode([300, 301, 302]); "
        "print(bool(text), 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["True", "False"]


def test_a_tokenizer_that_decodes_in_a_way_of_its_own_saves_nothing(tmp_path: Path) -> None:
    checkpoint = resolve("canary")
    tokenizer: Any = open_tokenizer(checkpoint)

    class Shouts(type(tokenizer._tokenizer)):  # type: ignore[misc]  # a class that is known only now
        def _decode(self, *ids: Any, **how: Any) -> str:
            return str(super()._decode(*ids, **how)).upper()

    tokenizer._tokenizer.__class__ = Shouts
    save_decoder(tokenizer, [], tmp_path)

    assert not (tmp_path / DECODER_FILE).exists()
    assert type(open_decoder(checkpoint, tmp_path)) is type(tokenizer)


def test_what_decodes_an_answer_otherwise_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = open_tokenizer(resolve("canary"))
    monkeypatch.setattr(tokenizer, "decode", lambda _: "otherwise")
    save_decoder(tokenizer, [[300]], tmp_path)

    assert not (tmp_path / DECODER_FILE).exists()
