import pytest

from angelshare.errors import AngelshareError
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.consumers import Consumer, consumer_id, withdraw


@pytest.fixture
def store(tmp_path):
    """Two artifacts; run kd-1 of ours read both, everybody else only the first."""
    store = ArtifactStore(tmp_path / "store")
    for key, readers in (
        ("a" * 32, [("ours", "kd-1"), ("ours", "kd-2"), ("theirs", "kd-1"), ("theirs", "sft-1")]),
        ("b" * 32, [("ours", "kd-1")]),
    ):
        for team, run in readers:
            store.artifact("corpus", key).add_consumer(
                Consumer(id=consumer_id(team, run), run=run, team=team, tokens_read=5, utc="")
            )
    return store


def readers(store, letter):
    consumers = store.artifact("corpus", letter * 32).consumers()
    return sorted((consumer.team, consumer.run) for consumer in consumers)


def test_a_withdrawn_run_pays_no_more_and_all_others_do(store):
    assert withdraw(store.root, "kd-1", "ours") == 2
    assert readers(store, "a") == [("ours", "kd-2"), ("theirs", "kd-1"), ("theirs", "sft-1")]
    assert readers(store, "b") == []


@pytest.mark.parametrize(
    ("run", "team", "hint"),
    [
        ("sft-1", "ours", "give --team"),
        ("kd-9", "ours", "that are: kd-1, kd-2"),
        ("kd-9", "nobody", "No run of team nobody"),
    ],
)
def test_withdrawing_what_is_no_consumer_says_who_is(store, run, team, hint):
    with pytest.raises(AngelshareError, match=hint):
        withdraw(store.root, run, team)
    assert len(readers(store, "a")) == 4


def test_a_damaged_record_takes_nothing_away(store):
    (store.root / "corpus" / ("a" * 32) / "consumers" / "0.json").write_text("{}")
    with pytest.raises(AngelshareError, match="no consumer record"):
        withdraw(store.root, "kd-1", "ours")
    assert readers(store, "b") == [("ours", "kd-1")]
