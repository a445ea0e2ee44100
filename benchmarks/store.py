"""The store beside the tools everybody has: `cp`, `sha256sum`, and many parts, in one run.

    python benchmarks/store.py [--parts 1000 10000] [--megabytes 64] [--files 8] [--repeats 3]
                               [--folder DIR] [--out benchmarks/results/store.json]

*parts*: a store whose artifacts have 100 parts each of a few bytes: seconds to list it, to open
(manifest read and checked, every object found) and to verify it. *throughput*: large files, flushed
to disk: committing them against `cp` and `sync`, verifying them against `sha256sum` on one and on
as many processes as there are cores, each over a warm page cache; pushing and pulling them, to a
folder and to an S3 server on this host, against fsspec's own put and get, which neither flush nor
check. Medians over the repeats. Many
as many processes as there are cores, each over a warm page cache. *reading*: tables read unchecked,
checked before they are read, and checked beside reading as jobs do. Medians over the repeats. Many
small parts are made with flushing off; that is said in the result and takes no part in a figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import Artifact, ArtifactStore
from angelshare.store.checks import Checks
from angelshare.store.remote import Remote
from angelshare.store.transfer import pull, push
from angelshare.store.verify import verify

PARTS_PER_ARTIFACT = 100


@contextmanager
def without_flushing() -> Iterator[None]:
    """Let fsync return at once: preparing 10^4 parts is not what is measured."""
    with patch.object(os, "fsync"):
        yield


def seconds(body: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    body()
    return time.perf_counter() - began


def artifact_of(store: ArtifactStore, number: int) -> tuple[Artifact, dict[str, Any]]:
    """An artifact to be made, and its recipe."""
    recipe = make_recipe("corpus", inputs={}, decoding={"seed": number})
    return store.artifact("corpus", recipe_key("corpus", recipe)), recipe


def fill(store: ArtifactStore, folder: Path, parts: int) -> None:
    """Artifacts of 100 parts, each part an object of its own."""
    source = folder / "source"
    for number in range(parts // PARTS_PER_ARTIFACT):
        artifact, recipe = artifact_of(store, number)
        for part in range(PARTS_PER_ARTIFACT):
            source.write_text(f"answers {number} {part}")
            artifact.commit(part, {"data.parquet": source}, inputs={}, rows=1, tokens=1)
        artifact.seal(recipe, PARTS_PER_ARTIFACT)


def many_parts(folder: Path, parts: int, repeats: int) -> dict[str, float]:
    """Seconds for a store of this many parts, each figure the median of the repeats."""
    store = ArtifactStore(folder / f"parts-{parts}")
    with without_flushing():
        fill_s = seconds(lambda: fill(store, folder, parts))

    def open_all() -> None:
        objects = store.objects
        for artifact in store.artifacts():
            for receipt in artifact.manifest().parts:
                for file in receipt.files:
                    if not objects.present(file.sha256, file.suffix, file.bytes):
                        raise SystemExit(f"{artifact} lacks {file.sha256}")

    def whole() -> None:
        if faults := verify(store):
            raise SystemExit(str(faults[0]))

    def middle(body: Callable[[], Any]) -> float:
        return statistics.median(seconds(body) for _ in range(repeats))

    return {
        "fill_unflushed_s": fill_s,
        "list_s": middle(lambda: list(store.artifacts())),
        "open_s": middle(open_all),
        "verify_s": middle(whole),
    }


def throughput(folder: Path, megabytes: int, files: int, repeats: int) -> dict[str, float]:
    """MB/s of publishing and verifying large files, beside cp and sha256sum, taken in turn."""
    sources = [folder / f"large-{number}" for number in range(files)]
    for path in sources:
        path.write_bytes(os.urandom(megabytes * 1_000_000))
    names = [str(path) for path in sources]
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        store = ArtifactStore(folder / f"large-store-{repeat}")
        artifact, recipe = artifact_of(store, repeat)
        copies = folder / f"copies-{repeat}"
        copies.mkdir()

        def commit(artifact: Artifact = artifact) -> None:
            for part, path in enumerate(sources):
                artifact.commit(part, {"data.parquet": path}, inputs={})

        def copy(copies: Path = copies) -> None:
            for name in names:
                subprocess.run(["cp", name, str(copies)], check=True)
                subprocess.run(["sync", str(copies / Path(name).name)], check=True)

        def digests(processes: int) -> None:
            command = ["xargs", "-0", "-n", "1", "-P", str(processes), "sha256sum"]
            subprocess.run(
                command, input="\0".join(names).encode(), check=True, stdout=subprocess.DEVNULL
            )

        # Reading everything once puts all figures on the same footing: a warm page cache.
        digests(1)
        steps: dict[str, Callable[[], Any]] = {"publish": commit, "cp_and_sync": copy}
        for name, body in list(steps.items())[:: 1 if repeat % 2 else -1]:
            found.setdefault(name, []).append(seconds(body))
        artifact.seal(recipe, files)
        checks: dict[str, Callable[[], Any]] = {
            "read_checked": artifact.paths,
            "verify": lambda store=store: verify(store),
            "sha256sum": lambda: digests(1),
            "sha256sum_all_cores": lambda: digests(len(os.sched_getaffinity(0))),
        }
        for name, body in checks.items():
            found.setdefault(name, []).append(seconds(body))
    found.update(transfers(folder, artifact, sources, repeats))
    size = megabytes * files
    return {f"{name}_mb_per_s": size / statistics.median(taken) for name, taken in found.items()}


def transfers(
    folder: Path, artifact: Artifact, sources: list[Path], repeats: int
) -> dict[str, list[float]]:
    """Seconds of push and pull beside fsspec's own put and get of the same files, taken in turn.

    To a folder, and to an S3 server on this host (in a process of its own) which believes any
    declared digest, so that push reads every object back.
    """
    found: dict[str, list[float]] = {}
    with s3_server() as bucket:
        for name, base in {"folder": f"file://{folder}", "s3": bucket}.items():
            for repeat in range(repeats):
                remote = Remote(f"{base}/remote-{repeat}")
                there = ArtifactStore(folder / f"pulled-{name}-{repeat}")
                bare, back = f"{base}/bare-{repeat}", folder / f"back-{name}-{repeat}"
                remote.files.makedirs(bare, exist_ok=True)
                back.mkdir()

                def put(files: Any = remote.files, bare: str = bare) -> None:
                    files.put([str(path) for path in sources], f"{bare}/")

                def get(files: Any = remote.files, bare: str = bare, back: Path = back) -> None:
                    files.get([f"{bare}/{path.name}" for path in sources], f"{back}/")

                def send(remote: Remote = remote) -> None:
                    push(artifact, remote)

                def fetch(remote: Remote = remote, there: ArtifactStore = there) -> None:
                    pull(there, remote, artifact.kind, artifact.key)

                for step, body in {
                    "fsspec_put": put,
                    "push": send,
                    "push_again": send,
                    "fsspec_get": get,
                    "pull": fetch,
                }.items():
                    found.setdefault(f"{name}_{step}", []).append(seconds(body))
                shutil.rmtree(back)
                shutil.rmtree(there.root)
    return found


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a bucket on an S3 server of this host."""
    import fsspec

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = (
        "import time; from moto.server import ThreadedMotoServer;"
        f"ThreadedMotoServer('127.0.0.1', {port}, verbose=False).start(); time.sleep(1e6)"
    )
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="nobody",
        AWS_SECRET_ACCESS_KEY="nothing",
        AWS_DEFAULT_REGION="us-east-1",
    )
    server = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bench")
        yield "s3://bench"
    finally:
        server.kill()
        server.wait()


