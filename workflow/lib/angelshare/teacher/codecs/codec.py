"""What every codec is: columns of its own, and the way there and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from angelshare.teacher.codecs.rows import CachedTargets, Lists


@dataclass(frozen=True, slots=True)
class Codec(ABC):
    """How a position is stored; a codec's fields are its settings."""

    name: ClassVar[str]
    version: ClassVar[int]
    tail: ClassVar[bool]
    """Whether the mass of the tokens that are not kept is known."""
    fields: ClassVar[tuple[pa.Field, ...]]
    """The columns, beside those of every cache."""
    decoding: ClassVar[str]
    """In words, for readers without this program."""

    def parameters(self) -> dict[str, Any]:
        """What the metadata records of this codec's settings."""
        return asdict(self)

    @abstractmethod
    def encode(self, rows: Sequence[CachedTargets], ranks: np.ndarray) -> dict[str, pa.Array]:
        """The codec's columns for ``rows``; ``ranks`` int32 [V] is the alphabet."""

    @abstractmethod
    def decode(
        self,
        columns: Mapping[str, Lists],
        row: int,
        kept: np.ndarray,
        ids: np.ndarray,
        temperatures: tuple[float, ...],
    ) -> dict[str, np.ndarray]:
        """The codec's fields of a `CachedTargets`; ``ids`` is the id of every rank."""
