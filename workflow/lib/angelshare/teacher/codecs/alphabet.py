"""Token ids as ranks: what is kept often gets a small number, which compresses better.

The alphabet lists the ids that a cache file keeps often, most frequent first. An id in it is
stored as its place there; any other as the id plus the alphabet's length. So every id has a rank
and nothing needs to be known in advance about what later rows keep. Measured on SmolLM2-135M's
top-p 0.98 sets it takes 9 % off the ids, on the 100,278 tokens of OLMo-2's tokenizer 18 %; ranks
by the frequency of the text's own tokens take only 4 and 6 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORTH_LISTING = 16
"""Occurrences from which an entry, about six bytes of JSON, pays for itself."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """A file's frequent token ids."""

    listed: np.ndarray
    """int32 [A], most frequent first."""
    vocab_size: int
    """Ids are below it."""

    @classmethod
    def of(cls, token_ids: np.ndarray, vocab_size: int) -> Alphabet:
        """The alphabet of a sample of kept ids; equally frequent ids in ascending order."""
        counts = np.bincount(token_ids, minlength=vocab_size)
        order = np.lexsort((np.arange(vocab_size), -counts))
        return cls(order[: int((counts >= WORTH_LISTING).sum())].astype(np.int32), vocab_size)

    def ranks(self) -> np.ndarray:
        """int32 [V], the rank of every id."""
        ranks = np.arange(self.vocab_size, dtype=np.int32) + np.int32(len(self.listed))
        ranks[self.listed] = np.arange(len(self.listed), dtype=np.int32)
        return ranks

    def ids(self) -> np.ndarray:
        """int32 [A + V], the id of every rank."""
        return np.concatenate([self.listed, np.arange(self.vocab_size, dtype=np.int32)])
