"""Settings of the pytest plugin: every one an option of the command line, and all but trust an ini key too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from quantbench.core.errors import UsageError
from quantbench.core.outside import exists
from quantbench.planning.options import OPTIONS

if TYPE_CHECKING:
    from quantbench.planning.options import Option

_PATHS = ("matrix", "results", "keep_jobs", "calibration")
_COMMAND_LINE_ONLY = ("trust_remote_code",)
"""Trust must be given on the command line, never by a file that happens to be there."""
_INI_TYPES: dict[str, Literal["bool", "int", "float"]] = {"flag": "bool", "int": "int", "float": "float"}
"""Of what is no string in a TOML file."""


def add_settings(parser: pytest.Parser) -> None:
    """Add every setting as ``--quantbench-NAME``, and all but trust as ini key ``quantbench_name``."""
    group = parser.getgroup("quantbench", "measure quantized models")
    for option in OPTIONS:
        action = {"list": "append", "flag": "store_true"}.get(option.kind, "store")
        extra: dict[str, Any] = {} if option.kind == "flag" else {"metavar": option.metavar}
        group.addoption(
            f"--quantbench-{option.name}",
            dest=f"quantbench_{option.key}",
            action=action,
            default=None,
            help=option.help,
            **extra,
        )
        if option.key in _COMMAND_LINE_ONLY:
            continue
        parser.addini(f"quantbench_{option.key}", option.help, type=_INI_TYPES.get(option.kind, "string"), default="")


def raw_setting(config: pytest.Config, option: Option) -> Any:
    """A setting as given; a path is relative to pytest's working directory, or to the root if it is from an ini file."""
    given = config.getoption(f"quantbench_{option.key}")
    if option.key in _COMMAND_LINE_ONLY:
        return given
    written = _written(config, option)
    base = config.rootpath if given is None and written else config.invocation_params.dir
    raw = given if given is not None else option.default if written in ("", None) else written
    if not isinstance(raw, str) or not raw or "://" in raw:
        return raw
    is_path = option.key in _PATHS or (option.key == "compare" and exists(base / raw))  # else it names runs
    return str(base / raw) if is_path else raw


def _written(config: pytest.Config, option: Option) -> Any:
    """What an ini file says of a setting; empty where it says nothing. UsageError for what is no value of its kind."""
    key = f"quantbench_{option.key}"
    try:
        return config.getini(key)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise UsageError(f"ini key {key}: {error}") from None
