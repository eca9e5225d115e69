"""The setting of torch's allocator that every worker gets, and how a row says it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from quantbench.core.allocator import DEFAULT, described, one_allocator

NEW, OLD = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ({}, DEFAULT),
        ({NEW: ""}, DEFAULT),  # which gptqmodel would take for none
        ({NEW: "backend:native"}, "backend:native"),
        ({OLD: "expandable_segments:True"}, "expandable_segments:True"),  # else gptqmodel would set the new name beside it
        ({OLD: "expandable_segments:True", NEW: "backend:native"}, "backend:native"),
    ],
)
def test_the_users_own_is_kept_and_otherwise_there_is_one(users: dict[str, str], expected: str) -> None:
    assert one_allocator(users) == {NEW: expected}
    assert expected


def test_a_row_says_whose_setting_it_was() -> None:
    assert described(one_allocator({})) == DEFAULT
    assert described({NEW: "backend:native"}) == f"{NEW}=backend:native (user)"
    users = {OLD: "expandable_segments:True"}
    assert described(users | one_allocator(users)) == f"{NEW}=expandable_segments:True {OLD}=expandable_segments:True (user)"
    assert described({}) == "torch's default"


def test_the_name_is_the_one_that_gptqmodel_looks_at() -> None:
    """Read, not imported: that takes seconds, and patches what others use."""
    spec = find_spec("gptqmodel")
    if spec is None or spec.origin is None:
        pytest.skip("gptqmodel is not installed")
    source = (Path(spec.origin).parent / "models" / "auto.py").read_text()
    assert f'if not os.environ.get("{NEW}", None):' in source
