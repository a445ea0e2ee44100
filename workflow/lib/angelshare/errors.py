"""The one error a user is meant to read: what was wrong, where, and what to do about it."""

from __future__ import annotations


class AngelshareError(Exception):
    """A condition the user can mend. The message is complete by itself; no traceback is needed."""
