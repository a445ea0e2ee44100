"""Consumers: who read an artifact. One record per student run and team, beside the artifact."""

from __future__ import annotations

from pydantic import Field

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
