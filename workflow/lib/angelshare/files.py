"""Publishing files so that a reader never sees half of one.

Every file of the project becomes visible by a rename on the same file system after its bytes were
flushed to disk: at any instant of a kill a path holds the old content, the new content, or nothing.

A folder that a group shares (setgid and writable by the group) hands both on to what is made in it,
whatever the user's umask; elsewhere the umask decides about folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".tmp-"


SHARED = stat.S_ISGID | stat.S_IWGRP
"""The mode bits of a folder that a group shares."""


@contextmanager
def publishing(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path in ``path``'s folder; on success flush it and rename it to ``path``.

    Without a ``mode`` the file is writable by whom the folder is shared with. If the body raises,
    the temporary file is removed and ``path`` is left as it was.
    """
    shared = make_folder(path.parent)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(6)}"
    try:
        yield temporary
        sync_file(temporary, mode if mode is not None else 0o664 if shared else 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> bool:
    """Make a folder and its parents where they are missing; return whether a group shares it.

    Below a folder that a group shares, the caller's own folders are opened to the group, also those
    that a program with a narrower umask made before.
    """
    made = not path.is_dir()
    if made:
        make_folder(path.parent)
        try:
            path.mkdir()
        except FileExistsError:
            made = False
        else:
            sync_folder(path.parent)
    status = path.stat()
    if status.st_mode & SHARED == SHARED:
        return True
    if path.parent == path:
        return False
    inherits = status.st_mode & stat.S_ISGID and status.st_uid == os.geteuid()
    # A folder that was there already: its parents may be as narrow, made by the same program.
    if not inherits or not (is_shared(path.parent) if made else make_folder(path.parent)):
        return False
    path.chmod(stat.S_IMODE(status.st_mode) | stat.S_IRWXG)
    return True


def is_shared(folder: Path) -> bool:
    """Whether a group shares this folder: what is made in it is the group's too."""
    return folder.stat().st_mode & SHARED == SHARED


def sync_file(path: Path, mode: int | None = None) -> None:
    """Flush a file's bytes to disk, setting its mode bits first where ``mode`` is given."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_bytes(path: Path, content: bytes, mode: int | None = None) -> None:
    """Publish ``content`` at ``path``."""
    with publishing(path, mode) as temporary:
        temporary.write_bytes(content)


def publish_first(path: Path, content: bytes, mode: int | None = None) -> bool:
    """Publish ``content`` at ``path`` unless something is there; return whether it was published.

    By ``link``, so that of two writers on any file system exactly one succeeds.
    """
    draft = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(6)}"
    publish_bytes(draft, content, mode)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def publish_json(path: Path, value: Any, mode: int | None = None) -> None:
    """Publish ``value`` as JSON with sorted keys: equal values give equal bytes."""
    publish_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), mode)


def read_json(path: Path) -> Any:
    """Parse a JSON file; ``OSError`` and ``ValueError`` are the caller's to explain."""
    return json.loads(path.read_bytes())


def sha256_file(path: Path) -> str:
    """The hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
