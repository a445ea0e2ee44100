"""What the configured remotes offer: artifacts that are fetched instead of made.

The main process of a workflow asks once, all remotes at a time; the answer is kept in a file for
its jobs, each of which parses the workflow again and has to make the same choice, whatever has
arrived meanwhile. A remote that does not answer in time is a warning, never an error: what it may
have is made here.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from angelshare.errors import AngelshareError
from angelshare.files import publish_json, read_json

if TYPE_CHECKING:
    from angelshare.store.remote import NoAnswer, Remote

ASK_S = 15.0
"""How long all remotes together may take to answer."""
KEPT = "fetched.json"
ASKERS = 16
"""Requests on their way to a remote at once."""

Name = tuple[str, str]
"""Kind and key of an artifact."""


@dataclass(slots=True)
class Answer:
    """What the remotes said."""

    offers: dict[str, str] = field(default_factory=dict)
    """Artifact key -> address of the first remote that has it."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Artifact key -> bytes to be fetched."""
    warnings: list[str] = field(default_factory=list)


def ask(remotes: Sequence[str], wanted: Iterable[Name], within_s: float = ASK_S) -> Answer:
    """Ask each remote for the manifest of each wanted artifact; the first remote's offer counts.

    A manifest that is damaged, or not that of its key, is no offer but a warning.
    """
    names = list(wanted)
    until = time.monotonic() + within_s
    asked = [_Asked(url, names) for url in (remotes if names else ())]
    answer = Answer()
    for one in asked:
        if not one.finished.wait(max(0.0, until - time.monotonic())):
            answer.warnings.append(
                f"{one.url} did not answer within {within_s:g} s: nothing is fetched from it."
            )
            continue
        answer.warnings.extend(one.problems)
        for key, size in one.sizes.items():
            if key not in answer.offers:
                answer.offers[key], answer.sizes[key] = one.url, size
    return answer


class _Asked:
    """A remote that is being asked, by daemon threads: one that hangs is not waited for."""

    def __init__(self, url: str, names: Sequence[Name]) -> None:
        self.url = url
        self.sizes: dict[str, int] = {}
        self.problems: list[str] = []
        self.finished = threading.Event()
        threading.Thread(target=self._ask, args=(names,), daemon=True).start()

    def _ask(self, names: Sequence[Name]) -> None:
        # Imported only where there are remotes: every job parses the workflow.
        from angelshare.store.remote import Remote

        try:
            remote = Remote(self.url)
            self._ask_for(remote, names)
            if not self.sizes and not self.problems and not remote.exists():
                self.problems.append(f"{self.url}: there is no store, or it is empty.")
        except AngelshareError as error:
            self.sizes, self.problems = {}, [f"{error} Nothing is fetched from it."]
        finally:
            self.finished.set()

    def _ask_for(self, remote: Remote, names: Sequence[Name]) -> None:
        """Ask for all of them; raises `NoAnswer` when one request is not answered."""
        todo: queue.SimpleQueue[Name] = queue.SimpleQueue()
        for name in names:
            todo.put(name)
        silent: list[NoAnswer] = []
        askers = [
            threading.Thread(target=self._ask_some, args=(remote, todo, silent), daemon=True)
            for _ in range(min(ASKERS, len(names)))
        ]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        if silent:
            raise silent[0]

    def _ask_some(
        self, remote: Remote, todo: queue.SimpleQueue[Name], silent: list[NoAnswer]
    ) -> None:
        from angelshare.store.remote import NoAnswer

        while not silent:
            try:
                found = remote.manifest(*(name := todo.get_nowait()))
            except queue.Empty:
                return
            except NoAnswer as error:
                silent.append(error)
            except AngelshareError as error:
                self.problems.append(f"{error} It is not fetched.")
            else:
                if found is not None:
                    self.sizes[name[1]] = found[0].bytes


def keep_offers(results: str | Path, offers: dict[str, str]) -> None:
    """Keep the choice of the main process, in its results folder, for its jobs."""
    publish_json(Path(results, KEPT), offers)


def kept_offers(results: str | Path) -> dict[str, str]:
    """The choice that the main process kept: key -> remote; none where it kept none."""
    try:
        return read_json(Path(results, KEPT))
    except FileNotFoundError:
        return {}
