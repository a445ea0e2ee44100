from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_teacher import PADDED_VOCABULARY, nothing

from angelshare.data.sequences import Encoded, EncodedRow, encode_table
from angelshare.data.tables import in_splits
from angelshare.data.tokenizer import save_tokenizer
from angelshare.errors import AngelshareError
from angelshare.teacher.cache import LogitCache
from angelshare.teacher.distribution import largest
from angelshare.teacher.logits import capture_logits
from angelshare.teacher.models import load_causal_lm, load_tokenizer, save_model
from angelshare.teacher.settings import CaptureSettings, TopkTailSettings
from angelshare.teacher.transformers_logits import capture_batch
from angelshare.teacher.windows import windows_of

TOP5 = TopkTailSettings(top_k=5, top_p=1.0)
GRID = (1.0, 0.5, 4.0)
SETTINGS = CaptureSettings(codec=TOP5, temperatures=GRID, max_length=96, batch_tokens=300)
HALF = 2.0**-11


def capture(model_dir, table, out, **changes):
    settings = CaptureSettings.model_validate({**SETTINGS.model_dump(), **changes})
    return capture_logits(model_dir, table, settings, out, progress=nothing, count=nothing)


def dense_logprobs(model_dir, encoded) -> np.ndarray:
    """float64 log-probabilities [n, V] at the targets, from one unbatched full forward pass."""
    model = load_causal_lm(model_dir, device="cpu")
    vocab_size = len(load_tokenizer(model_dir))
    with torch.inference_mode():
        logits_TV = model(input_ids=torch.tensor([encoded.input_ids])).logits[0, :, :vocab_size]
    positions = [t - 1 for t, target in enumerate(encoded.targets) if target]
    return logits_TV[positions].double().log_softmax(-1).numpy()


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_every_column_against_dense_logits(model_dir, labelled, tmp_path, top_p) -> None:
    codec = {"name": "topk_tail", "top_k": 5, "top_p": top_p}
    capture(model_dir, labelled, tmp_path / "cache", codec=codec)
    cache = LogitCache([tmp_path / "cache"])
    encoded_rows = encode_table(labelled, load_tokenizer(model_dir), 96)
    assert len(cache) == len(encoded_rows) == 12
    cut = 0
    for index, (row_id, encoded) in enumerate(encoded_rows):
        row = cache.row(index)
        assert (row.id, row.tokens_sha256) == (row_id, encoded.sha256)
        dense = dense_logprobs(model_dir, encoded)
        order = np.argsort(-dense, axis=-1, kind="stable")[:, :5]
        top = np.take_along_axis(dense, order, axis=-1)
        wanted = 5 if top_p == 1 else (np.exp(top).cumsum(1) < top_p).sum(1) + 1
        kept = np.broadcast_to(np.minimum(wanted, 5), len(dense))
        cut += (kept < 5).sum()
        assert row.kept.tolist() == kept.tolist()
        inside = np.arange(5) < kept[:, None]
        assert row.token_ids.tolist() == order[inside].tolist()
        bound = 2 * HALF * np.abs(dense).max() + 2e-5
        np.testing.assert_allclose(row.logits, top[inside], atol=bound)
        for column, temperature in enumerate(cache.info.temperatures):
            mass = np.exp(dense / temperature)
            partition = np.log(mass.sum(axis=-1))
            np.testing.assert_allclose(row.log_partition[:, column], partition, atol=bound)
            for position, ids in enumerate(order):
                mass[position, ids[: kept[position]]] = 0
            np.testing.assert_allclose(
                row.log_tail[:, column], np.log(mass.sum(axis=-1)), atol=2 * bound
            )
        gold = [i for i, target in zip(encoded.input_ids, encoded.targets, strict=True) if target]
        np.testing.assert_allclose(
            row.gold_logprob, dense[np.arange(len(gold)), gold], rtol=HALF, atol=2e-5
        )
        entropy = -(np.exp(dense) * dense).sum(axis=-1)
        np.testing.assert_allclose(row.entropy, entropy, rtol=HALF, atol=2e-5)
    assert cut > 0 if top_p < 1 else cut == 0
    assert cache.info.temperatures == (0.5, 1.0, 4.0)
    assert cache.info.vocab_size < PADDED_VOCABULARY


