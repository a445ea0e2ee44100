"""Writing behind the device: who fails first is who is heard, and nothing half is published."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from angelshare.teacher.cache import CacheInfo, write_cache
from angelshare.teacher.codecs.rows import CachedTargets
from angelshare.teacher.codecs.topk_tail import TopkTail
from angelshare.teacher.write_behind import Window, write_behind

INFO = CacheInfo(
    codec=TopkTail(top_k=1, top_p=1.0),
    temperatures=(1.0,),
    vocab_size=4,
    tokenizer_sha256="ab",
    sequences=0,
    targets=0,
)


def test_the_devices_error_is_raised_even_where_the_writer_fails_of_it(tmp_path: Path) -> None:
    lost = threading.Event()

    def of_a_lost_device() -> list[CachedTargets]:
        lost.wait(10)
        time.sleep(0.3)
        raise ValueError("what the writer saw of it")

    def windows() -> Iterator[Window]:
        yield of_a_lost_device
        yield list
        lost.set()
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        write_behind(partial(write_cache, tmp_path / "cache.parquet", info=INFO), windows())
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_stops_the_device(tmp_path: Path) -> None:
    made = 0

    def windows() -> Iterator[Window]:
        nonlocal made
        for made in range(1000):  # noqa: B007
            yield full

    def full() -> list[CachedTargets]:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_behind(partial(write_cache, tmp_path / "cache.parquet", info=INFO), windows())
    assert made < 10
    assert list(tmp_path.iterdir()) == []
