"""Which commit a hub name means.

A recipe must say which weights and rows it speaks of, and a branch or tag moves. A configuration
may still be planned with one, without a network: keys are then provisional, and `unresolved` lists
what stands in the way of a run. `resolve_file` asks the hub once and writes the commits into the
configuration's ``revisions`` section, so that the file says what was run. The same holds for the
repositories of `angelshare.published` files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from angelshare.errors import AngelshareError
from angelshare.files import publish_bytes
from angelshare.published import ask_github, published_files, rewritten, unfetched, unpinned
from angelshare.settings import Settings

if TYPE_CHECKING:
    from angelshare.config import Config

COMMIT = re.compile(r"[0-9a-f]{40}")
Resolve = Callable[[str, str, str], str]
"""Takes ``model``, ``dataset`` or ``github``, a name and a branch, tag or commit; gives the
commit."""
Entry = TypeVar("Entry", bound=Settings)


def is_local(model: str) -> bool:
    """Whether a model is meant as a folder: it looks like a path, or is there."""
    path = Path(model)
    return path.is_absolute() or model.startswith((".", "~")) or path.is_dir()


def filled(config: Config) -> Config:
    """``config`` with the revision of every hub name that states none taken from ``revisions``."""

    def fill(entry: Entry) -> Entry:
        name, revision = _hub_name(entry), getattr(entry, "revision", None)
        if name is None or revision is not None:
            return entry
        return entry.model_copy(update={"revision": config.revisions.get(name)})

    return config.model_copy(
        update={
            "datasets": {name: fill(entry) for name, entry in config.datasets.items()},
            "benchmarks": {name: fill(entry) for name, entry in config.benchmarks.items()},
            "teachers": {name: fill(entry) for name, entry in config.teachers.items()},
            "judges": {name: fill(entry) for name, entry in config.judges.items()},
            "students": {
                name: student.model_copy(update={"init": fill(student.init)})
                for name, student in config.students.items()
            },
        }
    )


def hub_entries(config: Config) -> Iterator[tuple[str, str, str, str | None]]:
    """Every name that means a commit: where it stands, its type, the name, its revision."""
    yield from _entries(config)
    for where, file in published_files(config):
        yield where, file.kind, file.revision_name, config.revisions.get(file.revision_name)


def _entries(config: Config) -> Iterator[tuple[str, str, str, str | None]]:
    """Those of models and data sets."""
    sections: dict[str, tuple[str, Mapping[str, Any]]] = {
        "datasets": ("dataset", config.datasets),
        "benchmarks": ("dataset", config.benchmarks),
        "teachers": ("model", config.teachers),
        "judges": ("model", config.judges),
        "students": ("model", {name: s.init for name, s in config.students.items()}),
    }
    for section, (kind, entries) in sections.items():
        for name, entry in entries.items():
            hub_name = _hub_name(entry)
            if hub_name is not None:
                yield f"{section}.{name}", kind, hub_name, entry.revision


def missing(config: Config) -> Iterator[str]:
    """One line per name without any revision, and per published file without a line of its own."""
    for where, _, name, revision in _entries(config):
        if revision is None:
            yield (
                f"{where}.revision is missing: name the hub commit of {name}, or write "
                f"`{name}: main` under revisions and run `angelshare resolve`."
            )
    yield from unpinned(config)


def unresolved(config: Config) -> list[str]:
    """What is not pinned yet: names at a branch or tag, as ``name (main)``, and published files
    that were never fetched."""
    found = {
        f"{name} ({revision})"
        for _, _, name, revision in hub_entries(config)
        if revision is not None and not COMMIT.fullmatch(revision)
    }
    return [*sorted(found), *unfetched(config)]


def require_resolved(config: Config) -> None:
    """``AngelshareError`` when a name means no commit or content yet: it could mean another."""
    names = unresolved(config)
    if names:
        raise AngelshareError(
            f"{len(names)} names are pinned to a branch or tag, which can move, or to nothing: "
            f"{', '.join(names)}. Run `angelshare resolve --config FILE` once, on a machine that "
            "reaches the hub: it writes commits and digests into the file, and fetches the files."
        )


def ask(kind: str, name: str, revision: str) -> str:
    """The commit of a name at a branch or tag, from the hub or from GitHub."""
    if kind == "github":
        return ask_github(name.partition(":")[2], revision)
    return ask_hub(kind, name, revision)


def ask_hub(kind: str, name: str, revision: str) -> str:
    """The commit of a hub name at a branch or tag; ``AngelshareError`` when the hub has none."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision)
    except Exception as error:  # the network's errors are those of whatever client the hub's uses
        first_line = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise AngelshareError(
            f"the hub gives no commit of {kind} {name} at {revision}: {first_line}"
        ) from error
    if not info.sha:
        raise AngelshareError(f"the hub gives no commit of {kind} {name} at {revision}")
    return str(info.sha)


def resolve_file(path: Path, config: Config, resolve: Resolve = ask) -> dict[str, str]:
    """Write the commit of every branch or tag under ``revisions`` of ``path``; return them by name.

    The rest of the file, comments included, stays as it is; the branch is kept as a comment.
    """
    text = path.read_text()
    commits: dict[str, str] = {}
    for where, kind, name, revision in hub_entries(config):
        if revision is None or COMMIT.fullmatch(revision) or name in commits:
            continue
        commits[name] = resolve(kind, name, revision)
        before = text
        text = rewritten(text, name, revision, f"{commits[name]}  # {revision}")
        if text == before:
            raise AngelshareError(
                f"{path}: {where} states the revision {revision!r} itself. Move it to a line "
                f"`{name}: {revision}` under revisions, which this command rewrites."
            )
    if commits:
        publish_bytes(path, text.encode())
    return commits


def _hub_name(entry: Any) -> str | None:
    """The name by which an entry is found on the hub; None for what is local or made here."""
    if getattr(entry, "source", None) == "hub":
        return str(entry.name)
    model, endpoint = getattr(entry, "model", None), getattr(entry, "endpoint", None)
    return None if model is None or endpoint or is_local(model) else str(model)