def test_which_logits_predict_which_target_by_hand(model_dir) -> None:
    """Position t - 1 predicts the token at t; neither prompt nor padding is kept."""
    a = Encoded(input_ids=[5, 6, 7, 8], targets=[False, False, True, True], sha256=b"a")
    b = Encoded(input_ids=[9, 3], targets=[False, True], sha256=b"b")
    seen = []

    class Spy(torch.nn.Module):
        device = torch.device("cpu")

        def base_model(self, input_ids, use_cache):
            seen.append(input_ids.tolist())
            places = torch.arange(input_ids.numel()).reshape(input_ids.shape)
            return SimpleNamespace(last_hidden_state=places[:, :, None].float())

    class EyeHead:
        vocab_size = 12

        def __call__(self, hidden_NH):
            return 9.0 * torch.eye(12)[hidden_NH[:, 0].long()]

    rows = [EncodedRow("a", a), EncodedRow("b", b)]
    settings = CaptureSettings(codec=TopkTailSettings(top_k=1), temperatures=(1.0,))
    arrays = capture_batch(Spy(), EyeHead(), settings, rows).arrays()
    assert seen == [[[5, 6, 7, 8], [9, 3, 0, 0]]]
    # The hidden state of row r at t is 4 r + t: targets at t = 2, 3 of row 0 and t = 1 of row 1.
    assert arrays["ids"][:, 0].tolist() == [1, 2, 4]
    gold_is_not_best = -9 - np.log(1 + 11 * np.exp(-9.0))
    np.testing.assert_allclose(arrays["gold_logprob"], [gold_is_not_best] * 3, rtol=1e-5)


def draws_of(model_dir, table, path, seed: int, samples: int = 6, **changes):
    codec = {"name": "rskd", "samples": samples, "seed": seed}
    capture(model_dir, table, path, codec=codec, **changes)
    cache = LogitCache([path])
    return [cache.row(index) for index in range(len(cache))]


def test_draws_are_unbiased(model_dir, labelled, tmp_path) -> None:
    """The mean over seeds lies within its own standard error, token by token."""
    table = labelled.slice(0, 2)
    vocab_size = len(load_tokenizer(model_dir))
    dense = [
        np.exp(dense_logprobs(model_dir, encoded))
        for _, encoded in encode_table(table, load_tokenizer(model_dir), 96)
    ]
    expected = np.concatenate(dense)
    estimates = []
    for seed in range(60):
        rows = draws_of(model_dir, table, tmp_path / "cache", seed)
        weights = np.zeros((sum(len(row.kept) for row in rows), vocab_size))
        kept = np.concatenate([row.kept for row in rows])
        ids = np.concatenate([row.token_ids for row in rows])
        weights[np.repeat(np.arange(len(kept)), kept), ids] = np.exp(
            np.concatenate([row.logits for row in rows])
        )
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        # Systematic draws: every count is N p rounded down or up.
        assert np.abs(weights * 6 - expected * 6).max() < 1 + 1e-3
        estimates.append(weights)
    mean, scatter = np.mean(estimates, 0), np.std(estimates, 0, ddof=1)
    share = expected * 6 % 1
    uncertain = (share > 0.1) & (share < 0.9)
    z = (mean - expected)[uncertain] / (scatter[uncertain] / 60**0.5)
    # Over many tokens standard scores have mean 0 and mean square 1; a bias would drive both up.
    assert uncertain.sum() > 200
    assert abs(z.mean()) < 0.25
    assert 0.7 < (z**2).mean() < 1.4
    assert np.abs(z).max() < 5


