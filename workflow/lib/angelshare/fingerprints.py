"""Digests of source files and model folders, so that recipes speak of content and not of paths.

A file's digest is remembered by its path, size and modification time, because a workflow is parsed
once per job and a model folder may hold 60 GB. The memory is a convenience: it may be deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from angelshare.files import publish_json, read_json, sha256_file
from angelshare.recipes import digest
from angelshare.student.settings import StudentInit

MODEL_FILES = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt", ".py"})
"""What weights, configurations, tokenizers and code beside them are kept in; a README decides
nothing, and weights in other formats are not read."""


class Fingerprints:
    """Digests by content, remembered in ``<results>/fingerprints.json``."""

    def __init__(self, results: str | Path) -> None:
        self._memory_path = Path(results) / "fingerprints.json"
        self._memory: dict[str, list[Any]] | None = None

    def file(self, path: str | Path) -> str:
        """The sha256 of a file's bytes."""
        resolved = Path(path).expanduser().resolve()
        status = resolved.stat()
        if self._memory is None:
            self._memory = self._load()
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._memory.get(str(resolved))
        if known and known[:2] == stamp:
            return str(known[2])
        sha256 = sha256_file(resolved)
        self._memory[str(resolved)] = [*stamp, sha256]
        publish_json(self._memory_path, self._memory)
        return sha256

    def model(self, model: str, revision: str | None) -> dict[str, Any]:
        """What a recipe says of a pretrained model: hub commit, or the digest of a local folder."""
        folder = Path(model).expanduser()
        if not folder.is_dir():
            return {"hub": model, "revision": revision}
        return {"sha256": digest("angelshare/folder", [*map(list, self.files(folder).items())])}

    def files(self, folder: Path) -> dict[str, str]:
        """The sha256 of each file of a model's folder that loading it may read, by name."""
        found = sorted(p for p in folder.iterdir() if p.suffix in MODEL_FILES and p.is_file())
        return {path.name: self.file(path) for path in found if not path.name.startswith(".")}

    def folder(self, path: str | Path) -> str:
        """The digest of all files in a folder and the folders in it, by their names; without what
        is hidden or compiled."""
        folder = Path(path).expanduser()
        named = []
        for file in sorted(folder.rglob("*")):
            parts = file.relative_to(folder).parts
            if file.is_file() and not any(p.startswith(".") or p == "__pycache__" for p in parts):
                named.append(["/".join(parts), self.file(file)])
        return digest("angelshare/folder", named)

    def student(self, init: StudentInit) -> dict[str, Any]:
        """What a recipe says of a student's initial weights."""
        values: dict[str, Any] = init.model_dump()
        model = values.pop("model", None)
        if values.get("keep_layers", ...) is None:
            del values["keep_layers"]
        if model is None:
            return values
        return {**values, **self.model(model, values.pop("revision", None))}

    def _load(self) -> dict[str, list[Any]]:
        try:
            memory = read_json(self._memory_path)
        except (OSError, json.JSONDecodeError):
            return {}
        return dict(memory) if isinstance(memory, Mapping) else {}
