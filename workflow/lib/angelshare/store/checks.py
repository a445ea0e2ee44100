"""Checking what a job reads while it reads it.

Every reader checks the digest of every object. A job that has minutes of work before it does not
wait for that: size and kind of the file are looked at at once, digests are taken by a thread of
their own beside the reading, a mismatch stops the job at its next progress line, and all of them
are joined before what the job made is published. hashlib lets go of the interpreter while it works.

Each object is digested once per job, as long as it is the same file.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from angelshare.store.artifacts import Artifact
from angelshare.store.records import Receipt, StoredFile

Stamp = tuple[str, int, int, int]


class Checks:
    """The digests that one job has still to take."""

    def __init__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(max(1, min(4, cores - 1)), thread_name_prefix="checks")
        self._running: dict[Stamp, Future[Path]] = {}

    def path(self, artifact: Artifact, receipt: Receipt, file: StoredFile) -> Path:
        """The path of an object, for reading at once; its digest is being taken.

        Raises:
            AngelshareError: when it is missing, no regular file, or not of the right size.
        """
        objects = artifact.store.objects
        if not objects.present(file.sha256, file.suffix, file.bytes):
            return artifact.verified(receipt, file)
        path = objects.path(file.sha256, file.suffix)
        status = path.stat()
        stamp = (str(path), status.st_ino, status.st_mtime_ns, status.st_size)
        if stamp not in self._running:
            self._running[stamp] = self._pool.submit(artifact.verified, receipt, file)
        return path

    def stop_if_damaged(self) -> None:
        """Raise the `AngelshareError` of a check that has failed by now; wait for none."""
        for check in list(self._running.values()):
            if check.done():
                check.result()

    def join(self) -> None:
        """Wait for all; raise the `AngelshareError` of the first that failed."""
        for check in list(self._running.values()):
            check.result()

    def close(self) -> None:
        """Begin no further check."""
        self._pool.shutdown(wait=False, cancel_futures=True)
