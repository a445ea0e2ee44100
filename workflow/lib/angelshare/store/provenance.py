"""What a part was made with: model files, tokenizer, software, licences.

A receipt carries one such record, written by the job that made the part; the manifest carries its
parts' receipts. It is deterministic (no time, no host) and decides nothing: neither the key nor the
content digest depends on it, so parts made by different versions of a program still belong together
and `angelshare show` tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from angelshare.settings import Settings


class Provenance(Settings):
    """What made a part, besides the content of its inputs."""

    software: dict[str, str] = {}
    """Version of Python, of this program and of each package that decides content."""
    device: str | None = None
    """``cpu`` or ``cuda``, where a model ran: what ``dtype: auto`` was resolved by."""
    model_files: dict[str, str] = {}
    """For a pretrained model, sha256 of each weight, config and tokenizer file, by name. A model
    that the workflow trained is an input, with its content digest."""
    tokenizer_sha256: str | None = None
    """Of the ids, special tokens and chat template (`angelshare.data.tokenizer`)."""
    chat_template_sha256: str | None = None
    """Of the chat template alone."""
    licences: dict[str, str | None] = {}
    """Licence of each dataset and model this stands on, its own included; null: not stated."""
    restricted: list[str] = []
    """Models among them whose licence restricts training on their outputs."""


def licence_texts(records: Iterable[Provenance]) -> dict[str, str]:
    """Every licence that the records state, by what it is the licence of.

    What was stated differently when different parts were made shows each text.
    """
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, text in record.licences.items():
            found.setdefault(name, {})[text or "not stated"] = None
    return {name: " or ".join(texts) for name, texts in found.items()}


def restricted_models(records: Iterable[Provenance]) -> list[str]:
    """The models whose licence restricts training on what the records belong to."""
    return sorted({name for record in records for name in record.restricted})


def restriction(models: Iterable[str]) -> str:
    """What to tell the user of artifacts that such models made."""
    return (
        f"the licence of {', '.join(models)} restricts training on its outputs: read it before you "
        "train, publish or share a student of this artifact"
    )
