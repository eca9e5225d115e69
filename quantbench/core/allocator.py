"""One setting of torch's CUDA allocator for all workers, whatever a library that they import would choose.

gptqmodel sets PYTORCH_ALLOC_CONF when it is imported (gptqmodel 7.6, models/auto.py), unless it is set and not empty:
expandable segments, no block above 256 MB split, collection at 0.7. Reserved memory of its two methods, and through that their
times, would come from another allocator than those of all others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SETTING = "PYTORCH_ALLOC_CONF"
_OLDER = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Names that torch reads too (torch 2.13, c10/core/AllocatorConfig.h, c10/cuda/CUDAAllocatorConfig.h)."""

DEFAULT = "expandable_segments:False"
"""torch's own default, in words, since an empty value counts as none."""


def one_allocator(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to a worker's environment: the user's own setting under the name that gptqmodel looks at, or the default."""
    own = next((environment[name] for name in (SETTING, *_OLDER) if environment.get(name)), DEFAULT)
    return {SETTING: own}


def described(environment: Mapping[str, str] = os.environ) -> str:
    """The allocator's settings in a process with that environment, for the fact ``allocator``; the user's own are marked."""
    chosen = {name: environment[name] for name in (SETTING, *_OLDER) if environment.get(name)}
    if chosen == {SETTING: DEFAULT}:
        return DEFAULT
    return f"{' '.join(f'{name}={value}' for name, value in chosen.items())} (user)" if chosen else "torch's default"
