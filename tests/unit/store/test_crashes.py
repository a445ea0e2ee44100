"""Death and full disks: whatever is there is whole, and the next run ends as if nothing had been.

A child process makes artifacts one after the other, with leases, as the jobs of a workflow do. It
is killed at random moments (``ANGELSHARE_KILLS`` times, 30 by default), and before each single step
that changes the file system. Errors of the disk are injected at each of these steps as well.
"""

import errno
import hashlib
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import stat
import subprocess
import time
from itertools import count

import pytest

from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store import leases
from angelshare.store import objects as objects_module
from angelshare.store.artifacts import ArtifactStore, Manifest, Receipt, load
from angelshare.store.gc import find_garbage
from angelshare.store.leases import single_flight
from angelshare.store.verify import leftovers, verify

KILLS = int(os.environ.get("ANGELSHARE_KILLS", "30"))
PARTS = 3
FORK = multiprocessing.get_context("fork")


def recipe_of(number):
    return make_recipe("corpus", inputs={}, decoding={"seed": number})


def make(root, scratch, number, part_bytes=150_000):
    """One whole artifact: every part under its lease, then the manifest. Returns the artifact."""
    recipe = recipe_of(number)
    artifact = ArtifactStore(root).artifact("corpus", recipe_key("corpus", recipe))
    for part in range(PARTS):
        with single_flight(artifact, part) as adopted:
            if adopted is None:
                files = {}
                for name in ("data.parquet", "index.json"):
                    content = random.Random(f"{number} {part} {name}").randbytes(part_bytes)
                    files[name] = scratch / f"{os.getpid()}-{name}"
                    files[name].write_bytes(content)
                artifact.commit(part, files, inputs={"teacher": "c0ffee"}, rows=part, tokens=7)
    artifact.seal(recipe, PARTS)
    return artifact


def make_on_and_on(root, scratch):
    """Artifact after artifact, until death; those that are there already take a moment."""
    for number in count():
        make(root, scratch, number)


def child(function, *arguments):
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def check(root):
    """What holds at every instant: all that is named is whole, all else is known to `gc`."""
    store = ArtifactStore(root)
    broken = [fault for fault in verify(store) if "its receipt is missing" not in fault.text]
    assert broken == [], [str(fault) for fault in broken]
    known = set(leftovers(store))
    assert known <= set(find_garbage(store, grace_days=0).temporary)
    for path in root.rglob("*"):
        if path.is_dir() or path in known:
            continue
        where = path.relative_to(root).parts
        if where[0] == "objects":
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
            assert stat.S_IMODE(path.stat().st_mode) == 0o444
        elif where[-2] == "parts":
            load(Receipt, path)
        elif where[-2] != "leases":
            assert where[-1] == "manifest.json"
            load(Manifest, path)


def same_as_undisturbed(root, tmp_path, numbers):
    """A last run without trouble gives, byte for byte, what a store without any trouble holds."""
    for number in numbers:
        ours = make(root, tmp_path, number)
        theirs = make(tmp_path / "undisturbed", tmp_path, number)
        assert ours.manifest_path.read_bytes() == theirs.manifest_path.read_bytes()
        for part in range(PARTS):
            assert ours.receipt_path(part).read_bytes() == theirs.receipt_path(part).read_bytes()
        assert len(ours.paths()) == 2 * PARTS
    check(root)
    assert verify(ArtifactStore(root)) == []


def test_killed_at_random_moments(tmp_path):
    root = tmp_path / "store"
    root.mkdir()
    moments = random.Random(20)
    for _ in range(KILLS):
        process = child(make_on_and_on, root, tmp_path)
        time.sleep(moments.uniform(0.0, 0.12))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        check(root)
    begun = len(list((root / "corpus").iterdir()))
    same_as_undisturbed(root, tmp_path, range(begun))


