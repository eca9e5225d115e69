"""A run as one file: a page that works offline, or a picture to share.

From Python::

    from quantbench import load, report
    results = report.select(load("results"), samples=load("results", "samples"), outputs=load("results", "outputs"))
    Path("report.html").write_text(report.page(results), encoding="utf-8")

Model output and error messages are untrusted and stay plain text everywhere: see ``markup``.
"""

from __future__ import annotations

from quantbench.report._picture import picture
from quantbench.report._results import Results, followed, latest_of, select
from quantbench.report.html import page

__all__ = ["Results", "followed", "latest_of", "page", "picture", "select"]
