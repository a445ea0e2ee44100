from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_teacher import PADDED_VOCABULARY, nothing

from angelshare.data.sequences import encode_table
from angelshare.data.tables import in_splits
from angelshare.data.tokenizer import save_tokenizer
from angelshare.errors import AngelshareError
from angelshare.teacher.cache import LogitCache
from angelshare.teacher.logits import _windows, capture_logits
from angelshare.teacher.models import load_causal_lm, load_tokenizer, save_model
from angelshare.teacher.settings import CaptureSettings

SETTINGS = CaptureSettings(top_k=5, temperatures=(1.0, 0.5, 4.0), max_length=96, batch_tokens=300)


def capture(model_dir, table, out, **changes):
    settings = SETTINGS.model_copy(update=changes)
    return capture_logits(model_dir, table, settings, out, progress=nothing, count=nothing)


def dense_logprobs(model_dir, encoded) -> np.ndarray:
    """float64 log-probabilities [n, V] at the targets, from one unbatched full forward pass."""
    model = load_causal_lm(model_dir, device="cpu")
    vocab_size = len(load_tokenizer(model_dir))
    with torch.inference_mode():
        logits_TV = model(input_ids=torch.tensor([encoded.input_ids])).logits[0, :, :vocab_size]
    positions = [t - 1 for t, target in enumerate(encoded.targets) if target]
    return logits_TV[positions].double().log_softmax(-1).numpy()


def test_every_column_against_dense_logits(model_dir, labelled, tmp_path) -> None:
    capture(model_dir, labelled, tmp_path / "cache")
    cache = LogitCache([tmp_path / "cache"])
    encoded_rows = encode_table(labelled, load_tokenizer(model_dir), 96)
    assert len(cache) == len(encoded_rows) == 12
    for index, (row_id, encoded) in enumerate(encoded_rows):
        row = cache.row(index)
        assert (row.id, row.tokens_sha256) == (row_id, encoded.sha256)
        dense = dense_logprobs(model_dir, encoded)
        top = -np.sort(-dense, axis=-1)[:, :5]
        np.testing.assert_allclose(row.logits, top, atol=2e-5)
        np.testing.assert_allclose(
            np.take_along_axis(dense, row.token_ids, axis=-1), row.logits, atol=2e-5
        )
        for column, temperature in enumerate(cache.info.temperatures):
            partition = np.log(np.exp(dense / temperature).sum(axis=-1))
            np.testing.assert_allclose(row.log_partition[:, column], partition, atol=2e-5)
        gold = [i for i, target in zip(encoded.input_ids, encoded.targets, strict=True) if target]
        np.testing.assert_allclose(row.gold_logprob, dense[np.arange(len(gold)), gold], atol=2e-5)
        np.testing.assert_allclose(row.entropy, -(np.exp(dense) * dense).sum(axis=-1), atol=2e-5)
    assert cache.info.temperatures == (0.5, 1.0, 4.0)
    assert cache.info.vocab_size < PADDED_VOCABULARY


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
    monkeypatch.setattr("angelshare.teacher.logits.ROWS_PER_WINDOW", 5)
    monkeypatch.setattr("angelshare.teacher.logits.LOGITS_PER_CHUNK", 1)
    capture(model_dir, labelled, tmp_path / "b", batch_tokens=1)
    one, other = LogitCache([tmp_path / "a"]), LogitCache([tmp_path / "b"])
    for index in range(len(one)):
        np.testing.assert_array_equal(one.row(index).token_ids, other.row(index).token_ids)
        np.testing.assert_allclose(one.row(index).logits, other.row(index).logits, atol=1e-5)


def test_batches_hold_alike_lengths_within_their_tokens(monkeypatch) -> None:
    monkeypatch.setattr("angelshare.teacher.logits.ROWS_PER_WINDOW", 3)
    assert _windows([5, 2, 9, 3], batch_tokens=10) == [[[1, 0], [2]], [[3]]]
    assert _windows([5, 2, 9, 3], batch_tokens=1) == [[[1], [0], [2]], [[3]]]


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
    with pytest.raises(AngelshareError, match="top_k 300 exceeds the vocabulary of"):
        capture(model_dir, labelled, tmp_path / "cache", top_k=300)
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
