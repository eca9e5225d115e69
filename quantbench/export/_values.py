"""Stored values in the types that JSON has."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any


def plain(value: Any) -> Any:
    """``value`` with times in ISO 8601 and None for what is no finite number, inside lists too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value