def test_draws_depend_on_seed_and_row_alone(model_dir, labelled, tmp_path, monkeypatch) -> None:
    """Not on batches, on the order of rows, or on which part a row stands in."""
    whole = {row.id: row for row in draws_of(model_dir, labelled, tmp_path / "a", 1)}
    monkeypatch.setattr("angelshare.teacher.windows.TOKENS_PER_WINDOW", 100)
    parts = [
        *draws_of(model_dir, labelled.slice(7), tmp_path / "b", 1, batch_tokens=1),
        *draws_of(model_dir, labelled.slice(0, 7), tmp_path / "c", 1, batch_tokens=120),
    ]
    for row in parts:
        assert row.token_ids.tolist() == whole[row.id].token_ids.tolist()
        assert row.logits.tolist() == whole[row.id].logits.tolist()
    other = draws_of(model_dir, labelled, tmp_path / "d", 2)
    assert any(row.token_ids.tolist() != whole[row.id].token_ids.tolist() for row in other)


def test_draws_come_with_the_same_sums(model_dir, labelled, tmp_path) -> None:
    draws_of(model_dir, labelled, tmp_path / "draws", 0)
    capture(model_dir, labelled, tmp_path / "top")
    drawn, top = LogitCache([tmp_path / "draws"]), LogitCache([tmp_path / "top"])
    for index in range(len(top)):
        for name in ("gold_logprob", "entropy", "log_partition"):
            one, other = getattr(drawn.row(index), name), getattr(top.row(index), name)
            np.testing.assert_allclose(one, other, atol=0.01)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.integers(1, 4000), k=st.integers(1, 40))
def test_the_largest_are_found_block_by_block(seed: int, width: int, k: int) -> None:
    k = min(k, width)
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, width)))
    found, ids = largest(values, k)
    expected = values.topk(k, dim=1)
    assert found.tolist() == expected.values.tolist()
    assert ids.tolist() == expected.indices.tolist()


def test_padding_rows_of_the_vocabulary_take_no_mass(model_dir, labelled, tmp_path) -> None:
    """Rows beyond the tokenizer with huge weights change nothing."""
    capture(model_dir, labelled, tmp_path / "a")
    model, tokenizer = load_causal_lm(model_dir, device="cpu"), load_tokenizer(model_dir)
    with torch.no_grad():
        model.get_output_embeddings().weight[len(tokenizer) :] = 1e3
    save_model(model, tmp_path / "model")
    save_tokenizer(tokenizer, tmp_path / "model")
    capture(tmp_path / "model", labelled, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_batch_size_does_not_show(model_dir, labelled, tmp_path, monkeypatch) -> None:
    capture(model_dir, labelled, tmp_path / "a")
    capture(model_dir, labelled, tmp_path / "again")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "again").read_bytes()
    monkeypatch.setattr("angelshare.teacher.windows.TOKENS_PER_WINDOW", 150)
    monkeypatch.setattr("angelshare.teacher.transformers_logits.LOGITS_PER_CHUNK", 7 * 260)
    monkeypatch.setattr("angelshare.teacher.transformers_logits.LOGITS_IN_CACHE", 3 * 260)
    capture(model_dir, labelled, tmp_path / "b", batch_tokens=1)
    one, other = LogitCache([tmp_path / "a"]), LogitCache([tmp_path / "b"])
    for index in range(len(one)):
        np.testing.assert_array_equal(one.row(index).token_ids, other.row(index).token_ids)
        np.testing.assert_allclose(one.row(index).logits, other.row(index).logits, atol=0.01)


def test_batches_hold_alike_lengths_within_their_tokens(monkeypatch) -> None:
    monkeypatch.setattr("angelshare.teacher.windows.TOKENS_PER_WINDOW", 16)
    assert windows_of([5, 2, 9, 3], batch_tokens=10) == [[[1, 0], [2]], [[3]]]
    assert windows_of([5, 2, 9, 3], batch_tokens=1) == [[[1], [0], [2]], [[3]]]


