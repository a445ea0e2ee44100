"""Consumers: who read an artifact. One record per student run and team, beside the artifact."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from angelshare.errors import AngelshareError
from angelshare.recipes import digest
from angelshare.settings import Settings
from angelshare.store.objects import writing


class Consumer(Settings):
    """A student run that read an artifact."""

    id: str
    run: str
    team: str
    tokens_read: int = Field(ge=0)
    utc: str
    content_sha256: str | None = None
    """The artifact's content digest when it was read; null in records of older versions."""


def consumer_id(team: str, run_key: str) -> str:
    """The name of a consumer record: one per run and team, however often the run is repeated."""
    return digest("angelshare/consumer", {"team": team, "run": run_key})[:32]


def withdraw(store: Path, run: str, team: str) -> int:
    """Take a team's run off the bills of all artifacts it read; return how many they were.

    Its share goes to those that remain, at their next accounting.

    Raises:
        AngelshareError: when no artifact of the store has such a consumer, or a record is damaged.
    """
    found: list[Path] = []
    readers: set[tuple[str, str]] = set()
    for path in store.glob("*/*/consumers/*.json"):
        try:
            consumer = Consumer.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise AngelshareError(
                f"{path} is no consumer record. Restore it from a copy or remove it."
            ) from error
        readers.add((consumer.team, consumer.run))
        if (consumer.team, consumer.run) == (team, run):
            found.append(path)
    if not found:
        teams = sorted(name for name, reader in readers if reader == run)
        runs = sorted(reader for name, reader in readers if name == team)
        hint = f"No run of team {team} is."
        if teams:
            hint = f"It is a consumer of team {', '.join(teams)}: give --team."
        elif runs:
            hint = f"Runs of team {team} that are: {', '.join(runs)}."
        raise AngelshareError(f"run {run} of team {team} is no consumer in {store}. {hint}")
    with writing(store):
        for path in found:
            path.unlink()
    return len(found)
