"""The records of a store: receipts and manifests, as they stand on disk.

Both are deterministic (no time, no host): equal work gives equal bytes. What is read from one is
bounded by its types: a name that could lead out of the store is no name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from angelshare.errors import AngelshareError
from angelshare.recipes import digest, recipe_key
from angelshare.settings import Settings
from angelshare.store.provenance import Provenance

Record = TypeVar("Record", bound=Settings)

REPAIR = "Run `angelshare verify --repair`, then the workflow again: it remakes that part alone."

Kind = Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,31}$")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
InputKey = Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,31}/[0-9a-f]{1,64}$")]
"""``kind/key`` of an artifact: a path below the store's root, and never another one."""


FileName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.(parquet|json|safetensors)$", max_length=200),
]
"""A plain name: Parquet, JSON and safetensors only, formats whose reading runs no code."""
FILE_NAMES = TypeAdapter(list[FileName])


class StoredFile(Settings):
    """One object of a part, under the name it has inside the artifact."""

    name: FileName
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)

    @property
    def suffix(self) -> str:
        """The object's suffix, without the dot."""
        return self.name.rpartition(".")[2]


class Receipt(Settings):
    """A part that was committed: its objects and the content they were really made from."""

    model_config = ConfigDict(populate_by_name=True)

    schema_name: str = Field(default="angelshare/receipt/1", alias="schema")
    kind: Kind
    key: Key
    part: int = Field(ge=0)
    files: list[StoredFile]
    rows: int = 0
    tokens: int = 0
    inputs: dict[str, str] = {}
    """Content digest of each input by its role."""
    input_keys: dict[str, InputKey] = {}
    """Which artifact each input was, by the same roles."""
    provenance: Provenance = Provenance()


class Manifest(Settings):
    """What a whole artifact is."""

    model_config = ConfigDict(populate_by_name=True)

    schema_name: str = Field(default="angelshare/manifest/1", alias="schema")
    kind: Kind
    key: Key
    recipe: dict[str, Any]
    parts: list[Receipt]
    rows: int
    tokens: int
    bytes: int
    content_sha256: str
    """Digest over the parts' object digests, in order: equal content, equal digest."""

    @property
    def provenances(self) -> list[tuple[Provenance, list[int]]]:
        """What the parts were made with: each different record, and the parts it is of."""
        found: dict[bytes, tuple[Provenance, list[int]]] = {}
        for part in self.parts:
            record = part.provenance
            found.setdefault(to_json(record), (record, []))[1].append(part.part)
        return list(found.values())

    def describes(self, kind: str, key: str) -> bool:
        """Whether this is the manifest of that artifact, and what it says of itself is true."""
        named = [(kind, key, number) for number in range(len(self.parts))]
        return (
            (self.kind, self.key) == (kind, key)
            and recipe_key(kind, self.recipe) == key
            and [(part.kind, part.key, part.part) for part in self.parts] == named
            and content_digest(self.parts) == self.content_sha256
        )


def to_json(model: Settings) -> bytes:
    """The byte-stable JSON of a receipt, manifest or consumer record."""
    text = json.dumps(model.model_dump(by_alias=True), indent=1, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode()


def load(model: type[Record], path: Path) -> Record:
    """Read and check a JSON record of the store.

    Raises:
        AngelshareError: when the file is missing, no JSON, or not of the expected form.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise AngelshareError(f"{path} cannot be read ({error.strerror}). {REPAIR}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise AngelshareError(f"{path} is damaged: {where}: {first['msg']}. {REPAIR}") from error


def content_digest(parts: list[Receipt]) -> str:
    """The digest of an artifact's content: its files' names and digests, part by part."""
    return digest(
        "angelshare/content",
        [[[file.name, file.sha256] for file in receipt.files] for receipt in parts],
    )
