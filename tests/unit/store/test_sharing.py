"""A store that a group shares: the second user reuses, extends and cannot alter.

With real accounts, made by the test and removed again; so it runs as root only.
"""

import multiprocessing
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from angelshare.errors import AngelshareError
from angelshare.files import publish_bytes
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.consumers import Consumer
from angelshare.store.leases import single_flight
from angelshare.store.verify import verify

RECIPE = make_recipe("corpus", inputs={}, decoding={"seed": 1})
KEY = recipe_key("corpus", RECIPE)
FORK = multiprocessing.get_context("fork")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def shared():
    """Two accounts of one group, a folder that both reach, and a store in it."""
    tools = ("groupadd", "groupdel", "useradd", "userdel")
    if os.geteuid() != 0 or not all(map(shutil.which, tools)):
        pytest.skip("only root makes accounts")
    tag = secrets.token_hex(3)
    group, users = f"as-{tag}", [f"as-{tag}-1", f"as-{tag}-2"]
    base = Path(tempfile.mkdtemp(prefix="angelshare-sharing-"))
    base.chmod(0o777)
    try:
        subprocess.run(["groupadd", group], check=True)
        for user in users:
            # Their own primary group is another one: only setgid gives files to the shared group.
            command = ["useradd", "--no-create-home", "--user-group", "--groups", group, user]
            subprocess.run(command, check=True)
        root = base / "store"
        root.mkdir()
        shutil.chown(root, users[0], group)
        root.chmod(0o2775)
        yield root, users
    finally:
        for user in users:
            subprocess.run(["userdel", user], check=False)
        subprocess.run(["groupdel", group], check=False)
        shutil.rmtree(base)


def as_user(user, function, *arguments, umask=0o022):
    """Run a function in a process of this account; what it raises fails the test."""

    def body():
        account = pwd.getpwnam(user)
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        os.umask(umask)
        function(*arguments)

    process = FORK.Process(target=body)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def make(root, parts):
    """Make some parts of the artifact of two parts, as a job of Snakemake does."""
    artifact = ArtifactStore(root).artifact("corpus", KEY)
    # Snakemake makes the folders of declared outputs itself, by the user's umask.
    (artifact.folder / "parts").mkdir(parents=True, exist_ok=True)
    for part in parts:
        with single_flight(artifact, part) as adopted:
            if adopted is None:
                source = root.parent / f"source-{os.getpid()}"
                source.write_text(f"answers {part}")
                artifact.commit(part, {"data.parquet": source}, inputs={})
    return artifact


def read_and_record(root, team):
    artifact = ArtifactStore(root).artifact("corpus", KEY)
    assert [path.read_text() for path in artifact.paths()] == ["answers 0", "answers 1"]
    artifact.add_consumer(Consumer(id=team, run="kd-1", team=team, tokens_read=5, utc=""))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_second_user_reuses_extends_and_is_recorded(shared, umask):
    root, (first, second) = shared
    as_user(first, make, root, [0], umask=umask)
    artifact = ArtifactStore(root).artifact("corpus", KEY)
    made = artifact.receipt_path(0).stat()

    def extend():
        make(root, [0, 1]).seal(RECIPE, 2)
        read_and_record(root, "second")

    time.sleep(0.02)
    as_user(second, extend, umask=umask)
    adopted = artifact.receipt_path(0).stat()
    assert (adopted.st_ino, adopted.st_uid) == (made.st_ino, made.st_uid)
    assert adopted.st_mtime > made.st_mtime
    as_user(first, read_and_record, root, "first", umask=umask)
    assert sorted(c.team for c in artifact.consumers()) == ["first", "second"]
    assert verify(ArtifactStore(root)) == []

    for path in root.rglob("*"):
        if path.is_dir():
            assert mode(path) & 0o2070 == 0o2070, path
        else:
            assert mode(path) == (0o444 if path.suffix == ".parquet" else 0o664), path
        assert path.stat().st_gid == root.stat().st_gid


def test_the_second_user_cannot_alter_an_object(shared):
    root, (first, second) = shared
    as_user(first, make, root, [0, 1])

    def try_it():
        (victim,) = (root / "objects").glob("*/*.parquet")
        for attempt in (
            lambda: victim.write_text("answers X"),
            lambda: victim.open("ab"),
            lambda: victim.chmod(0o666),
            lambda: os.truncate(victim, 0),
        ):
            with pytest.raises(PermissionError):
                attempt()

    as_user(first, lambda: ArtifactStore(root).artifact("corpus", KEY).seal(RECIPE, 2))
    shutil.rmtree(root / "objects" / sorted(os.listdir(root / "objects"))[0])
    as_user(second, try_it)


def test_what_replaces_an_object_is_found_by_every_reader(shared):
    root, (first, second) = shared
    as_user(first, lambda: make(root, [0, 1]).seal(RECIPE, 2))

    def replace():
        victim = min((root / "objects").glob("*/*.parquet"))
        victim.unlink()
        victim.write_text("answers X")

    as_user(second, replace)
    with pytest.raises(AngelshareError, match="has digest"):
        ArtifactStore(root).artifact("corpus", KEY).paths()


def test_a_receipt_that_may_not_be_touched_is_adopted_all_the_same(shared):
    root, (first, second) = shared
    as_user(first, make, root, [0])
    ArtifactStore(root).artifact("corpus", KEY).receipt_path(0).chmod(0o644)
    as_user(second, make, root, [0])


def test_a_store_without_room_for_the_second_user_says_what_to_do(shared):
    root, (first, second) = shared
    root.chmod(0o755)
    as_user(first, make, root, [0])

    def refused():
        with pytest.raises(AngelshareError, match="chmod") as raised:
            ArtifactStore(root).artifact("corpus", "0" * 32).commit(0, {}, inputs={})
        assert str(root) in str(raised.value)

    as_user(second, refused)


def test_a_private_folder_stays_private(tmp_path):
    before = os.umask(0o027)
    try:
        publish_bytes(tmp_path / "new" / "deeper" / "file", b"")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o750
    assert mode(tmp_path / "new" / "deeper") == 0o750
    assert mode(tmp_path / "new" / "deeper" / "file") == 0o644


def test_a_shared_folder_is_followed(tmp_path):
    tmp_path.chmod(0o2775)
    before = os.umask(0o077)
    try:
        publish_bytes(tmp_path / "new" / "deeper" / "file", b"")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new" / "deeper") == 0o2770
    assert mode(tmp_path / "new" / "deeper" / "file") == 0o664


def test_a_relative_path_in_a_folder_of_the_group_that_only_its_owner_writes_to(
    tmp_path, monkeypatch
):
    tmp_path.chmod(0o2755)
    monkeypatch.chdir(tmp_path)
    publish_bytes(Path("file"), b"")
    publish_bytes(Path("new/file"), b"")
    assert mode(tmp_path / "new") == 0o2755
    assert mode(tmp_path / "file") == mode(tmp_path / "new" / "file") == 0o644
