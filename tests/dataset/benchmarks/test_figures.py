"""What a set's figure stands on: weights, sums, and sequences that are not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from theodolite.dataset.benchmarks.output import Findings, record, tables, write_findings
from theodolite.dataset.benchmarks.protocols import PROTOCOLS
from theodolite.dataset.benchmarks.record import Metric, SequenceScore, Status, figure


def score(name: str, value: float | None, status: Status = "scored", frames: int = 10) -> SequenceScore:
    values = {} if value is None else {"error": value}
    return SequenceScore(sequence=name, status=status, values=values, counts={"num_truth": frames})


def metric(**given: Any) -> Metric:
    return Metric(name="error", unit="m", better="less", meaning="", **given)


SCORES = (
    score("a", 1.0, frames=10),
    score("b", 4.0, frames=30),
    score("c", 100.0, "rejected", frames=20),
    score("d", None, "failed", frames=20),
    score("e", None, "missing", frames=0),
    score("f", 7.0, "no_truth"),
)


def test_a_mean_says_how_many_it_stands_on() -> None:
    found = figure(metric(), SCORES)
    assert (found.value, found.median, found.num, found.of, found.num_absent) == (2.5, 2.5, 2, 5, 0)
    every = figure(metric(), SCORES, with_rejected=True)
    assert (every.value, every.median, every.num, every.of) == (35.0, 4.0, 3, 5)


def test_sequences_weigh_as_their_counts() -> None:
    assert figure(metric(weight="num_truth"), SCORES).value == pytest.approx((10 * 1 + 30 * 4) / 40)


def test_what_is_absent_counts_where_the_protocol_says_so() -> None:
    """Frames without a prediction are wrong ones: rejected and failed sequences count with all of theirs."""
    found = figure(metric(weight="num_truth", absent=0.0), SCORES)
    assert found.value == pytest.approx((10 * 1 + 30 * 4 + 20 * 0 + 20 * 0) / 80)
    assert (found.num, found.of, found.num_absent) == (4, 5, 2)  # of `e` nobody knows how many frames
    every = figure(metric(weight="num_truth", absent=0.0), SCORES, with_rejected=True)
    assert every.value == pytest.approx((10 + 120 + 2000) / 80)
    assert every.num_absent == 1


def test_a_value_of_no_weight_is_neither_counted_nor_absent() -> None:
    """It may be the very value that stands for what is absent."""
    found = figure(metric(weight="num_truth", absent=0.0), [score("a", 0.0, frames=0), score("b", 1.0)])
    assert (found.value, found.num, found.of, found.num_absent) == (1.0, 1, 2, 0)


def test_sums_add_what_each_sequence_has() -> None:
    found = figure(metric(total=True, absent=0.0), SCORES)
    assert (found.value, found.num, found.of, found.num_absent) == (5.0, 5, 5, 3)


def test_nothing_scored_has_no_mean() -> None:
    found = figure(metric(), [score("d", None, "failed"), score("a", float("nan"))])
    assert (found.value, found.num, found.of) == (None, 0, 2)


def findings(scores: tuple[SequenceScore, ...]) -> Findings:
    return Findings(
        name="tum",
        layout="tum-rgbd",
        scores=scores,
        input="pixels",
        command="theodolite benchmark tum --root 'my data'",
        surroundings={"date": "2026-11-28T00:00:00+00:00"},
    )


def test_files_hold_a_row_a_sequence_and_a_row_a_frame(tmp_path: Path) -> None:
    frames = {"frame": np.arange(3), "position_error_se3_m": np.array([0.1, np.nan, 0.3])}
    scored = SequenceScore(
        sequence="a",
        status="scored",
        counts={"num_frames": 3},
        values={"ate_se3_m": 0.5, "ate_sim3_m": float("nan")},
        frames=frames,
    )
    refused = SequenceScore(
        sequence="b", status="rejected", reasons=("no_parallax",), detail="the camera turns | on the spot"
    )
    found = findings((scored, refused))
    write_findings(found, tmp_path)
    table = pq.read_table(tmp_path / "sequences.parquet")
    assert table["sequence"].to_pylist() == ["a", "b"]
    assert table["reasons"].to_pylist() == [[], ["no_parallax"]]
    assert table["ate_se3_m"].to_pylist() == [0.5, None]
    assert set(table.column_names) >= {m.name for m in PROTOCOLS["tum"].metrics}
    assert table.schema.metadata[b"command"] == found.command.encode()
    rows = pq.read_table(tmp_path / "frames.parquet").to_pylist()
    assert [(row["sequence"], row["frame"]) for row in rows] == [("a", 0), ("a", 1), ("a", 2)]
    read = json.loads((tmp_path / "benchmark.json").read_text())
    assert read == json.loads(json.dumps(record(found)))
    assert read["command"] == found.command
    assert read["figures"]["ate_se3_m"] == {
        "value": 0.5,
        "median": 0.5,
        "num": 1,
        "of": 2,
        "num_absent": 0,
    }
    write_findings(findings((refused,)), tmp_path)
    assert not (tmp_path / "frames.parquet").exists()


def test_tables_name_what_is_not_in_the_means() -> None:
    many = tuple(score(f"x{i:03d}", None, "no_truth") for i in range(300))
    refused = SequenceScore(sequence="b", status="rejected", reasons=("no_parallax",), detail="a|b")
    text = tables(findings((score("a", 1.0), refused, *many)))
    assert "b: rejected: no_parallax: a|b" in text
    assert "300 sequences without a published truth" in text
    assert "x017" not in text
    assert "0 of 2" in text  # `error` is no figure of TUM
    assert "| b | rejected |" in tables(findings((refused,)), style="markdown")
    assert json.loads(tables(findings((refused,)), style="json"))["status"] == {"rejected": 1}
