"""Files that their authors publish in a repository: named, pinned, fetched once, and checked.

``hub:owner/dataset/path`` names a file of a data set on the Hugging Face hub,
``github:owner/repository/path`` one of a GitHub repository. Its commit stands in the
configuration's ``revisions``, its sha256 in ``files``; `angelshare resolve` writes both and lays
the file into ``downloads/`` of the checkout, where jobs find it without a network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from angelshare.errors import AngelshareError
from angelshare.files import publish_bytes, publishing, sha256_file

if TYPE_CHECKING:
    from angelshare.config import Config

DOWNLOADS = Path("downloads")
"""Where fetched files lie, by host, repository and commit."""
GITHUB_FILES = "https://raw.githubusercontent.com"
GITHUB_API = "https://api.github.com"
TIMEOUT_S = 60.0
_NAME = re.compile(r"(hub|github):([\w.-]+/[\w.-]+)/([\w.-]+(?:/[\w.-]+)*)")


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of a repository."""

    host: str
    """``hub`` or ``github``."""
    repository: str
    path: str

    @property
    def named(self) -> str:
        """As a configuration names the file."""
        return f"{self.host}:{self.repository}/{self.path}"

    @property
    def revision_name(self) -> str:
        """As ``revisions`` names the repository: those of the hub have no prefix."""
        return self.repository if self.host == "hub" else f"{self.host}:{self.repository}"

    @property
    def kind(self) -> str:
        """What the repository is, for whoever is asked for its commit."""
        return "dataset" if self.host == "hub" else "github"

    def url(self, commit: str) -> str:
        """The file's address at a commit."""
        path = quote(self.path)
        if self.host == "github":
            return f"{GITHUB_FILES}/{self.repository}/{commit}/{path}"
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{hub}/datasets/{self.repository}/resolve/{commit}/{path}"

    def place(self, commit: str) -> Path:
        """Where the file lies once it is fetched."""
        return DOWNLOADS / self.host / self.repository / commit / self.path


def published(text: str) -> PublishedFile | None:
    """The published file that a value of the configuration names; None where it is a path."""
    found = _NAME.fullmatch(text)
    if found is None or ".." in found[3].split("/"):
        return None
    return PublishedFile(found[1], found[2], found[3])


def published_files(config: Config) -> Iterator[tuple[str, PublishedFile]]:
    """Every published file of a configuration, with the place of its name there."""
    for one in config.evaluation.judged:
        for field in one.files:
            file = published(getattr(one, field))
            if file is not None:
                yield f"evaluation.judged.{one.benchmark}.{field}", file


def unpinned(config: Config) -> Iterator[str]:
    """One line per published file that ``revisions`` or ``files`` has no line for."""
    for where, file in published_files(config):
        if file.revision_name not in config.revisions:
            yield (
                f"{where}: write `{file.revision_name}: main` under revisions and run `angelshare "
                "resolve`, which writes the commit there."
            )
        if file.named not in config.files:
            yield (
                f"{where}: write `{file.named}: null` under files and run `angelshare resolve`, "
                "which fetches the file and writes its sha256 there."
            )


def unfetched(config: Config) -> list[str]:
    """Published files whose content is not known yet, as ``name (not fetched)``."""
    names = {f.named for _, f in published_files(config) if config.files.get(f.named) is None}
    return sorted(f"{name} (not fetched)" for name in names)


def require_files(config: Config) -> None:
    """``AngelshareError`` where a published file is not in its place."""
    for where, file in published_files(config):
        place = file.place(config.revisions.get(file.revision_name, ""))
        if not place.is_file():
            raise AngelshareError(
                f"{where}: {file.named} is not in its place, {place}. Run `angelshare resolve "
                "--config FILE` on a machine with a network: it fetches the file at its commit."
            )


def fetch_files(path: Path, config: Config) -> dict[str, str]:
    """Fetch the published files that are not in their places; return the sha256 of each.

    A file whose sha256 was ``null`` gets it written into the configuration ``path``, the rest of
    which stays as it is.

    Raises:
        AngelshareError: where a file cannot be had, or is not the one that ``files`` says.
    """
    fetched: dict[str, str] = {}
    for where, file in published_files(config):
        commit, known = config.revisions[file.revision_name], config.files[file.named]
        place = file.place(commit)
        if file.named in fetched or (known and place.is_file() and sha256_file(place) == known):
            continue
        with publishing(place) as temporary:
            download(file.url(commit), temporary)
            sha256 = sha256_file(temporary)
            if known not in (None, sha256):
                raise AngelshareError(
                    f"{where}: {file.url(commit)} has the sha256 {sha256}, not that under files "
                    f"({known}). If another commit is meant, write `{file.named}: null` there and "
                    "run `angelshare resolve` again."
                )
        if known is None:
            before = path.read_text()
            after = rewritten(before, file.named, "null", sha256)
            if after == before:
                raise AngelshareError(
                    f"{path} has no line `{file.named}: null` under files, which this command "
                    "rewrites: write it so, on a line of its own."
                )
            publish_bytes(path, after.encode())
        fetched[file.named] = sha256
    return fetched


def download(url: str, to: Path) -> None:
    """Write what is at an address to a file; `AngelshareError` where it cannot be had whole."""
    with _answer(url, f"{url} cannot be fetched") as answer, to.open("wb") as stream:
        while block := answer.read(1 << 20):
            stream.write(block)
        expected = answer.headers.get("Content-Length")
    size = to.stat().st_size
    if expected is not None and size != int(expected):
        raise AngelshareError(f"{url} ended after {size} of {expected} bytes: try again")


def ask_github(repository: str, revision: str) -> str:
    """The commit of a GitHub repository at a branch or tag; `AngelshareError` where it has none."""
    failed = f"GitHub gives no commit of {repository} at {revision}"
    url = f"{GITHUB_API}/repos/{repository}/commits/{quote(revision)}"
    with _answer(url, failed, Accept="application/vnd.github.sha") as answer:
        commit = answer.read(100).decode("ascii", "replace").strip()
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise AngelshareError(f"{failed}: {commit!r}")
    return str(commit)


@contextmanager
def _answer(url: str, failed: str, **headers: str) -> Iterator[Any]:
    """What is at an address, over the proxy of the environment where there is one."""
    # Each job reads the configuration, and none of them asks anyone.
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
            yield answer
    except (OSError, HTTPException) as error:
        raise AngelshareError(f"{failed}: {error}") from error


def rewritten(text: str, key: str, old: str, new: str) -> str:
    """YAML with the value ``old`` of a key replaced; the same text where no line has it so."""
    line = re.compile(
        rf"""^(?P<head>[ \t]+["']?{re.escape(key)}["']?:[ \t]*)"""
        rf"""["']?{re.escape(old)}["']?[ \t]*(?:#.*)?$""",
        re.MULTILINE,
    )
    return line.sub(rf"\g<head>{new}", text)
