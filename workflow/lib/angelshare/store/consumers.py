"""Consumers: who read an artifact. One record per student run and team, beside the artifact."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from angelshare.files import read_json
from angelshare.recipes import digest
from angelshare.settings import Settings


class Consumer(Settings):
    """A student run that read an artifact."""

    id: str
    run: str
    team: str
    tokens_read: int = Field(ge=0)
    utc: str


def consumer_id(team: str, run_key: str) -> str:
    """The name of a consumer record: one per run and team, however often the run is repeated."""
    return digest("angelshare/consumer", {"team": team, "run": run_key})[:32]


def foreign_consumers(
    store: Path | str, team: str, artifacts: Iterable[tuple[str, str]]
) -> dict[str, list[str]]:
    """The consumers that other teams recorded, by artifact key; keys without any are left out.

    This team's own runs are inputs of its accounting anyway; other teams' runs are not, and a
    change among them is what makes the tables stale.

    Args:
        artifacts: kind and key of each artifact of the study.
    """
    found = {}
    for kind, key in artifacts:
        records = [read_json(path) for path in Path(store, kind, key, "consumers").glob("*.json")]
        foreign = sorted(record["id"] for record in records if record["team"] != team)
        if foreign:
            found[key] = foreign
    return found