def reading(folder: Path, megabytes: int, files: int, repeats: int) -> dict[str, float]:
    """Seconds to read tables of random floats: unchecked, checked before, checked beside.

    The reader decodes one batch after another on one thread and adds it up: the dearest case, since
    any training step takes longer than that.
    """
    store = ArtifactStore(folder / "reading")
    artifact, recipe = artifact_of(store, 0)
    source = folder / "table.parquet"
    for part in range(files):
        values = np.random.default_rng(part).standard_normal(megabytes * 125_000)
        pq.write_table(pa.table({"values": values}), source, compression="zstd")
        artifact.commit(part, {"data.parquet": source}, inputs={})
    artifact.seal(recipe, files)
    objects = artifact.paths()

    def read(paths: list[Path]) -> None:
        for path in paths:
            for batch in pq.ParquetFile(path, memory_map=True).iter_batches(use_threads=False):
                batch.column(0).to_numpy().sum()

    def beside() -> None:
        checks = Checks()
        read(artifact.paths(checks))
        checks.join()
        checks.close()

    bodies: dict[str, Callable[[], Any]] = {
        "unchecked_s": lambda: read(objects),
        "checked_before_s": lambda: read(artifact.paths()),
        "checked_beside_s": beside,
        "checking_alone_s": artifact.paths,
    }
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, body in bodies.items():
            found.setdefault(name, []).append(seconds(body))
    return {name: statistics.median(taken) for name, taken in found.items()}


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where to measure; default: a temporary one.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        large = throughput(folder, arguments.megabytes, arguments.files, arguments.repeats)
        read = reading(folder, arguments.megabytes, arguments.files, arguments.repeats)
        parts = {
            str(count): many_parts(folder, count, arguments.repeats) for count in arguments.parts
        }
    result = {
        "command": " ".join(["python", "benchmarks/store.py", *sys.argv[1:]]),
        "machine": {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "throughput": {"megabytes": arguments.megabytes, "files": arguments.files, **large},
        "reading": {"megabytes": arguments.megabytes, "files": arguments.files, **read},
        "parts": parts,
    }
    for name, figure in large.items():
        print(f"{name:32} {figure:10,.0f}")
    print("reading: " + ", ".join(f"{k} {v:.3f}" for k, v in read.items()))
    for count, figures in parts.items():
        print(f"{count} parts: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
