"""The words for how a scenario ended."""

from __future__ import annotations

from quantbench.core.record import Status


def test_each_end_has_a_word_that_is_stored_and_a_skip_is_no_failure() -> None:
    assert {str(status): status.failed for status in Status} == {
        "ok": False, "skipped": False, "oom": True, "timeout": True, "crashed": True, "error": True,
    }  # fmt: skip
