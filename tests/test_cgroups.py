"""Limits of nested control groups, on trees of files as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantbench.core import cgroups

GIB = 2**30
UNLIMITED_V1 = "9223372036854771712"


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "self-cgroup"


@pytest.mark.parametrize(
    ("limits", "least"),
    [
        ({"a/memory.max": "max", "a/b/memory.max": 4 * GIB, "a/b/c/memory.max": "max"}, 4 * GIB),
        ({"a/memory.max": 2 * GIB, "a/b/memory.max": 4 * GIB, "a/b/c/memory.max": 3 * GIB}, 2 * GIB),
        ({"a/memory.max": "max", "a/b/memory.max": "max", "a/b/c/memory.max": "max"}, None),
        ({"memory.max": GIB}, GIB),  # in a container that sees its own group as the root
    ],
)
def test_the_least_limit_on_the_way_to_the_root_counts(
    limits: dict[str, object], least: int | None, own: Path, tmp_path: Path
) -> None:
    own.write_text("0::/a/b/c\n")
    assert cgroups.memory_limit(tree(tmp_path / "fs", limits), own) == least


def test_what_is_left_is_of_the_tightest_group_and_idle_file_pages_are_free(own: Path, tmp_path: Path) -> None:
    own.write_text("0::/a/b\n")
    root = tree(tmp_path / "fs", {
        "a/memory.max": 8 * GIB, "a/memory.current": 7 * GIB, "a/memory.stat": f"anon 1\ninactive_file {GIB}",
        "a/b/memory.max": 4 * GIB, "a/b/memory.current": GIB, "a/b/memory.stat": "inactive_file 0",
    })  # fmt: skip
    assert cgroups.memory_left(root, own) == 2 * GIB


def test_version_1_is_read_as_well(own: Path, tmp_path: Path) -> None:
    own.write_text("12:cpu,cpuacct:/elsewhere\n5:memory:/jobs/7\n0::/\n")
    root = tree(tmp_path / "fs", {
        "memory/memory.limit_in_bytes": UNLIMITED_V1, "memory/jobs/memory.limit_in_bytes": 3 * GIB,
        "memory/jobs/memory.usage_in_bytes": GIB, "memory/jobs/memory.stat": "total_inactive_file 0",
        "memory/jobs/7/memory.limit_in_bytes": UNLIMITED_V1,
        "memory/jobs/7/memory.oom_control": "oom_kill_disable 0\noom_kill 2",
    })  # fmt: skip
    assert cgroups.memory_limit(root, own) == 3 * GIB
    assert cgroups.memory_left(root, own) == 2 * GIB
    assert cgroups.oom_kills(root, own) == 2


def test_kills_are_counted_in_the_groups_own_folder(own: Path, tmp_path: Path) -> None:
    own.write_text("0::/a/b\n")
    root = tree(tmp_path / "fs", {
        "memory.events": "oom_kill 9", "a/memory.events": "oom_kill 5", "a/b/memory.events": "max 3\noom_kill 4",
    })  # fmt: skip
    assert cgroups.oom_kills(root, own) == 4


@pytest.mark.parametrize("said", ["", "0::/../../outside\n", "0::/host/path/of/a/container\n", "nonsense\n"])
def test_a_path_that_is_not_there_leaves_the_root(said: str, own: Path, tmp_path: Path) -> None:
    own.write_text(said)
    root = tree(tmp_path / "fs", {"memory.max": GIB, "memory.current": 0, "memory.events": "oom_kill 1"})
    assert (cgroups.memory_limit(root, own), cgroups.memory_left(root, own), cgroups.oom_kills(root, own)) == (GIB, GIB, 1)
    assert cgroups.memory_limit(tmp_path / "none", tmp_path / "neither") is None
