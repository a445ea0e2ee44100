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
    """Run a command; what the user can mend, and what a file system says, is one message."""
    try:
        app()
    except (AngelshareError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
