"""Recipes and keys: what decides an artifact's content, and the name that follows from it.

A recipe is a mapping of plain values (str, bool, int, finite float, None, lists and mappings of
them). Its key is the digest of a canonical encoding, tagged with a domain so that two kinds of
recipe can never share a key. Keys are known before anything runs: the DAG can name them.

Invariant: equal recipes give equal keys on every machine and Python version; whatever has no one
canonical encoding (sets, NaN, custom objects) raises ``TypeError`` instead of being guessed at.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

Recipe = dict[str, Any]

STAGE_VERSIONS: dict[str, int] = {
    "dataset": 2,
    "tokenizer": 1,
    "model": 1,
    "logits": 2,
    "states": 1,
    "corpus": 1,
    "scores": 2,
    "student": 1,
    "evaluation": 2,
    "answers": 1,
    "judgements": 1,
}
"""One number per stage. It rises when the stage's code changes the meaning of what it makes; a
golden-digest test per stage fails when the bytes change and the number did not."""

KEY_LENGTH = 32
"""Hex digits of a key (128 bits): short enough for a path, long enough for every team there is."""


def canonical(value: Any) -> Any:
    """Return ``value`` as plain sorted JSON data.

    Raises:
        TypeError: for anything whose encoding would not be unique, naming where it stands.
    """
    return _canonical(value, "recipe")


def _canonical(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        if type(value) not in (type(None), str, bool, int):
            raise TypeError(f"{where}: {type(value).__name__} is not a plain value")
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise TypeError(f"{where}: {value} has no canonical encoding")
        return value
    if isinstance(value, (list, tuple)):
        return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise TypeError(f"{where}: the key {key!r} is not a string")
        return {key: _canonical(value[key], f"{where}.{key}") for key in sorted(value)}
    raise TypeError(f"{where}: {type(value).__name__} is not a plain value")


def digest(domain: str, value: Any) -> str:
    """The hex sha256 of ``value``'s canonical encoding, tagged with ``domain``."""
    text = json.dumps(canonical(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{domain}\0{text}".encode()).hexdigest()


def recipe_key(kind: str, recipe: Mapping[str, Any]) -> str:
    """The key of a recipe of ``kind``: the name of the artifact or run it decides."""
    return digest(f"angelshare/{kind}", recipe)[:KEY_LENGTH]


def make_recipe(kind: str, **parts: Any) -> Recipe:
    """A sorted recipe of ``kind`` that carries the stage's version.

    Inputs enter by role: ``teacher=…``, ``sequences=…``; swapping two of them changes the key.
    """
    return canonical({"kind": kind, "version": STAGE_VERSIONS[kind], **parts})


def recipe_differences(before: Any, after: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two recipes differ: dotted path, value before, value after; ``–`` for none."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            path = f"{where}.{key}" if where else key
            yield from recipe_differences(before.get(key, _NONE), after.get(key, _NONE), path)
    elif type(before) is not type(after) or before != after:
        yield where, _shown(before), _shown(after)


_NONE = object()


def _shown(value: Any) -> str:
    return "–" if value is _NONE else json.dumps(value, ensure_ascii=False)
