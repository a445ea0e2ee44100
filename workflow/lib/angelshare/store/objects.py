"""Objects: immutable bytes named by their own sha256.

Invariant: a file at an object's path is whole and its digest is its name. Writing goes through a
temporary file in the same folder, flushed, then linked to its name; the first writer wins and a
second one with the same bytes finds its work done. Objects are read-only (mode 0444) and regular
files: a link, which could lead out of the store, is no object.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX, make_folder, sync_file, sync_folder

_NAME = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,16}")

_WHAT_TO_DO = {
    errno.ENOSPC: "Free space there (`angelshare gc` says what nobody needs), then run again.",
    errno.EDQUOT: "Free space there (`angelshare gc` says what nobody needs), then run again.",
    errno.EROFS: "Set store.root to a folder you may write to and list this one in store.layers.",
}
_WHAT_TO_DO[errno.EACCES] = _WHAT_TO_DO[errno.EPERM] = (
    "For a store that a group shares, its owner runs `chmod -R g+w` on it and `find … -type d "
    "-exec chmod g+s {} +` once; or set store.root to a folder of your own and list this one in "
    "store.layers."
)


@contextmanager
def writing(store: Path) -> Iterator[None]:
    """Turn a file system's refusal to take what the body writes into a clear error.

    Raises:
        AngelshareError: when the disk or quota is full, or the store may not be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _WHAT_TO_DO:
            raise
        where = f" at {error.filename}" if error.filename else ""
        raise AngelshareError(
            f"the store {store} cannot be written to: {error.strerror}{where}. What was being "
            f"written is not visible to anyone. {_WHAT_TO_DO[error.errno]}"
        ) from error


@dataclass(frozen=True, slots=True)
class ObjectFault:
    """Why an object cannot be trusted."""

    text: str
    damaged: bool = True
    """False where it could not be read: the disk's or server's trouble, no proof of damage."""

    def __str__(self) -> str:
        return self.text


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
        with self._staging() as staging:
            shutil.copyfile(source, staging)
            sync_file(staging, 0o444)
            sha256, size = _digest(staging), staging.stat().st_size
            self._publish(staging, sha256, suffix, size)
        return sha256, size

    def receive(self, blocks: Iterable[bytes], sha256: str, suffix: str) -> None:
        """Store bytes that arrive block by block from elsewhere as the object they should be.

        Raises:
            AngelshareError: when their digest is another one; nothing of them is kept.
        """
        hasher, size = hashlib.sha256(), 0
        with self._staging() as staging:
            with staging.open("wb") as stream:
                for block in blocks:
                    hasher.update(block)
                    size += stream.write(block)
            if hasher.hexdigest() != sha256:
                raise AngelshareError(f"{sha256} arrived with digest {hasher.hexdigest()}")
            sync_file(staging, 0o444)
            self._publish(staging, sha256, suffix, size)

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A temporary path on the store's file system, gone afterwards."""
        make_folder(self.root)
        staging = self.root / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        try:
            yield staging
        finally:
            staging.unlink(missing_ok=True)

    def _publish(self, staging: Path, sha256: str, suffix: str, size: int) -> None:
        """Give flushed bytes their name; sound ones that have it already stay."""
        target = self.path(sha256, suffix)
        make_folder(target.parent)
        if os.path.lexists(target) and self.fault(sha256, suffix, size) is not None:
            os.replace(staging, target)
        else:
            while not _linked(staging, target):
                pass
        sync_folder(target.parent)

    def fault(self, sha256: str, suffix: str, size: int) -> ObjectFault | None:
        """Why the object cannot be trusted (missing, truncated, altered), or None. Reads it all."""
        path = self.path(sha256, suffix)
        try:
            found_size = self._size(path)
            if found_size is None:
                return ObjectFault(f"{path} is a link or no file, so it is not read")
            if found_size != size:
                return ObjectFault(f"{path} has {found_size} bytes, its receipt says {size}")
            found = _digest(path)
        except FileNotFoundError:
            return ObjectFault(f"{path} is missing")
        except OSError as error:
            return ObjectFault(f"{path} cannot be read ({error.strerror})", damaged=False)
        if found == sha256:
            return None
        return ObjectFault(f"{path} has digest {found}, its receipt says {sha256}")

    def present(self, sha256: str, suffix: str, size: int) -> bool:
        """Whether the object is there with the right size: no reading."""
        try:
            return self._size(self.path(sha256, suffix)) == size
        except OSError:
            return False

    @staticmethod
    def _size(path: Path) -> int | None:
        """The bytes of a regular file in a real folder; None for anything else."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or path.parent.is_symlink():
            return None
        return status.st_size


def _linked(staging: Path, target: Path) -> bool:
    """Make the object, or make the one that is there as young as a new one, so that no collection
    takes it before its receipt; False where a collection took it in that very moment."""
    try:
        os.link(staging, target)
    except FileExistsError:
        try:
            os.utime(target)
        except PermissionError:
            # Another user's: the same bytes as one's own.
            os.replace(staging, target)
        except FileNotFoundError:
            return False
    return True


def _digest(path: Path) -> str:
    """The sha256 of a file that is no link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(descriptor, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
