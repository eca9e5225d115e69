"""Runs modules in forks of this process, which has torch and transformers imported: for tests that ask many children.

Requests are lines of JSON, a module and its arguments with their environment; answers are exit codes.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import NoReturn


def main() -> None:
    """Serve until standard input closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch  # noqa: F401 - for the forks
    from transformers.models.auto import modeling_auto, tokenization_auto  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _become(command: list[str], environment: dict[str, str]) -> NoReturn:
    code: object = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = command
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
