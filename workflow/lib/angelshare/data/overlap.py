"""How much of the evaluation sets the training data contain, and how often they repeat themselves.

Contamination follows Tülu 3 (arXiv:2411.15124, section 3.2): an item of a benchmark is contained
when more than half of its words lie in 8-grams that one training row has too. Near duplicates are
prompts whose sets of five-word sequences have a Jaccard index of at least 0.8; candidates come from
MinHash with banding (Broder 1997) and are then compared exactly. Words are runs of letters and
digits, in lower case.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from angelshare.data.settings import OverlapSettings
from angelshare.data.tables import Message

SHINGLE = 5
BANDS, ROWS_PER_BAND = 32, 8
"""Finds 99.7 % of the pairs at the default index of 0.8, and compares few others."""
EXAMPLES = 20
HELD_OUT = frozenset({"validation", "test"})
_WORD = re.compile(r"\w+")

Ngram = tuple[str, ...]


def overlap_report(
    table: pa.Table, benchmarks: Mapping[str, Sequence[str]], settings: OverlapSettings
) -> dict[str, Any]:
    """Contamination of each benchmark by the rows that are trained on, and near duplicates.

    ``benchmarks`` holds the text of every item by the benchmark's name. Plain values.
    """
    rows = table.select(["id", "split", "messages"]).to_pylist()
    trained = {row["id"]: _text(row["messages"]) for row in rows if row["split"] not in HELD_OUT}
    return {
        "settings": settings.model_dump(),
        "rows": len(rows),
        "trained_rows": len(trained),
        "benchmarks": {
            name: contamination(trained, items, settings) for name, items in benchmarks.items()
        },
        "near_duplicates": _near_duplicates(rows, settings.jaccard),
    }


def asked_texts(prompts: pa.Table) -> list[str]:
    """What a judged benchmark asks: the last turn of each prompt of a sequence table."""
    return [messages[-1]["content"] for messages in prompts["messages"].to_pylist()]


def contamination(
    trained: Mapping[str, str], items: Sequence[str], settings: OverlapSettings
) -> dict[str, Any]:
    """How many ``items`` a training text contains, with the first examples.

    Items of fewer words than an n-gram cannot be compared and are counted apart.
    """
    n = settings.ngram
    spelled = [words(item) for item in items]
    places: dict[Ngram, list[tuple[int, int]]] = defaultdict(list)
    for number, item_words in enumerate(spelled):
        for start, ngram in enumerate(ngrams(item_words, n)):
            places[ngram].append((number, start))
    best: dict[int, tuple[float, str]] = {}
    for row_id, text in trained.items():
        covered: dict[int, set[int]] = defaultdict(set)
        for ngram in set(ngrams(words(text), n)):
            for number, start in places.get(ngram, ()):
                covered[number].update(range(start, start + n))
        for number, positions in covered.items():
            share = len(positions) / len(spelled[number])
            if share > best.get(number, (0.0, ""))[0]:
                best[number] = (share, row_id)
    contained = {i: found for i, found in sorted(best.items()) if found[0] > settings.share}
    compared = sum(len(item_words) >= n for item_words in spelled)
    return {
        "items": len(items),
        "too_short": len(items) - compared,
        "touched": len(best),
        "contained": len(contained),
        "contained_share": len(contained) / compared if compared else None,
        "examples": [
            {"item": number, "row": row_id, "share": round(share, 4)}
            for number, (share, row_id) in list(contained.items())[:EXAMPLES]
        ],
    }


def near_duplicates(texts: Sequence[str], jaccard: float) -> list[tuple[int, int, float]]:
    """Pairs of places in ``texts`` that are near duplicates, with their exact Jaccard index."""
    shingles = [set(ngrams(words(text), SHINGLE)) or {tuple(words(text))} for text in texts]
    signatures = np.stack([_signature(found) for found in shingles]) if texts else np.empty((0, 0))
    candidates: set[tuple[int, int]] = set()
    for band in range(BANDS if texts else 0):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for place, signature in enumerate(signatures):
            part = signature[band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND]
            buckets[part.tobytes()].append(place)
        for places in buckets.values():
            candidates.update(combinations(places, 2))
    pairs = []
    for one, other in sorted(candidates):
        shared = len(shingles[one] & shingles[other])
        index = shared / (len(shingles[one]) + len(shingles[other]) - shared)
        if index >= jaccard:
            pairs.append((one, other, index))
    return pairs


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())


def ngrams(sequence: Sequence[str], n: int) -> Iterator[Ngram]:
    """Every run of ``n`` words, in order."""
    return zip(*(sequence[start:] for start in range(n)), strict=False)


def _near_duplicates(rows: Sequence[Mapping[str, Any]], jaccard: float) -> dict[str, Any]:
    pairs = near_duplicates([_prompt_text(row["messages"]) for row in rows], jaccard)
    leaks = {
        rows[place]["id"]
        for pair in pairs
        for place, other in (pair[:2], pair[1::-1])
        if rows[place]["split"] in HELD_OUT and rows[other]["split"] not in HELD_OUT
    }
    return {
        "pairs": len(pairs),
        "rows": len({place for pair in pairs for place in pair[:2]}),
        "held_out_rows_with_a_trained_twin": len(leaks),
        "examples": [
            {"rows": [rows[one]["id"], rows[other]["id"]], "jaccard": round(index, 4)}
            for one, other, index in pairs[:EXAMPLES]
        ],
    }


def _signature(shingles: Iterable[Ngram]) -> np.ndarray:
    """MinHash values by multiply-shift hashing, uint64 [BANDS × ROWS_PER_BAND]."""
    hashes = np.array([_hash(shingle) for shingle in shingles], dtype=np.uint64)
    mixed = (hashes[:, None] * _MULTIPLIERS[None, :] + _OFFSETS[None, :]) >> np.uint64(32)
    least: np.ndarray = mixed.min(axis=0)
    return least


def _hash(shingle: Ngram) -> int:
    digest = hashlib.blake2b("\0".join(shingle).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


_RANDOM = np.random.default_rng(0)
_MULTIPLIERS, _OFFSETS = _RANDOM.integers(
    0, 1 << 64, (2, BANDS * ROWS_PER_BAND), dtype=np.uint64
) | np.uint64(1)


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in messages)


def _prompt_text(messages: Sequence[Message]) -> str:
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return _text(asked)
