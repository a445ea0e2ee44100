"""Contamination and near duplicates, counted by hand."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from angelshare.data.origins import read_texts
from angelshare.data.overlap import contamination, near_duplicates, ngrams, overlap_report
from angelshare.data.settings import BenchmarkFile, OverlapSettings
from angelshare.data.tables import sequence_table
from angelshare.errors import AngelshareError

EIGHT = OverlapSettings()
THREE = OverlapSettings(ngram=3)


def test_an_item_is_contained_when_over_half_its_words_are_in_one_row() -> None:
    item = "a b c d e f g h"
    trained = {
        "half": "x a b c d y",  # abc, bcd: four of eight words
        "more": "A, b! c: d e? z",  # abc, bcd, cde: five of eight, whatever the case and signs
    }
    assert contamination({"half": trained["half"]}, [item], THREE)["contained"] == 0
    found = contamination(trained, [item, "a b", "p q r"], THREE)
    assert found == {
        "items": 3,
        "too_short": 1,
        "touched": 1,
        "contained": 1,
        "contained_share": 0.5,
        "examples": [{"item": 0, "row": "more", "share": 0.625}],
    }


def test_words_from_two_rows_do_not_add_up() -> None:
    trained = {"one": "a b c d", "other": "e f g h"}
    assert contamination(trained, ["a b c d e f g h"], THREE)["contained"] == 0


def test_a_copied_question_is_found_in_eight_grams() -> None:
    question = "Natalia sold some clips to many of her friends in the month of April last year"
    row = f"Solve this problem. {question} and then rest."
    assert contamination({"row": row}, [question], EIGHT)["contained"] == 1
    changed = question.replace("many", "two").replace("month", "week")
    assert contamination({"row": row}, [changed], EIGHT)["contained"] == 0


def sentence(seed: int, length: int = 60) -> list[str]:
    return [str(random.Random(seed).randrange(10**6) + i) for i in range(length)]


def test_near_duplicates_are_found_and_others_are_not() -> None:
    base = sentence(0)
    texts = [" ".join(base)]
    texts += [" ".join(sentence(seed)) for seed in range(1, 40)]
    texts.append(" ".join([*base[:-1], "changed"]))  # 55 of 57 shingles shared
    texts.append(" ".join([*base[:30], *sentence(99, 30)]))  # 26 of 86
    ((one, other, index),) = near_duplicates(texts, 0.8)
    assert (one, other) == (0, 40)
    assert index == pytest.approx(55 / 57)
    assert near_duplicates([], 0.8) == []


def test_banding_finds_what_comparing_all_pairs_finds() -> None:
    texts = []
    for seed in range(30):
        base = sentence(seed, 80)
        texts += [" ".join(base), " ".join([*base[: 80 - seed // 2], "tail"])]
    shingles = [set(ngrams(text.split(), 5)) for text in texts]
    exact = [
        (one, other)
        for one, other in combinations(range(len(texts)), 2)
        if len(shingles[one] & shingles[other]) >= 0.8 * len(shingles[one] | shingles[other])
    ]
    assert [pair[:2] for pair in near_duplicates(texts, 0.8)] == exact
    assert len(exact) > 20


def conversation(split: str, number: int, prompt: str) -> dict:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "yes"}]
    return {"id": f"{split}-{number}", "split": split, "messages": messages}


def test_the_report_counts_trained_rows_only_and_names_leaks() -> None:
    question = " ".join(sentence(5))
    table = sequence_table(
        [
            conversation("train", 0, question),
            conversation("train", 1, " ".join(sentence(6))),
            conversation("validation", 0, question + " again"),
            conversation("test", 0, " ".join(sentence(7))),
        ]
    )
    benchmarks = {"trained": [question], "held_out": [" ".join(sentence(7))]}
    report = overlap_report(table, benchmarks, EIGHT)
    assert (report["rows"], report["trained_rows"]) == (4, 2)
    assert report["benchmarks"]["trained"]["contained"] == 1
    assert report["benchmarks"]["held_out"]["contained"] == 0
    assert report["near_duplicates"]["pairs"] == 1
    assert report["near_duplicates"]["held_out_rows_with_a_trained_twin"] == 1
    assert report["near_duplicates"]["examples"][0]["rows"] == ["train-0", "validation-0"]


def test_a_benchmark_s_columns_are_joined_and_missing_ones_named(tmp_path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"question": "q", "choices": "c"}\n')
    source = {"source": "file", "path": str(path)}
    assert read_texts(BenchmarkFile(**source, text_fields=["question", "choices"])) == ["q\nc"]
    with pytest.raises(AngelshareError, match="row 1: no field 'prompt'; it has choices, question"):
        read_texts(BenchmarkFile(**source, text_fields=["prompt"]))
