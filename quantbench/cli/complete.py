"""What the shell offers after an option or an argument: the names that quantbench knows; files are the shell's own affair."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping


def completion(what: str) -> Callable[[str], list[str]] | None:
    """What the shell offers for an option or argument called ``what``, also after a comma; None where any text will do."""
    names = _NAMES.get(what)
    if names is None:
        return None

    def offer(incomplete: str) -> list[str]:
        before, comma, _ = incomplete.rpartition(",")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken plug-ins, in the middle of a line that is being typed
            return [f"{before}{comma}{name}" for name in names()]

    return offer


def _models() -> Iterable[str]:
    from quantbench.models import MODELS, dummy_configs

    return [*(model.name for model in MODELS), *(f"dummy:{name}" for name in dummy_configs())]


def _plannable() -> Iterable[str]:
    from quantbench.models import MODELS, dummy_configs

    return [*(model.name for model in MODELS if model.module is None), *dummy_configs()]


def _methods() -> Iterable[str]:
    from quantbench.methods import METHODS

    return [method.name for method in METHODS]


def _precisions() -> Iterable[str]:
    from quantbench.methods import METHODS

    return dict.fromkeys(precision.name for method in METHODS for precision in method.precisions)


def _prompts() -> Iterable[str]:
    from quantbench.planning import prompts

    return prompts.names()


def _profiles() -> Iterable[str]:
    from quantbench.core.scenario import PROFILES

    return PROFILES


def _engines() -> Iterable[str]:
    from quantbench.running.engines import ENGINES

    return [engine.name for engine in ENGINES]


def _failures() -> Iterable[str]:
    from quantbench.planning.options import FAIL_ON

    return FAIL_ON


def _formats() -> Iterable[str]:
    from quantbench.export import EXPORTERS

    return [exporter.name for exporter in EXPORTERS]


def _columns() -> Iterable[str]:
    from quantbench.metrics import METRICS, all_columns

    return [*(metric.name for metric in METRICS), *(column.name for column in all_columns())]


def _tables() -> Iterable[str]:
    from quantbench.tables import ALL, KINDS

    return [*(kind.name for kind in KINDS), ALL]


_NAMES: Mapping[str, Callable[[], Iterable[str]]] = {
    "model": _models, "plannable": _plannable, "method": _methods, "precision": _precisions, "prompts": _prompts,
    "profile": _profiles, "engine": _engines, "fail-on": _failures, "to": _formats, "column": _columns,
    "table": _tables,
}  # fmt: skip
