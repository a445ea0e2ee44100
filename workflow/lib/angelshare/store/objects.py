"""Objects: immutable bytes named by their own sha256.

Invariant: a file at an object's path is whole and its digest is its name. Writing goes through a
temporary file in the same folder, flushed, then linked to its name; the first writer wins and a
second one with the same bytes finds its work done. Objects are read-only (mode 0444).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX, sha256_file, sync_file, sync_folder

_NAME = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,16}")


class ObjectStore:
    """The ``objects/`` folder of a store: ``objects/ab/abcd….parquet``."""

    def __init__(self, root: Path) -> None:
        self.root = root / "objects"

    def path(self, sha256: str, suffix: str) -> Path:
        """Where the object of this digest lies. ``suffix`` has no dot.

        Raises:
            AngelshareError: when the digest or suffix read from a receipt is not well formed, so
                that a name from a file can never point out of the store.
        """
        name = f"{sha256}.{suffix}"
        if not _NAME.fullmatch(name):
            raise AngelshareError(
                f"{name!r} is not the name of an object in {self.root}. The receipt that names it "
                "is damaged: run `angelshare verify --repair`."
            )
        return self.root / sha256[:2] / name

    def put(self, source: Path, suffix: str) -> tuple[str, int]:
        """Copy ``source`` into the store; return its sha256 and size in bytes."""
        staging = self.root / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, staging)
            sync_file(staging, 0o444)
            sha256 = sha256_file(staging)
            target = self.path(sha256, suffix)
            target.parent.mkdir(exist_ok=True)
            size = staging.stat().st_size
            if target.exists() and (target.stat().st_size != size or not self._intact(target)):
                os.replace(staging, target)
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(staging, target)
            sync_folder(target.parent)
            return sha256, size
        finally:
            staging.unlink(missing_ok=True)

    @staticmethod
    def _intact(path: Path) -> bool:
        return sha256_file(path) == path.name.partition(".")[0]

    def fault(self, sha256: str, suffix: str, size: int) -> str | None:
        """Why the object cannot be trusted (missing, truncated, altered), or None. Reads it all."""
        path = self.path(sha256, suffix)
        try:
            if path.stat().st_size != size:
                return f"{path} has {path.stat().st_size} bytes, its receipt says {size}"
            found = sha256_file(path)
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        return None if found == sha256 else f"{path} has digest {found}, its receipt says {sha256}"

    def present(self, sha256: str, suffix: str, size: int) -> bool:
        """Whether the object is there with the right size: one ``stat``, no reading."""
        try:
            return self.path(sha256, suffix).stat().st_size == size
        except OSError:
            return False
