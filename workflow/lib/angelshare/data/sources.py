"""Every dataset becomes one sequence table: generated problems, a local file, or a hub's rows.

Rows of chat ``messages`` are split and subsampled by a seed: held-out rows are drawn first, and a
row whose prompt already occurred is left out, so no held-out prompt is ever trained on.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from angelshare.data.problems import make_dataset
from angelshare.data.settings import Conversations, DataSource, FileSource, HubSource, WordProblems
from angelshare.data.tables import Message, sequence_table
from angelshare.errors import AngelshareError

ROLES = ("system", "user", "assistant", "tool")


def load_source(settings: DataSource) -> pa.Table:
    """The sequence table of a source; errors name the origin, the row and what is missing."""
    if isinstance(settings, WordProblems):
        return make_dataset(settings)
    if isinstance(settings, FileSource):
        return sample(_file_rows(Path(settings.path)), settings, settings.path)
    return sample(_hub_rows(settings), settings, settings.name)


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


def sample(rows: Iterable[dict[str, Any]], settings: Conversations, origin: str) -> pa.Table:
    """Split rows ``{messages, …}`` by the seed; every split keeps the order of ``rows``.

    ``AngelshareError`` on a malformed row, or when the rows do not fill the splits.
    """
    found: dict[bytes, tuple[str, list[Message]]] = {}
    for number, row in enumerate(rows, start=1):
        messages = _messages(row, settings.messages_field, f"{origin}, row {number}")
        found.setdefault(_prompt(messages), (_row_id(row, settings, number, origin), messages))
    conversations = list(found.values())
    order = list(range(len(conversations)))
    random.Random(f"split/{settings.seed}").shuffle(order)
    held_out = settings.test + settings.validation + settings.unlabelled
    counts = {
        "test": settings.test,
        "validation": settings.validation,
        "unlabelled": settings.unlabelled,
        "train": settings.labelled or len(order) - held_out,
    }
    if counts["train"] < 1 or sum(counts.values()) > len(order):
        raise AngelshareError(
            f"{origin}: {len(order)} rows with different prompts do not fill the splits {counts}; "
            "lower labelled, unlabelled, validation or test"
        )
    table_rows = []
    for split in counts:
        chosen, order = sorted(order[: counts[split]]), order[counts[split] :]
        for index in chosen:
            row_id, messages = conversations[index]
            kept = messages[:-1] if split == "unlabelled" else messages
            table_rows.append({"id": row_id, "split": split, "messages": kept})
    return sequence_table(table_rows)


def _messages(row: dict[str, Any], field: str, where: str) -> list[Message]:
    """The row's messages, checked: known roles, text everywhere, an answered user at the end."""
    if field not in row:
        raise AngelshareError(f"{where}: no field {field!r}; it has {', '.join(sorted(row))}")
    messages = row[field]
    if not isinstance(messages, list) or not messages:
        raise AngelshareError(f"{where}: {field!r} must be a list of messages")
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
    if [message["role"] for message in checked[-2:]] != ["user", "assistant"]:
        raise AngelshareError(f"{where}: must end with a user message and an assistant's answer")
    return checked


def _prompt(messages: list[Message]) -> bytes:
    return hashlib.sha256(json.dumps(messages[:-1], sort_keys=True).encode()).digest()


def _row_id(row: dict[str, Any], settings: Conversations, number: int, origin: str) -> str:
    if settings.id_field is None:
        return f"row-{number:07d}"
    value = row.get(settings.id_field)
    if value is None:
        raise AngelshareError(f"{origin}, row {number}: no field {settings.id_field!r}")
    return str(value)


def _file_rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise AngelshareError(f"{path}: no such file; set the source's path to an existing one")
    if path.suffix == ".parquet":
        try:
            for batch in pq.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
        except pa.ArrowInvalid as error:
            raise AngelshareError(f"{path}: not a readable Parquet file: {error}") from error
    elif path.suffix == ".jsonl":
        yield from _json_lines(path)
    else:
        raise AngelshareError(f"{path}: a file source ends in .jsonl or .parquet")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise AngelshareError(f"{path}, row {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise AngelshareError(f"{path}, row {number}: not a mapping")
            yield row


def _hub_rows(settings: HubSource) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        rows = datasets.load_dataset(
            settings.name, settings.subset, revision=settings.revision, split=settings.hub_split
        )
    except (OSError, ValueError) as error:
        raise AngelshareError(
            f"{settings.name} at {settings.revision}: cannot be loaded ({error}). Check name, "
            "subset, revision and hub_split; without a network, download it first on a machine "
            "that has one and set HF_HOME to that cache, or give a local file with source: file"
        ) from error
    yield from rows