@pytest.fixture
def quick_disk(monkeypatch):
    """Flushing is for power loss, which no test here brings about; it is a step all the same."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


STEPS = [
    (os, "link"),
    (os, "replace"),
    (os, "rename"),
    (os, "fsync"),
    (os, "fchmod"),
    (os, "unlink"),
    (os, "utime"),
    (os, "mkdir"),
    (shutil, "copyfile"),
    (pathlib.Path, "write_bytes"),
]
"""Every call by which a store changes the file system."""


def before_step(number, happens, patch=setattr):
    """Let ``happens`` come just before the ``number``-th step from now on."""
    steps = count()

    def wrapped(original):
        def step(*arguments, **options):
            if next(steps) == number:
                happens()
            return original(*arguments, **options)

        return step

    for owner, name in STEPS:
        patch(owner, name, wrapped(getattr(owner, name)))


def make_and_die(root, scratch, number):
    # A file that is half copied is what a kill in the middle of a copy leaves.
    def half(source, target):
        content = pathlib.Path(source).read_bytes()
        with open(target, "wb") as stream:
            stream.write(content[: len(content) // 2])
            stream.flush()
            stream.write(content[len(content) // 2 :])

    shutil.copyfile = half
    before_step(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
    make(root, scratch, 0, part_bytes=1000)


def test_killed_before_every_single_step(tmp_path, quick_disk):
    for number in count():
        root = tmp_path / f"store-{number}"
        root.mkdir()
        process = child(make_and_die, root, tmp_path, number)
        process.join()
        check(root)
        ours = make(root, tmp_path, 0, part_bytes=1000)
        theirs = make(tmp_path / "undisturbed", tmp_path, 0, part_bytes=1000)
        assert ours.manifest_path.read_bytes() == theirs.manifest_path.read_bytes()
        assert verify(ArtifactStore(root)) == []
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        shutil.rmtree(root)
    assert number > 50


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=["full", "quota", "read-only"]
)
def test_a_disk_that_takes_no_more_at_any_step(tmp_path, quick_disk, monkeypatch, code):
    """The failing call says what to do; nothing half-written shows; the next run goes on."""

    def fail():
        raise OSError(code, os.strerror(code), "a file")

    # A lease that could not be let go is this very process's, which goes on living here.
    monkeypatch.setattr(leases, "DEAD_AFTER_S", 0.02)
    monkeypatch.setattr(leases, "POLL_S", 0.005)
    own = scratch_steps(tmp_path)
    for number in count():
        root = tmp_path / f"store-{number}"
        root.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            before_step(number, fail, patch.setattr)
            # The job's own scratch file is none of the store's business.
            raised = trouble(OSError if number in own else AngelshareError, root, tmp_path)
        check(root)
        make(root, tmp_path, 0, part_bytes=1000)
        assert verify(ArtifactStore(root)) == []
        shutil.rmtree(root)
        if raised is None and number > 50:
            break
        assert raised is None or os.strerror(code) in str(raised)
        assert raised is None or number in own or str(root) in str(raised)


def trouble(kind, root, scratch):
    """The error of this kind that making an artifact raises, if it raises one."""
    try:
        make(root, scratch, 0, part_bytes=1000)
    except kind as error:
        return error
    return None


def scratch_steps(tmp_path):
    """The numbers of the steps that write the job's own files and not the store's."""
    steps, found = count(), []

    def wrapped(original, name):
        def step(*arguments, **options):
            number = next(steps)
            if name == "write_bytes" and TEMPORARY_PREFIX not in str(arguments[0]):
                found.append(number)
            return original(*arguments, **options)

        return step

    root = tmp_path / "counted"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, wrapped(getattr(owner, name), name))
        make(root, tmp_path, 0, part_bytes=1000)
    return found


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root mounts a file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk, tmp_path):
    root = small_disk / "store"
    filler = small_disk / "somebody-elses"
    filler.write_bytes(b"x" * 800_000)
    make(root, tmp_path, 0)
    with pytest.raises(AngelshareError, match="No space left on device") as raised:
        make(root, tmp_path, 1)
    assert "angelshare gc" in str(raised.value)
    check(root)
    assert leftovers(ArtifactStore(root)) == []
    filler.unlink()
    same_as_undisturbed(root, tmp_path, range(2))


def test_a_read_error_stops_the_reader_and_repair_keeps_the_file(tmp_path, monkeypatch):
    """A disk or server that fails for a moment must not cost a part: it is no proof of damage."""
    artifact = make(tmp_path / "store", tmp_path, 0)

    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(objects_module.hashlib, "file_digest", fail)
        with pytest.raises(AngelshareError, match="Input/output error"):
            artifact.paths()
        faults = verify(artifact.store)
    assert len(faults) == 2 * PARTS
    assert {fault.remove for fault in faults} == {()}
    assert verify(artifact.store) == []
