"""Caches of hidden states: which states they hold, how exactly, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from tiny_teacher import nothing
from torch import nn

from angelshare.data.sequences import encode_table
from angelshare.errors import AngelshareError
from angelshare.store.journal import Journal
from angelshare.teacher import state_capture
from angelshare.teacher.blocks import block_outputs, chosen_layers
from angelshare.teacher.models import load_causal_lm, load_tokenizer
from angelshare.teacher.settings import CaptureSettings, StatesCapture, StatesSettings
from angelshare.teacher.state_capture import capture_states, states_batch, stored
from angelshare.teacher.states import StateCache

PASS = CaptureSettings(max_length=96, batch_tokens=100)


def settings(**changes) -> StatesCapture:
    return StatesCapture.of(StatesSettings.model_validate(changes), PASS)


def capture(model_dir, table, out, share=1.0, journal=None, count=nothing, **changes):
    return capture_states(
        model_dir,
        table,
        settings(**changes),
        out,
        progress=nothing,
        count=count,
        share=share,
        journal=journal,
    )


def rows_of(model_dir, table):
    return encode_table(table, load_tokenizer(model_dir), 96)


def hidden(model, row, layer: int) -> np.ndarray:
    """The states [T, W] between two blocks, of one row alone, by transformers' own list of them.

    Its last entry has gone through the last norm, so that of a model with one block more is taken.
    """
    with torch.no_grad():
        ids = torch.tensor([row.encoded.input_ids])
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert layer < len(states) - 1
    return states[layer][0].numpy()


class AddsOne(nn.Module):
    """A block whose output is its input and 1."""

    attention_type = "full_attention"

    def forward(self, hidden_states, *_, **__):
        return hidden_states + 1


def counting(model):
    """The model with blocks of which the i-th puts out the constant i."""
    model.get_input_embeddings().weight.data.zero_()
    blocks = model.model.layers
    for place in range(len(blocks)):
        blocks[place] = AddsOne()
    return model


def test_layer_i_is_what_the_ith_block_puts_out(model_dir, labelled) -> None:
    """Before the last norm, which would make any constant 1; layer 0 is what goes in."""
    model = counting(load_causal_lm(model_dir))
    rows = rows_of(model_dir, labelled)[:2]
    with torch.inference_mode():
        found = states_batch(model, settings(layers=(0, 1, 2)), (0, 1, 2), rows).arrays()
        ids = torch.tensor([rows[0].encoded.input_ids])
        with block_outputs(model, (0, 1, 2)) as outputs:
            model(input_ids=ids)
    for layer in (0, 1, 2):
        assert set(found["values"][:, layer].flat) == {layer}
        assert set(outputs[layer].flatten().tolist()) == {layer}


@pytest.mark.parametrize(
    ("asked", "depth", "expected"),
    [
        (1, 64, (64,)),
        (2, 4, (2, 4)),
        (3, 32, (11, 21, 32)),
        (4, 4, (1, 2, 3, 4)),
        ((0, 7), 8, (0, 7)),
    ],
)
def test_so_many_layers_are_at_equal_steps_and_end_with_the_last(asked, depth, expected) -> None:
    assert chosen_layers(asked, depth) == expected


@pytest.mark.parametrize(("asked", "said"), [(5, "5 layers"), ((1, 9), "layer 9")])
def test_layers_that_are_not_there_are_refused(asked, said) -> None:
    with pytest.raises(AngelshareError, match=f"asks for {said}, the model has 4 blocks"):
        chosen_layers(asked, 4)


def test_states_are_those_at_the_positions_that_predict_targets(
    model_dir, labelled, tmp_path
) -> None:
    capture(model_dir, labelled, tmp_path / "s.parquet", layers=(0, 1))
    cache, model = StateCache([tmp_path / "s.parquet"]), load_causal_lm(model_dir)
    rows = rows_of(model_dir, labelled)
    squares = []
    for number, row in enumerate(rows):
        cached = cache.row(number)
        targets = np.flatnonzero(row.encoded.targets)
        assert (cached.id, cached.tokens_sha256) == (row.id, row.encoded.sha256)
        assert cached.chosen.tolist() == list(range(len(targets)))
        for place, layer in enumerate((0, 1)):
            expected = hidden(model, row, layer)[targets - 1]
            np.testing.assert_allclose(cached.vectors()[place], expected, rtol=2e-3, atol=1e-3)
        squares.append(np.square(cached.vectors()).sum((1, 2)))
    elements = cache.info.vectors * cache.info.width
    assert cache.info.mean_square == pytest.approx((sum(squares) / elements).tolist(), rel=1e-6)


@pytest.mark.parametrize("positions", ["mean_of_targets", "mean_of_tokens"])
def test_means_are_one_vector_a_sequence(model_dir, labelled, tmp_path, positions) -> None:
    capture(model_dir, labelled, tmp_path / "s.parquet", layers=(1,), positions=positions)
    cache, model = StateCache([tmp_path / "s.parquet"]), load_causal_lm(model_dir)
    for number, row in enumerate(rows_of(model_dir, labelled)):
        states = hidden(model, row, 1)
        if positions == "mean_of_targets":
            states = states[np.flatnonzero(row.encoded.targets) - 1]
        found = cache.row(number).vectors()
        assert found.shape == (1, 1, 64)
        np.testing.assert_allclose(found[0, 0], states.mean(0), rtol=2e-3, atol=1e-3)


def test_int8_is_within_half_a_step_of_its_scale() -> None:
    vectors = torch.randn(50, 2, 64, generator=torch.Generator().manual_seed(1)) * 100
    vectors[3], vectors[4, 0, 5] = 0, 1e6
    values, scales = stored(vectors, "int8")
    found = values.float() * scales[..., None]
    bound = vectors.abs().amax(-1, keepdim=True) / 254
    assert ((found - vectors).abs() <= bound * (1 + 1e-5)).all()
    assert (found[3] == 0).all()
    assert values.dtype == torch.int8


def test_int8_in_a_file_is_near_float16_and_half_its_size(model_dir, labelled, tmp_path) -> None:
    sizes = {}
    for name in ("float16", "int8"):
        sizes[name] = capture(model_dir, labelled, tmp_path / name, layers=2, format=name).bytes
    one, other = StateCache([tmp_path / "float16"]), StateCache([tmp_path / "int8"])
    for number in range(len(one)):
        a, b = one.row(number).vectors(), other.row(number).vectors()
        assert (np.abs(a - b) <= np.abs(a).max(-1, keepdims=True) * (1 / 254 + 1e-3)).all()
    assert sizes["int8"] == sizes["float16"] * (64 + 4) / (2 * 64)
    stored = [(tmp_path / name).stat().st_size for name in ("int8", "float16")]
    assert stored[0] < 0.65 * stored[1]


def test_a_fraction_is_drawn_by_row_and_seed_alone(model_dir, labelled, tmp_path) -> None:
    part = {"layers": 1, "fraction": 0.3}
    capture(model_dir, labelled, tmp_path / "whole")
    capture(model_dir, labelled, tmp_path / "all", **part)
    capture(model_dir, labelled.slice(5, 3), tmp_path / "few", **part)
    capture(model_dir, labelled, tmp_path / "other", seed=1, **part)
    whole, every, few, other = (
        StateCache([tmp_path / name]) for name in ("whole", "all", "few", "other")
    )
    for number in range(3):
        cached = every.row(5 + number)
        assert cached.chosen.tolist() == few.row(number).chosen.tolist()
        assert len(cached.chosen) == max(1, round(0.3 * cached.targets))
        picked = whole.row(5 + number).values[:, cached.chosen]
        np.testing.assert_allclose(cached.values, picked, rtol=2e-3, atol=1e-3)
    assert any(every.row(i).chosen.tolist() != other.row(i).chosen.tolist() for i in range(12))


def test_any_reader_finds_vectors_and_their_meaning(model_dir, labelled, tmp_path) -> None:
    path = tmp_path / "s.parquet"
    capture(model_dir, labelled, path, layers=2, format="int8")
    said = json.loads(pq.read_schema(path).metadata[b"angelshare"])
    assert said["layers"] == [1, 2]
    assert said["width"] == 64
    assert "scale_NNN" in said["meaning"]
    row = pl.read_parquet(path).row(3, named=True)
    vectors = np.array(row["layer_002"], float).reshape(-1, said["width"]) - 128
    vectors = vectors * np.array(row["scale_002"])[:, None]
    np.testing.assert_allclose(vectors, StateCache([path]).row(3).vectors()[1], rtol=1e-6)


def test_parts_read_back_in_order_whatever_stays_in_memory(
    model_dir, labelled, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("angelshare.teacher.states.GROUP_BYTES", 3000)
    capture(model_dir, labelled, tmp_path / "whole")
    capture(model_dir, labelled.slice(0, 5), tmp_path / "a")
    capture(model_dir, labelled.slice(5), tmp_path / "b")
    whole = StateCache([tmp_path / "whole"])
    parts = StateCache([tmp_path / "a", tmp_path / "b"], resident_bytes=0)
    assert list(parts.keys()) == list(whole.keys())
    assert parts.info.mean_square == pytest.approx(whole.info.mean_square, rel=1e-6)
    for number in (11, 0, 5, 4):
        found, expected = parts.row(number).vectors(), whole.row(number).vectors()
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)
    capture(model_dir, labelled, tmp_path / "other", format="int8")
    with pytest.raises(AngelshareError, match="were not made alike"):
        StateCache([tmp_path / "a", tmp_path / "other"])


@pytest.mark.parametrize("positions", ["targets", "mean_of_tokens"])
def test_a_killed_capture_goes_on_and_ends_with_the_same_bytes(
    model_dir, dataset, tmp_path, monkeypatch, positions
) -> None:
    monkeypatch.setattr("angelshare.teacher.state_capture.TOKENS_PER_WINDOW", 130)
    choice = {"layers": 2, "format": "int8", "positions": positions}
    capture(model_dir, dataset, tmp_path / "straight", **choice)
    seen: list[int] = []

    def interrupt(cached: int) -> None:
        seen.append(cached)
        if len(seen) == 8:
            raise KeyboardInterrupt

    kept = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        capture(
            model_dir,
            dataset,
            tmp_path / "killed",
            journal=Journal(kept, "x"),
            count=interrupt,
            **choice,
        )
    assert not (tmp_path / "killed").exists()
    assert list(kept.glob("*.piece"))
    made: list[int] = []

    def count(cached: int) -> None:
        made.append(cached)

    capture(
        model_dir, dataset, tmp_path / "killed", journal=Journal(kept, "x"), count=count, **choice
    )
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "straight").read_bytes()
    stats = StateCache([tmp_path / "straight"])
    assert 0 < sum(made) < sum(stats.row(i).targets for i in range(len(stats)))


def test_more_than_the_limit_is_refused_before_the_model_is_loaded(
    model_dir, labelled, tmp_path, monkeypatch
) -> None:
    size = capture(model_dir, labelled, tmp_path / "s", layers=2).bytes
    capture(model_dir, labelled, tmp_path / "s", share=0.5, layers=2, limit_gb=2 * size / 1e9)

    def never(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(state_capture, "load_causal_lm", never)
    with pytest.raises(
        AngelshareError, match=r"too large: .* 2 layers as .*fraction.*int8.*limit_gb"
    ):
        capture(model_dir, labelled, tmp_path / "t", share=0.49, layers=2, limit_gb=2 * size / 1e9)
    assert not (tmp_path / "t").exists()


def test_blocks_behind_the_last_that_is_kept_are_not_computed(
    model_dir, labelled, tmp_path, monkeypatch
) -> None:
    models = []

    def noted(*arguments, **options):
        models.append(load_causal_lm(*arguments, **options))
        return models[-1]

    monkeypatch.setattr(state_capture, "load_causal_lm", noted)
    capture(model_dir, labelled, tmp_path / "s", layers=(1,))
    assert len(models[0].model.layers) == 1


def test_states_beyond_float16_are_refused(model_dir, labelled, tmp_path, monkeypatch) -> None:
    def large(*arguments, **options):
        model = load_causal_lm(*arguments, **options)
        model.get_input_embeddings().weight.data[:] = 1e5
        return model

    monkeypatch.setattr(state_capture, "load_causal_lm", large)
    with pytest.raises(AngelshareError, match=r"beyond what float16 holds: use format int8"):
        capture(model_dir, labelled, tmp_path / "s", layers=(0,))
    capture(model_dir, labelled, tmp_path / "s", layers=(0,), format="int8")
    np.testing.assert_allclose(StateCache([tmp_path / "s"]).row(0).vectors(), 1e5, rtol=1e-6)


def test_foreign_files_are_refused(tmp_path, model_dir, labelled) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(labelled, path)
    with pytest.raises(AngelshareError, match="not a cache of hidden states"):
        StateCache([path])


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": 0},
        {"layers": []},
        {"layers": [3, 1]},
        {"layers": [2, 2]},
        {"positions": "mean_of_tokens", "fraction": 0.5},
        {"limit_gb": 0},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        StatesSettings.model_validate(wrong)
