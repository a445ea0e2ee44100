from __future__ import annotations

from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest
import torch
from tiny_teacher import nothing

from angelshare.data.sequences import prompt_ids
from angelshare.data.tables import read_table
from angelshare.errors import AngelshareError
from angelshare.store.journal import Journal
from angelshare.teacher.generate import generate_corpus
from angelshare.teacher.models import load_causal_lm, load_tokenizer
from angelshare.teacher.prompts import row_seed
from angelshare.teacher.settings import DecodingSettings
from angelshare.teacher.transformers_backend import GumbelNoise

GREEDY = DecodingSettings(max_new_tokens=12, batch_size=5)
SAMPLED = GREEDY.model_copy(update={"temperature": 1.0, "top_p": 0.9, "seed": 7})


def answers(model_dir, table, out, settings) -> dict[str, str]:
    generate_corpus(model_dir, table, settings, out, progress=nothing, count=nothing)
    rows = pq.read_table(out).to_pylist()
    return {row["id"]: row["messages"][-1]["content"] for row in rows}


def greedy_by_hand(model_dir, messages, steps: int) -> list[int]:
    """Unpadded, uncached, one token at a time."""
    model, tokenizer = load_causal_lm(model_dir, device="cpu"), load_tokenizer(model_dir)
    ids = prompt_ids(tokenizer, messages)
    start = len(ids)
    with torch.inference_mode():
        for _ in range(steps):
            logits_V = model(input_ids=torch.tensor([ids])).logits[0, -1, : len(tokenizer)]
            ids.append(int(logits_V.argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return ids[start:]


def test_each_batch_is_read_and_then_written(model_dir, dataset, tmp_path) -> None:
    """The phases of an energy window: one after the other, batch by batch, the work between."""
    events: list[str] = []

    @contextmanager
    def phase(name: str):
        events.append(f"begin {name}")
        yield
        events.append(f"end {name}")

    generate_corpus(
        model_dir,
        dataset,
        GREEDY,
        tmp_path / "c",
        progress=nothing,
        count=lambda **_: events.append("count"),
        phase=phase,
    )
    batch = ["begin prefill", "end prefill", "begin decode", "end decode", "count"]
    assert events == batch * -(-dataset.num_rows // GREEDY.batch_size)


def test_greedy_answers_are_those_of_each_row_alone(model_dir, dataset, tmp_path) -> None:
    stats = generate_corpus(
        model_dir, dataset, GREEDY, tmp_path / "corpus", progress=nothing, count=nothing
    )
    corpus, tokenizer = read_table(tmp_path / "corpus"), load_tokenizer(model_dir)
    assert corpus["id"].to_pylist() == dataset["id"].to_pylist()
    for given, row in zip(dataset.to_pylist(), corpus.to_pylist(), strict=True):
        expected = greedy_by_hand(model_dir, given["messages"], 12)
        assert row["messages"][:-1] == given["messages"][:1]
        assert row["messages"][-1] == {
            "role": "assistant",
            "content": tokenizer.decode(expected, skip_special_tokens=True),
        }
        ended = expected[-1] == tokenizer.eos_token_id
        assert row["finish_reason"] == ("stop" if ended else "length")
        assert row["generated_tokens"] == len(expected)
        assert row["prompt_tokens"] == len(prompt_ids(tokenizer, given["messages"]))
    assert stats.generated_tokens == sum(corpus["generated_tokens"].to_pylist())
    assert stats.cut == corpus["finish_reason"].to_pylist().count("length")
    assert 0 < stats.cut < stats.sequences


def test_a_sample_depends_on_the_seed_and_the_row_alone(model_dir, dataset, tmp_path) -> None:
    sampled = answers(model_dir, dataset, tmp_path / "a", SAMPLED)
    one_by_one = SAMPLED.model_copy(update={"batch_size": 1})
    some = answers(model_dir, dataset.slice(9, 7), tmp_path / "b", one_by_one)
    assert some == {row_id: sampled[row_id] for row_id in some}
    other_seed = SAMPLED.model_copy(update={"seed": 8})
    assert answers(model_dir, dataset, tmp_path / "c", other_seed) != sampled
    assert answers(model_dir, dataset, tmp_path / "d", GREEDY) != sampled


def test_a_tiny_nucleus_is_greedy(model_dir, dataset, tmp_path) -> None:
    nucleus = SAMPLED.model_copy(update={"top_p": 1e-6})
    assert answers(model_dir, dataset, tmp_path / "a", nucleus) == answers(
        model_dir, dataset, tmp_path / "b", GREEDY
    )


def test_gumbel_noise_samples_the_distribution() -> None:
    """Frequencies of 20,000 draws within five standard errors of the probabilities."""
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    draws = 20_000
    scores_BV = probabilities.log().repeat(draws, 1)
    noisy = GumbelNoise([row_seed(0, str(i)) for i in range(draws)], 3)(None, scores_BV)
    frequencies = noisy.argmax(-1).bincount(minlength=3) / draws
    errors = (probabilities * (1 - probabilities) / draws).sqrt()
    assert ((frequencies - probabilities).abs() < 5 * errors).all()


def test_a_prompt_that_does_not_fit_is_kept_without_an_answer(model_dir, dataset, tmp_path) -> None:
    tokenizer = load_tokenizer(model_dir)
    lengths = [len(prompt_ids(tokenizer, m)) for m in dataset["messages"].to_pylist()]
    room = sorted(lengths)[9] + GREEDY.max_new_tokens
    settings = GREEDY.model_copy(update={"max_model_len": room})
    counted = []
    stats = generate_corpus(
        model_dir,
        dataset,
        settings,
        tmp_path / "corpus",
        progress=nothing,
        count=lambda **tokens: counted.append(tokens),
    )
    corpus = read_table(tmp_path / "corpus")
    whole = answers(model_dir, dataset, tmp_path / "whole", GREEDY)
    assert corpus["id"].to_pylist() == dataset["id"].to_pylist()
    for length, row in zip(lengths, corpus.to_pylist(), strict=True):
        assert row["prompt_tokens"] == length
        if length + 12 > room:
            assert row["finish_reason"] == "prompt_too_long"
            assert [message["role"] for message in row["messages"]] == ["user"]
            assert row["generated_tokens"] == 0
        else:
            assert row["messages"][-1]["content"] == whole[row["id"]]
    fitting = [length for length in lengths if length + 12 <= room]
    assert 0 < stats.unanswered == len(lengths) - len(fitting)
    assert stats.prompt_tokens == sum(fitting) == sum(some["prompt"] for some in counted)


def test_prompts_of_which_none_fits_are_an_error(model_dir, dataset, tmp_path) -> None:
    settings = GREEDY.model_copy(update={"max_model_len": 13})
    with pytest.raises(AngelshareError, match=r"none of 28 prompts .* exceeds the model's 13;"):
        answers(model_dir, dataset, tmp_path / "corpus", settings)
    assert not (tmp_path / "corpus").exists()


def test_it_counts_tokens_and_tells_its_progress(model_dir, dataset, tmp_path) -> None:
    counted, told = [], []
    stats = generate_corpus(
        model_dir,
        dataset,
        GREEDY,
        tmp_path / "corpus",
        progress=lambda *step: told.append(step),
        count=lambda **tokens: counted.append(tokens),
    )
    assert sum(tokens["prompt"] for tokens in counted) == stats.prompt_tokens
    assert sum(tokens["generated"] for tokens in counted) == stats.generated_tokens
    assert told[-1] == (28, 28, "answers")


def test_row_seeds_are_pinned() -> None:
    """They are part of what a corpus' recipe promises."""
    assert row_seed(0, "train-000000") == 7599049069727634243


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_killed_generation_goes_on_and_ends_with_the_same_bytes(
    model_dir, dataset, tmp_path, settings
) -> None:
    straight, broken = tmp_path / "straight.parquet", tmp_path / "broken.parquet"
    generate_corpus(model_dir, dataset, settings, straight, progress=nothing, count=nothing)
    batches: list[int] = []

    def killed(**amounts: int) -> None:
        batches.append(amounts["generated"])
        if len(batches) == 2:
            raise KeyboardInterrupt

    def run(count) -> None:
        journal = Journal(tmp_path / "part", "inputs")
        generate_corpus(
            model_dir, dataset, settings, broken, progress=nothing, count=count, journal=journal
        )

    with pytest.raises(KeyboardInterrupt):
        run(killed)
    assert not broken.exists()
    first = list(batches)
    run(lambda **amounts: batches.append(amounts["generated"]))
    assert broken.read_bytes() == straight.read_bytes()
    generated = pq.read_table(straight)["generated_tokens"].to_pylist()
    assert sum(batches) == sum(generated)  # no token was generated twice
    assert len(batches) == -(-len(generated) // settings.batch_size)
    run(lambda **amounts: pytest.fail("nothing was left to answer"))
    assert first == batches[:2]
    assert broken.read_bytes() == straight.read_bytes()
