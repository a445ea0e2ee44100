"""Inputs whose content changed under the same recipe.

A stage that is not deterministic, or another version of a program, can make an artifact again with
other content. What was made from the former content is then no longer what its recipe says, though
its own bytes are whole: `angelshare verify` lists it, a job that would read it beside its changed
input refuses, and repair takes its receipts away, so that it is made again. An input that is not in
the store at the moment (collected, never fetched) says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from angelshare.errors import AngelshareError
from angelshare.store.artifacts import Artifact, ArtifactStore
from angelshare.store.records import Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedInput:
    """An input that is now something else than what a part was made from."""

    role: str
    source: str
    """``kind/key`` of the input."""
    made_from: str
    """Content digest of what the part was made from."""
    now: str
    """Content digest of what the store holds under that key now."""

    def __str__(self) -> str:
        kind, _, key = self.source.partition("/")
        return (
            f"made from other content of its {self.role} ({kind} {key[:12]}): "
            f"{self.made_from[:12]} then, {self.now[:12]} now"
        )


class Contents:
    """The content digests of a store's artifacts, each looked up once."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._known: dict[str, str | None] = {}

    def of(self, source: str) -> str | None:
        """The content digest of ``kind/key``; None where no sound manifest says it."""
        if source not in self._known:
            kind, _, key = source.partition("/")
            try:
                self._known[source] = self.store.artifact(kind, key).manifest().content_sha256
            except AngelshareError:
                self._known[source] = None
        return self._known[source]

    def changed(self, receipt: Receipt, recipe: Mapping[str, Any]) -> Iterator[ChangedInput]:
        """The inputs of a part that are something else now.

        Args:
            recipe: names the inputs of receipts of older versions; may be empty.
        """
        keys = receipt.input_keys or {
            role: f"{source['kind']}/{source['key']}"
            for role, source in recipe.get("inputs", {}).items()
        }
        for role, made_from in sorted(receipt.inputs.items()):
            now = self.of(keys[role]) if role in keys else None
            if now is not None and now != made_from:
                yield ChangedInput(role=role, source=keys[role], made_from=made_from, now=now)


def refuse_changed(store: ArtifactStore, artifact: Artifact) -> None:
    """Stop before a sealed artifact is read that was made from what its inputs no longer are.

    Raises:
        AngelshareError: naming the part, the input, both digests and the way out.
    """
    manifest, contents = artifact.manifest(), Contents(store)
    for receipt in manifest.parts:
        for change in contents.changed(receipt, manifest.recipe):
            raise AngelshareError(
                f"{artifact.kind} {artifact.key}, part {receipt.part}, was {change}. What reads "
                "both would mix two things. Run `angelshare verify --repair`, then the workflow "
                "again: it makes the parts again that this concerns."
            )
