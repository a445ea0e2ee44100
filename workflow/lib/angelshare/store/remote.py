"""A store at an fsspec address (a folder, a mounted share, ``s3://…``), laid out like every store.

What is written becomes visible whole or not at all: a folder is written as a store of its own
(temporary file, flush, link), an object store's PUT is atomic, and any other file system gets a
temporary name that is moved. What is read is bounded by what its manifest says, because a remote
may be hostile: sizes are bytes, and no more of them are ever taken than were announced.

Every object's digest is checked at the far end after it was written. An S3 store that is seen to
refuse bytes whose sha256 is not the declared one answers for its own content (one HEAD request);
everywhere else the object is read back.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX, publish_bytes
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.objects import writing
from angelshare.store.records import Manifest, StoredFile

P = ParamSpec("P")
Result = TypeVar("Result")

BLOCK_BYTES = 16 << 20
"""How much of an object is held in memory at once, for each one under way."""
READING: dict[str, Any] = {"block_size": BLOCK_BYTES, "cache_type": "none"}
RECORD_BYTES = 64 << 20
"""No manifest, receipt or energy record is larger."""
SINGLE_PUT_BYTES = 5 << 30
"""What S3 takes in one request, with one sha256 over the whole."""
S3 = frozenset({"s3", "s3a"})
ATOMIC_PUT = S3 | {"gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "memory"}
"""Stores in which an object appears when all its bytes have arrived."""
REFUSALS = frozenset({"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch"})

_ARTIFACT = re.compile(r"[a-z]+/[0-9a-f]{32}")
_RECORD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.json")

MEND = "Whoever keeps that store runs `angelshare verify --repair` on it and pushes it again."


class NoAnswer(AngelshareError):
    """A remote could not be asked, or broke off; what it holds is not in doubt."""


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Turn whatever the file system of a remote raises into one clear error.

    Raises:
        NoAnswer: for anything but an `AngelshareError`.
    """
    try:
        yield
    except AngelshareError:
        raise
    except Exception as error:
        text = str(error) or repr(error)
        raise NoAnswer(
            f"{url} does not answer: {text}. Check the address, the network and the credentials "
            "(docs/reuse.md#remotes), then try again: what has arrived is kept."
        ) from error


def _answered(
    method: Callable[Concatenate[Remote, P], Result],
) -> Callable[Concatenate[Remote, P], Result]:
    """A method that raises `NoAnswer` for whatever its file system raises."""

    @functools.wraps(method)
    def call(self: Remote, *args: P.args, **options: P.kwargs) -> Result:
        with answering(self.url):
            return method(self, *args, **options)

    return call


