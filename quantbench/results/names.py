"""What the name of a results file says: whose rows it holds, and which of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

_NAME = re.compile(r"(?P<run>[^.].*)-(?P<first>\d{5,})(?:to(?P<last>\d{5,}))?\.parquet")


@dataclass(frozen=True, slots=True)
class Name:
    """A file of a run: that of one scenario, by its number, or a gathered one, which stands for the numbers up to ``last``."""

    run: str
    first: int
    last: int | None = None

    @classmethod
    def of(cls, path: str) -> Self | None:
        """What the last part of a path says; None where it is not the name of a run's file."""
        match = _NAME.fullmatch(path.rpartition("/")[2])
        return match and cls(match["run"], int(match["first"]), int(match["last"]) if match["last"] else None)

    def __str__(self) -> str:
        """The file's name."""
        return f"{self.run}-{self.first:05d}{'' if self.last is None else f'to{self.last:05d}'}.parquet"

    def stands_for(self, other: Name) -> bool:
        """Whether it is a gathered file, and ``other`` one that was gathered in it."""
        return self.last is not None and other.last is None and self.run == other.run and self.first <= other.first <= self.last
