"""The paper's Table 3 through `account_csv` gives its Table 2, its N*, and the corrected views."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from angelshare.accounting.imported import account_csv
from angelshare.accounting.tables import TABLE_NAMES, Tables, read_tables
from angelshare.errors import AngelshareError

KWH = 3.6e6
SIZES = ("1B", "7B", "13B")


@pytest.fixture
def tables(paper: Path, tmp_path: Path) -> Tables:
    return account_csv(paper / "stages.csv", paper / "quality.csv", tmp_path)


def per_size(tables: Tables, pipeline: str, column: str) -> list[float]:
    values = dict(tables.runs.select("run", column).rows())
    return [values[f"{pipeline}-{size}"] for size in SIZES]


@pytest.mark.parametrize(
    ("pipeline", "totals_kwh", "j_per_token"),
    [
        ("sft", [7.00, 19.50, 34.60], [0.84, 2.34, 4.15]),
        ("kd", [16.90, 28.40, 42.50], [2.03, 3.41, 5.10]),
        ("synthetic_sft", [16.65, 28.25, 40.70], [2.00, 3.39, 4.88]),
    ],
)
def test_table_2(
    tables: Tables, pipeline: str, totals_kwh: list[float], j_per_token: list[float]
) -> None:
    one_off = per_size(tables, pipeline, "one_off_j")
    assert [energy_j / KWH for energy_j in one_off] == pytest.approx(totals_kwh, abs=1e-9)
    assert per_size(tables, pipeline, "j_per_token") == pytest.approx(j_per_token, abs=0.006)


def test_amortised_over_the_three_students(tables: Tables) -> None:
    kd = [energy_j / KWH for energy_j in per_size(tables, "kd", "amortized_j")]
    synthetic = [energy_j / KWH for energy_j in per_size(tables, "synthetic_sft", "amortized_j")]
    assert kd == pytest.approx([9.57, 21.07, 35.17], abs=0.005)
    assert synthetic == pytest.approx([9.58, 21.18, 33.63], abs=0.005)


def test_teacher_energy_counts_once_per_artifact(tables: Tables) -> None:
    teacher = tables.artifacts.filter("teacher")
    assert teacher["energy_j"].sum() / KWH == pytest.approx(21.6)
    assert teacher["consumers"].to_list() == [3, 3]
    assert tables.runs["teacher_j"].sum() / KWH == pytest.approx(64.8)
    assert tables.runs["teacher_share_j"].sum() / KWH == pytest.approx(21.6)


def test_break_even(tables: Tables) -> None:
    n_star = {
        (p, s): n for p, s, n in tables.break_even.select("pipeline", "student", "n_star").rows()
    }
    assert [n_star["kd", size] for size in SIZES] == pytest.approx([10.0, 5.24, 3.55], abs=0.005)
    assert [n_star["synthetic_sft", size] for size in SIZES] == pytest.approx(
        [11.16, 5.73, 2.36], abs=0.005
    )
    reached = dict(tables.break_even.select(pl.concat_str("pipeline", "student"), "reached").rows())
    assert [name for name, is_reached in reached.items() if is_reached] == ["synthetic_sft13B"]


def test_no_interval_where_nothing_was_repeated_or_bounded(tables: Tables) -> None:
    for column in ("n_star_low", "n_star_high", "gap_low_j"):
        assert tables.break_even[column].null_count() == 6
    assert tables.frontier["membership_probability"].null_count() == tables.frontier.height
    assert tables.summary.schema["one_off_j_u95"] == pl.Float64
    assert tables.summary["one_off_j_u95"].null_count() == 9
    assert tables.runs["one_off_high_j"].null_count() == 9
    assert set(tables.summary["note"]) == {"n = 1 < 3: spread hardly known"}


def test_pareto_set(tables: Tables) -> None:
    on = tables.frontier.filter("on_frontier", pl.col("view") == "one_off")
    assert set(on["setting"]) == {"sft 1B", "sft 7B", "sft 13B", "synthetic_sft 1B"}


def test_prerun_is_listed_and_on_no_bill(tables: Tables) -> None:
    prerun = tables.attempts.filter(pl.col("stage") == "prerun")
    assert prerun["energy_j"].sum() / KWH == pytest.approx(9 * 0.12)
    assert tables.runs["one_off_j"].sum() / KWH == pytest.approx(61.1 + 87.8 + 85.6)


def test_row_order_does_not_matter(paper: Path, tmp_path: Path, tables: Tables) -> None:
    header, *lines = (paper / "stages.csv").read_text().splitlines()
    shuffled = tmp_path / "stages.csv"
    shuffled.write_text("\n".join([header, *reversed(lines)]))
    other = account_csv(shuffled, paper / "quality.csv", tmp_path / "other")
    named = (
        "artifacts",
        "shares",
        "runs",
        "stages",
        "summary",
        "break_even",
        "frontier",
        "dominance",
    )
    for name in named:
        assert getattr(other, name).equals(getattr(tables, name)), name


def test_the_rule_declares_every_table() -> None:
    rules = Path(__file__).parents[3] / "rules" / "accounting.smk"
    listed = rules.read_text().partition("TABLES = [")[2].partition("]")[0]
    assert {name.strip(' \n",') for name in listed.split(",") if name.strip()} == set(TABLE_NAMES)


def test_tables_are_read_back(tables: Tables, tmp_path: Path) -> None:
    again = read_tables(tmp_path)
    for name in TABLE_NAMES:
        assert getattr(again, name).equals(getattr(tables, name)), name
    (tmp_path / "runs.parquet").unlink()
    with pytest.raises(AngelshareError, match=r"runs\.parquet is no accounting table"):
        read_tables(tmp_path)


HEADER = "run,pipeline,student,dataset,seed,stage,artifact,energy_kwh,tokens\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run,pipeline\na,b\n", "lacks the column student"),
        (HEADER + "a,sft,1B,d,0,student_train,,much,\n", "line 2: energy_kwh must be a number"),
        (HEADER + "a,sft,1B,d,0,student_train,,-1,\n", "line 2: energy_kwh must be a number"),
        (HEADER + "a,sft,1B,d,0,student_train,,,\n", "line 2: energy_kwh must be a number"),
        (HEADER + "a,sft,1B,d,0,,,1,\n", "line 2: stage is empty"),
        (HEADER + "a,sft,,d,0,student_train,,1,\n", "needs pipeline and student"),
        (
            HEADER + "a,sft,1B,d,0,student_train,,1,\na,kd,1B,d,0,evaluate,,1,\n",
            "run a has several values of pipeline: kd, sft",
        ),
        (
            HEADER
            + "a,kd,1B,d,0,student_train,,1,\na,kd,1B,d,0,teacher_logits,x,2,\n"
            + "b,kd,1B,d,1,student_train,,1,\nb,kd,1B,d,1,teacher_logits,x,3,\n",
            r"line 3, and .*line 5, give artifact x different energies \(2 and 3 kWh\)",
        ),
        (
            HEADER + "a,kd,1B,d,0,student_train,,1,\na,kd,1B,d,0,teacher_logits,x,,\n",
            "no row gives the energy_kwh of artifact x",
        ),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, message: str) -> None:
    stages = tmp_path / "stages.csv"
    stages.write_text(text)
    with pytest.raises(AngelshareError, match=message):
        account_csv(stages, None, tmp_path / "out")


def test_further_columns_are_hyperparameters(tmp_path: Path) -> None:
    stages = tmp_path / "stages.csv"
    stages.write_text(
        "run,pipeline,student,dataset,seed,stage,artifact,energy_kwh,tokens,temperature\n"
        "a,kd,1B,d,0,student_train,,1,,1\nb,kd,1B,d,0,student_train,,2,,4\n"
    )
    tables = account_csv(stages, None, tmp_path / "out")
    assert tables.runs["temperature"].to_list() == [1.0, 4.0]
    assert tables.summary["setting"].to_list() == ["kd 1B T=1", "kd 1B T=4"]
    assert tables.frontier.is_empty()
