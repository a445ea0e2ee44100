"""Every dataset becomes one sequence table: generated problems, a local file, or a hub's rows.

Rows are looked at in an order that the seed decides, and fill the held-out splits first. A row that
cannot be trained on, or whose prompt already occurred, is left out and counted by reason, so no
held-out prompt is ever trained on and nothing disappears in silence. Only rows that are needed are
read: a sample of thousands from a hub's million costs thousands.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from angelshare.data.origins import Row, origin_name, read_rows
from angelshare.data.problems import make_dataset
from angelshare.data.settings import Conversations, DataSource, HubSource, WordProblems
from angelshare.data.tables import SPLITS, Message, sequence_table
from angelshare.errors import AngelshareError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(slots=True, kw_only=True)
class Counts:
    """What a source held and what became of it; written beside the table as ``counts.json``."""

    source_rows: int
    """Rows of the source."""
    examined_rows: int
    """Rows that were looked at; the others were not needed."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows that were left out, by reason."""
    splits: dict[str, int] = field(default_factory=dict)
    """Rows of each split."""
    messages: dict[str, int] = field(default_factory=dict)
    """Messages by role."""
    characters: dict[str, int] = field(default_factory=dict)
    """Characters by role."""
    values: dict[str, int] = field(default_factory=dict)
    """Rows by the value of the source's ``count_field``."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def load_source(settings: DataSource) -> tuple[pa.Table, Counts]:
    """The sequence table of a source; errors name the origin, the row and what is missing."""
    if isinstance(settings, WordProblems):
        table = make_dataset(settings)
        counts = Counts(source_rows=table.num_rows, examined_rows=table.num_rows)
        return table, _describe(counts, table)
    return sample(read_rows(settings, _columns(settings)), settings, origin_name(settings))


def stated_licence(settings: DataSource) -> str | None:
    """The licence of a source: what the settings say, else the hub's own information."""
    if settings.license or not isinstance(settings, HubSource):
        return settings.license
    import datasets

    try:
        builder = datasets.load_dataset_builder(
            settings.name, settings.subset, revision=settings.revision
        )
    except (OSError, ValueError):
        return None
    return builder.info.license or None


def sample(rows: Sequence[Row], settings: Conversations, origin: str) -> tuple[pa.Table, Counts]:
    """Split ``rows`` by the seed; every split keeps their order.

    ``AngelshareError`` on a malformed row, or when the usable rows do not fill the splits.
    """
    order = list(range(len(rows)))
    random.Random(f"split/{settings.seed}").shuffle(order)
    wanted: dict[str, int | None] = {
        "test": settings.test,
        "validation": settings.validation,
        "unlabelled": settings.unlabelled,
        "train": settings.labelled,
    }
    filled: dict[str, dict[int, dict[str, Any]]] = {split: {} for split in wanted}
    dropped: Counter[str] = Counter()
    values: Counter[str] = Counter()
    seen: set[bytes] = set()
    open_splits = [split for split, count in wanted.items() if count != 0]
    examined = 0
    for index in order:
        if not open_splits:
            break
        examined += 1
        row = rows[index]
        messages = _messages(row, settings, f"{origin}, row {index + 1}")
        reason = unusable(messages)
        prompt = _prompt(messages)
        if reason or prompt in seen:
            dropped[reason or "repeated prompt"] += 1
            continue
        seen.add(prompt)
        split = open_splits[0]
        filled[split][index] = {
            "id": _row_id(row, settings, index + 1, origin),
            "split": split,
            "messages": messages[:-1] if split == "unlabelled" else messages,
        }
        if settings.count_field is not None:
            values[str(row.get(settings.count_field))] += 1
        if len(filled[split]) == wanted[split]:
            open_splits.pop(0)
    if not filled["train"] or any(wanted[split] is not None for split in open_splits):
        raise AngelshareError(
            f"{origin}: {sum(map(len, filled.values()))} usable rows with different prompts do not "
            f"fill the splits {wanted} (left out: {dict(dropped) or 'none'}); lower labelled, "
            "unlabelled, validation or test"
        )
    table = sequence_table(
        filled[split][index] for split in wanted for index in sorted(filled[split])
    )
    counts = Counts(
        source_rows=len(rows),
        examined_rows=examined,
        dropped=dict(sorted(dropped.items())),
        values=dict(sorted(values.items())),
    )
    return table, _describe(counts, table)


def unusable(messages: Sequence[Message]) -> str | None:
    """Why a conversation cannot be trained on; None when it can.

    It must be questions and answers in turn, after at most one system message, with an answer at
    the end and text everywhere: chat templates refuse or misrender anything else.
    """
    turns = list(messages[1:] if messages and messages[0]["role"] == "system" else messages)
    if not turns or turns[-1]["role"] != "assistant":
        return "no answer at the end"
    expected = ("user", "assistant") * (len(turns) // 2)
    if tuple(message["role"] for message in turns) != expected:
        return "roles do not alternate"
    if any(not message["content"].strip() for message in turns):
        return "empty message"
    return None


def _describe(counts: Counts, table: pa.Table) -> Counts:
    """Add what the table holds to ``counts``."""
    held = Counter(table["split"].to_pylist())
    counts.splits = {split: held[split] for split in SPLITS}
    messages: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for conversation in table["messages"].to_pylist():
        for message in conversation:
            messages[message["role"]] += 1
            characters[message["role"]] += len(message["content"])
    counts.messages, counts.characters = dict(messages), dict(characters)
    return counts


def _columns(settings: Conversations) -> list[str]:
    """The columns that are read; the others (a hub's other generations) stay on disk."""
    if settings.prompt_field is not None and settings.answer_field is not None:
        needed = [settings.prompt_field, settings.answer_field]
    else:
        needed = [settings.messages_field]
    return [*needed, *(name for name in (settings.id_field, settings.count_field) if name)]


def _messages(row: Row, settings: Conversations, where: str) -> list[Message]:
    """The row's messages, checked: known roles and text everywhere."""
    for name in _columns(settings):
        if name not in row:
            raise AngelshareError(f"{where}: no field {name!r}; it has {', '.join(sorted(row))}")
    if settings.prompt_field is not None and settings.answer_field is not None:
        question, answer = row[settings.prompt_field], row[settings.answer_field]
        pairs = [("user", question), ("assistant", answer)]
        messages: Any = [{"role": role, "content": text} for role, text in pairs]
    else:
        messages = row[settings.messages_field] or []
    if not isinstance(messages, list):
        raise AngelshareError(f"{where}: {settings.messages_field!r} must be a list of messages")
    checked: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise AngelshareError(f"{where}, message {number}: not a mapping with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise AngelshareError(f"{where}, message {number}: no {key}")
        if message["role"] not in ROLES:
            raise AngelshareError(
                f"{where}, message {number}: role {message['role']!r} is none of {', '.join(ROLES)}"
            )
        checked.append({"role": message["role"], "content": message["content"]})
    return checked


def _prompt(messages: list[Message]) -> bytes:
    return hashlib.sha256(json.dumps(messages[:-1], sort_keys=True).encode()).digest()


def _row_id(row: Row, settings: Conversations, number: int, origin: str) -> str:
    if settings.id_field is None:
        return f"row-{number:07d}"
    value = row[settings.id_field]
    if value is None:
        raise AngelshareError(f"{origin}, row {number}: its {settings.id_field!r} is empty")
    return str(value)