class Remote:
    """A store at an fsspec address; every method raises `NoAnswer` where that does not answer."""

    def __init__(self, url: str, **options: Any) -> None:
        """``options`` go to the file system; fsspec's own configuration and the environment count.

        Raises:
            AngelshareError: when there is no file system for the address.
        """
        self.url = url
        try:
            self.files, root = fsspec.core.url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True, **options
            )
        except (ImportError, ValueError) as error:
            raise AngelshareError(f"{url} cannot be opened: {error}.") from error
        self.root = PurePosixPath(root)
        protocol = self.files.protocol
        self.protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        local = isinstance(self.files, LocalFileSystem)
        self.folder = ArtifactStore(Path(root)) if local else None
        """The store itself, where the address is a folder of this machine."""

    def path(self, *parts: str) -> str:
        """The address of a file, in the file system's own terms."""
        return str(self.root.joinpath(*parts))

    def object(self, file: StoredFile) -> str:
        """Where an object lies."""
        return self.path("objects", file.sha256[:2], f"{file.sha256}.{file.suffix}")

    def artifact(self, kind: str, key: str, *parts: str) -> str:
        """The address of a file of an artifact.

        Raises:
            AngelshareError: when kind or key, perhaps read from a manifest, are no such names.
        """
        if not _ARTIFACT.fullmatch(f"{kind}/{key}"):
            raise AngelshareError(f"{self.url}: {kind}/{key} is not the name of an artifact.")
        return self.path(kind, key, *parts)

    @_answered
    def exists(self) -> bool:
        """Whether there is anything at the address."""
        return self.files.exists(str(self.root))

    # -- reading --------------------------------------------------------------------------------

    @_answered
    def read(self, path: str) -> bytes | None:
        """A small file; None when it is not there.

        Raises:
            AngelshareError: when it is larger than any file of its kind is.
        """
        try:
            with self.files.open(path, "rb") as stream:
                content = stream.read(RECORD_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(content) > RECORD_BYTES:
            raise AngelshareError(f"{self.url}: {path} is larger than {RECORD_BYTES:,} bytes.")
        return content

    def manifest(self, kind: str, key: str) -> tuple[Manifest, bytes] | None:
        """The manifest of an artifact, checked against its key, and its bytes; None without one.

        Raises:
            AngelshareError: when it is damaged or describes something else.
        """
        path = self.artifact(kind, key, "manifest.json")
        content = self.read(path)
        if content is None:
            return None
        try:
            manifest = Manifest.model_validate_json(content)
            sound = manifest.describes(kind, key)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise AngelshareError(f"{self.url}: {path} is damaged: {problem}.") from error
        except (RecursionError, TypeError, ValueError) as error:
            raise AngelshareError(f"{self.url}: {path} is damaged: {error}.") from error
        if not sound:
            raise AngelshareError(f"{self.url}: {path} does not describe {kind}/{key}.")
        return manifest, content

    @_answered
    def attempts(self, kind: str, key: str) -> dict[str, bytes]:
        """The energy records of all attempts at an artifact, by file name; none without any."""
        folder = self.artifact(kind, key, "attempts")
        try:
            paths = self.files.ls(folder, detail=False)
        except FileNotFoundError:
            return {}
        names = sorted(PurePosixPath(path).name for path in paths)
        found = {
            name: self.read(f"{folder}/{name}") for name in names if _RECORD_NAME.fullmatch(name)
        }
        return {name: content for name, content in found.items() if content is not None}

    def blocks(self, file: StoredFile) -> Iterator[bytes]:
        """The bytes of an object, block by block; its digest is the reader's to check.

        Raises:
            AngelshareError: when it is missing, or not of the size that its manifest says. No more
                than that size is ever read.
        """
        path = self.object(file)
        left = file.bytes
        with answering(self.url):
            try:
                size = self.files.size(path)
                if size is not None and size != file.bytes:
                    raise self._wrong_size(file, f"has {size:,} bytes")
                with self.files.open(path, "rb", **READING) as stream:
                    while block := stream.read(min(BLOCK_BYTES, left + 1)):
                        left -= len(block)
                        if left < 0:
                            raise self._wrong_size(file, "goes on")
                        yield block
            except FileNotFoundError as error:
                raise AngelshareError(
                    f"{self.url}: the object {path} is missing. {MEND}"
                ) from error
            except _altered_content() as error:
                raise AngelshareError(f"{self.url}: {path} is damaged: {error}. {MEND}") from error
            if left:
                raise self._wrong_size(file, f"ends after {file.bytes - left:,} bytes")

    def _wrong_size(self, file: StoredFile, what: str) -> AngelshareError:
        return AngelshareError(
            f"{self.url}: the object {self.object(file)} {what}, its manifest says "
            f"{file.bytes:,}. {MEND}"
        )

    @_answered
    def has(self, file: StoredFile) -> bool:
        """Whether an object is there with the right size and digest."""
        if self.folder is not None:
            return self.folder.objects.fault(file.sha256, file.suffix, file.bytes) is None
        path = self.object(file)
        if self.answers_for_content:
            head = self._head(path)
            if head is None or head["ContentLength"] != file.bytes:
                return False
            if "ChecksumSHA256" in head:
                return head["ChecksumSHA256"] == _base64(file.sha256)
        elif not self.files.exists(path):
            return False
        return self._matches(path, file)

    def _matches(self, path: str, file: StoredFile) -> bool:
        """Whether the bytes at ``path`` are the object's: reads them."""
        if self.files.size(path) != file.bytes:
            return False
        hasher = hashlib.sha256()
        try:
            with self.files.open(path, "rb", **READING) as stream:
                while block := stream.read(BLOCK_BYTES):
                    hasher.update(block)
        except _altered_content():
            return False
        return hasher.hexdigest() == file.sha256

    # -- writing --------------------------------------------------------------------------------

    @_answered
    def put(self, source: Path, file: StoredFile) -> None:
        """Write an object from the file ``source`` and check its digest there.

        Raises:
            AngelshareError: when it does not have its digest there; it is not left under its name.
        """
        if self.folder is not None:
            with writing(self.folder.root):
                sha256, _ = self.folder.objects.put(source, file.suffix)
            if sha256 != file.sha256:
                raise self._altered(file)
            return
        target = self.object(file)
        if not self.protocols & ATOMIC_PUT:
            self._put_and_move(source, target, file)
            return
        if self.protocols & S3 and file.bytes <= SINGLE_PUT_BYTES:
            with source.open("rb") as body:
                _send(self.files, target, body, file.sha256)
        else:
            self.files.put_file(str(source), target)
        if not self.has(file):
            self.files.rm_file(target)
            raise self._altered(file)

    def _put_and_move(self, source: Path, target: str, file: StoredFile) -> None:
        temporary = self._temporary_beside(target)
        try:
            self.files.put_file(str(source), temporary)
            if not self._matches(temporary, file):
                raise self._altered(file)
            self.files.mv(temporary, target)
        except BaseException:
            # Whatever this file system raises when it cannot clean up: the reason is told instead.
            with suppress(Exception):
                self.files.rm_file(temporary)
            raise

    def _altered(self, file: StoredFile) -> AngelshareError:
        return AngelshareError(
            f"{self.url}: {self.object(file)} does not have its digest after it was written. "
            "Push again; if it stays so, the far end alters what it stores."
        )

    @_answered
    def write(self, path: str, content: bytes) -> None:
        """Write a small file."""
        if self.folder is not None:
            with writing(self.folder.root):
                publish_bytes(Path(path), content)
            return
        if self.protocols & ATOMIC_PUT:
            self.files.pipe_file(path, content)
            return
        temporary = self._temporary_beside(path)
        self.files.pipe_file(temporary, content)
        self.files.mv(temporary, path)

    def _temporary_beside(self, path: str) -> str:
        """A free name in the folder of ``path``, which is made."""
        folder = PurePosixPath(path).parent
        self.files.makedirs(str(folder), exist_ok=True)
        return str(folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")

    # -- S3 -------------------------------------------------------------------------------------

    @functools.cached_property
    def answers_for_content(self) -> bool:
        """Whether the far end refuses bytes whose sha256 is not the declared one.

        It is sent such bytes, once: some servers keep a declared digest without looking.
        """
        if not self.protocols & S3:
            return False
        path = self.path("objects", f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
        with answering(self.url):
            # Its own client: the usual one tries again when it is refused.
            config = {**self.files.config_kwargs, "retries": {"max_attempts": 0}}
            options = {**self.files.storage_options, "config_kwargs": config}
            files = type(self.files)(**options, skip_instance_cache=True)
            try:
                _send(files, path, b"these", hashlib.sha256(b"others").hexdigest())
            except OSError as error:
                response = getattr(error.__cause__, "response", None) or {}
                if response.get("Error", {}).get("Code") in REFUSALS:
                    return True
                raise
            self.files.rm_file(path)
        return False

    def _head(self, path: str) -> dict[str, Any] | None:
        bucket, name, _ = self.files.split_path(path)
        try:
            return self.files.call_s3(
                "head_object", Bucket=bucket, Key=name, ChecksumMode="ENABLED"
            )
        except FileNotFoundError:
            return None


def _send(files: Any, path: str, body: Any, sha256: str) -> None:
    """One PUT to S3, streamed, with the digest that the server is to check."""
    bucket, name, _ = files.split_path(path)
    files.call_s3(
        "put_object",
        Bucket=bucket,
        Key=name,
        Body=body,
        ChecksumAlgorithm="SHA256",
        ChecksumSHA256=_base64(sha256),
    )


def _altered_content() -> tuple[type[Exception], ...]:
    """What S3's client raises for bytes that differ from the checksum which the server keeps."""
    try:
        from botocore.exceptions import FlexibleChecksumError
    except ImportError:
        return ()
    return (FlexibleChecksumError,)


def _base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()
