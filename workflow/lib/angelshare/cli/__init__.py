"""``angelshare …``: what is no rule, one module per subject."""

from __future__ import annotations

import sys

from angelshare.cli import elsewhere, hub, keep, look, planning, results, share, watch
from angelshare.cli.common import app
from angelshare.errors import AngelshareError

__all__ = [
    "app",
    "elsewhere",
    "hub",
    "keep",
    "look",
    "main",
    "planning",
    "results",
    "share",
    "watch",
]


def main() -> None:
    """Run a command; an `AngelshareError` is one message and exit status 1."""
    try:
        app()
    except AngelshareError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
