"""How a position of a logit cache is stored: one module per codec, chosen by name.

A codec turns `CachedTargets` into columns and back; what every cache has (ids, digests, the gold
token's log-probability, the entropy) and the file itself are `angelshare.teacher.cache`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from angelshare.errors import AngelshareError
from angelshare.teacher.codecs.codec import Codec
from angelshare.teacher.codecs.rskd import Rskd
from angelshare.teacher.codecs.topk_tail import TopkTail
from angelshare.teacher.settings import RskdSettings, TopkTailSettings

CODECS: dict[str, type[TopkTail] | type[Rskd]] = {codec.name: codec for codec in (TopkTail, Rskd)}


def codec_of(settings: TopkTailSettings | RskdSettings) -> Codec:
    """The codec that stores what ``settings`` ask for."""
    return CODECS[settings.name](**settings.model_dump(exclude={"name"}))


def make_codec(name: str, version: int, parameters: Mapping[str, Any]) -> Codec:
    """The codec a file's metadata names; ``AngelshareError`` where this program has none such."""
    codec = CODECS.get(name)
    if codec is None or codec.version != version:
        known = ", ".join(f"{known.name!r} {known.version}" for known in CODECS.values())
        raise AngelshareError(
            f"codec {name!r} version {version!r}; this program reads {known}. Capture the logits "
            "anew or use the program that wrote them"
        )
    try:
        return codec(**parameters)
    except TypeError as error:
        raise AngelshareError(
            f"codec {name!r}: its parameters {dict(parameters)} are not those of version {version}"
        ) from error