def test_neither_side_of_the_writing_thread_outlives_the_other(
    model_dir, labelled, tmp_path, monkeypatch
) -> None:
    """A failed pass publishes nothing; a failed write ends the pass, with its own error."""
    monkeypatch.setattr("angelshare.teacher.windows.TOKENS_PER_WINDOW", 1)
    passes = []

    def failing(*_: object, **__: object) -> None:
        passes.append(1)
        if len(passes) == 5:
            raise RuntimeError("the device went away")

    with pytest.raises(RuntimeError, match="the device went away"):
        capture_logits(
            model_dir, labelled, SETTINGS, tmp_path / "x", progress=failing, count=nothing
        )
    assert not list(tmp_path.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("angelshare.teacher.cache._group_table", full)
    monkeypatch.setattr("angelshare.teacher.cache.ALPHABET_TARGETS", 1)
    with pytest.raises(OSError, match="no space left"):
        capture(model_dir, labelled, tmp_path / "x")
    assert not list(tmp_path.iterdir())
    assert not [t for t in threading.enumerate() if t.name.startswith("write-cache")]


def test_it_counts_targets_and_tells_its_progress(model_dir, dataset, tmp_path) -> None:
    counted, told = [], []
    stats = capture_logits(
        model_dir,
        dataset,
        SETTINGS,
        tmp_path / "cache",
        progress=lambda *step: told.append(step),
        count=lambda **tokens: counted.append(tokens),
    )
    assert (stats.sequences, stats.skipped) == (20, 8)
    assert sum(tokens["cached"] for tokens in counted) == stats.targets
    assert told[-1] == (20, 20, "sequences")
    rows = encode_table(dataset, load_tokenizer(model_dir), 96)
    assert stats.tokens == sum(len(row.encoded.input_ids) for row in rows)
    assert 0 < stats.padding < stats.tokens


def test_impossible_captures_say_why(model_dir, dataset, labelled, tmp_path) -> None:
    codec = {"name": "topk_tail", "top_k": 300}
    with pytest.raises(AngelshareError, match=r"codec\.top_k 300 exceeds the vocabulary of"):
        capture(model_dir, labelled, tmp_path / "cache", codec=codec)
    unlabelled = in_splits(dataset, ["unlabelled"])
    with pytest.raises(AngelshareError, match="none of 8 rows has an answer"):
        capture(model_dir, unlabelled, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_sequences_longer_than_the_model_are_refused(model_dir, labelled, tmp_path) -> None:
    copy_with_config(model_dir, tmp_path, max_position_embeddings=20)
    with pytest.raises(AngelshareError, match=r"the model 20 positions; set capture.max_length"):
        capture(tmp_path, labelled, tmp_path / "cache")


def test_logits_changed_after_the_head_are_refused(
    model_dir, labelled, tmp_path, monkeypatch
) -> None:
    model = load_causal_lm(model_dir, device="cpu")
    original = model.forward

    def soft_capped(*arguments, **options):
        output = original(*arguments, **options)
        output.logits = 2.0 * torch.tanh(output.logits / 2.0)
        return output

    monkeypatch.setattr(model, "forward", soft_capped)
    monkeypatch.setattr("angelshare.teacher.logits.load_causal_lm", lambda *_, **__: model)
    with pytest.raises(AngelshareError, match="changes its logits after the head"):
        capture(model_dir, labelled, tmp_path / "cache")


def test_a_model_smaller_than_its_tokenizer_is_refused(model_dir, labelled, tmp_path) -> None:
    tokenizer = load_tokenizer(model_dir)
    tokenizer.add_tokens([f"extra{i}" for i in range(PADDED_VOCABULARY)])
    save_model(load_causal_lm(model_dir, device="cpu"), tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    with pytest.raises(AngelshareError, match=f"the model only {PADDED_VOCABULARY}"):
        capture(tmp_path, labelled, tmp_path / "cache")


def copy_with_config(model_dir, target, **changes) -> None:
    for path in model_dir.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("grid", [(2.0,), (1.0, 0.0), (-1.0, 1.0)])
def test_the_grid_is_positive_and_contains_one(grid) -> None:
    with pytest.raises(ValidationError, match=r"must be positive and contain 1\.0"):
        CaptureSettings(temperatures=grid)
