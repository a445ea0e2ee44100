"""What a job finished of a part that it did not finish: kept, and taken up by the next attempt.

A part is made by one job and committed as a whole. Long work inside it, such as the answers to its
prompts or the logits of its rows, comes in pieces; each is kept as a file beside the artifact as
soon as it is there:

    <store>/<kind>/<key>/unfinished/00003/000017-<sha256>.piece

The next attempt reads the pieces in order and goes on after the last one. A piece carries its own
digest and the journal that of what its work is made from, so neither a damaged piece nor one of
other inputs is ever taken up. Whoever commits the part discards the journal.

The part's lease keeps a second writer away. One that comes back from the dead writes pieces of the
same work: of two with one number, either serves.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from angelshare.files import publish_bytes
from angelshare.store.objects import writing

UNFINISHED = "unfinished"
MADE_FROM = "made-from"
_NAME = re.compile(r"(\d{6})-([0-9a-f]{64})\.piece")


class Journal:
    """The finished pieces of one unfinished part."""

    def __init__(
        self, folder: Path, made_from: str, inputs_are_whole: Callable[[], None] = lambda: None
    ) -> None:
        """Open the journal in ``folder``; pieces of other inputs than ``made_from`` (a digest, or
        any other text that says what the work depends on) are discarded.

        ``inputs_are_whole`` raises where what is being read is not what ``made_from`` says; it is
        asked before a piece is kept.
        """
        self.folder = folder
        self._inputs_are_whole = inputs_are_whole
        marker = folder / MADE_FROM
        if folder.exists() and not (marker.exists() and marker.read_text() == made_from):
            shutil.rmtree(folder)
        with writing(folder):
            publish_bytes(marker, made_from.encode())
        self._count = 0

    def pieces(self) -> Iterator[bytes]:
        """The pieces that are there, in order, up to the first missing or damaged one.

        What `add` adds comes after those that were taken from here.
        """
        by_number = self._by_number()
        while True:
            contents = (_whole(path) for path in by_number.get(self._count, []))
            content = next((one for one in contents if one is not None), None)
            if content is None:
                return
            self._count += 1
            yield content

    def forget_last(self) -> None:
        """Forget the piece that was taken last, which cannot be used, and all after it."""
        self._count -= 1
        for number, paths in self._by_number().items():
            for path in paths if number >= self._count else []:
                path.unlink(missing_ok=True)

    def _by_number(self) -> dict[int, list[Path]]:
        found: dict[int, list[Path]] = {}
        for path in sorted(self.folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match:
                found.setdefault(int(match[1]), []).append(path)
        return found

    def add(self, content: bytes) -> None:
        """Keep one more piece; what was made from damaged inputs is not."""
        self._inputs_are_whole()
        name = f"{self._count:06d}-{hashlib.sha256(content).hexdigest()}.piece"
        with writing(self.folder):
            publish_bytes(self.folder / name, content)
        self._count += 1

    def discard(self) -> None:
        """Forget the pieces: the part is committed."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _whole(path: Path) -> bytes | None:
    """A piece's content if it is what its name says."""
    match = _NAME.fullmatch(path.name)
    content = path.read_bytes()
    return content if match and hashlib.sha256(content).hexdigest() == match[2] else None
