"""Runs Python's command lines in forks of this process, which has torch and transformers imported: importing takes seconds.

Requests are lines of JSON: the words of ``python -m`` or ``python -c``, environment, folder, and a file for its output.
Answers are exit codes.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import traceback
from typing import NoReturn


def main() -> None:
    """Serve until standard input closes."""
    answers = os.fdopen(os.dup(1), "w")
    import pandas  # noqa: F401 - for the forks
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401
    from transformers.models.auto import modeling_auto, tokenization_auto  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _become(command: list[str], environment: dict[str, str], folder: str, output: str) -> NoReturn:
    code = 1
    try:
        for path, flags, numbers in ((os.devnull, os.O_RDONLY, (0,)), (output, os.O_WRONLY | os.O_CREAT, (1, 2))):
            handle = os.open(path, flags)
            for number in numbers:
                os.dup2(handle, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
        code = _ended(*command)
    except BaseException:  # noqa: BLE001 - as Python itself ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(kind: str, what: str, *arguments: str) -> int:
    """The exit code of a module or of code with its arguments."""
    sys.argv = [what if kind == "-m" else kind, *arguments]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})  # noqa: S102 - as Python does
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    main()
