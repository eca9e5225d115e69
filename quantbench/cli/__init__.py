"""The command ``quantbench``, one file a command: results go to stdout, messages to stderr."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit with its code."""
    from quantbench.core.streams import reopen_closed

    reopen_closed()
    from quantbench.cli.app import app

    app()
