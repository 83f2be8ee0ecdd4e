"""`certify distance`: brackets around distances that are known exactly, files, messages, exit codes."""

from __future__ import annotations

import csv
import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from certify.cli.main import cli


def call(*arguments):
    return CliRunner().invoke(cli, ["distance", *map(str, arguments)])


def exact_distances(folder, norm):
    """min over rivals of (y_label - y_j) / |w_label - w_j|_q of the linear network, 0 where it is not the largest."""
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "net.onnx").graph.initializer}
    weight, bias = values["W"].astype(np.float64), values["b"].astype(np.float64)
    data = np.load(folder / "data.npz")
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    found = []
    for x, label in zip(data["x"].astype(np.float64), data["y"], strict=True):
        y = x @ weight + bias
        away = [
            (y[label] - y[j]) / np.linalg.norm(weight[:, label] - weight[:, j], dual) for j in range(3) if j != label
        ]
        found.append(max(0.0, min(away)))
    return found


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_bracket_holds_the_exact_distance_of_a_linear_network(linear, norm):
    found = call(
        linear / "net.onnx", "--data", linear / "data.npz", "--norm", norm, "--input-range", "-9,9", "--json",
        "--samples", 8, "--max-eps", 8, "--method", "crown", "--device", "cpu",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    document = json.loads(found.output)
    truth = exact_distances(linear, norm)
    assert len(document["results"]) == 8
    for row, want in zip(document["results"], truth, strict=False):
        assert row["lower"] <= want * (1 + 1e-9)
        assert row["upper"] >= want * (1 - 1e-6)
        # On L2 balls the attack does not reach the very boundary.
        assert row["gap"] <= (0.03 if norm == "l2" else 0.011) * row["upper"] or want == 0
    wrong = document["results"][5]
    assert (wrong["lower"], wrong["upper"], wrong["reason"]) == (0, 0, "misclassified")


def test_a_mip_closes_the_bracket_of_a_small_network_at_once(linear):
    rows = {}
    for method in ("crown", "mip"):
        found = call(
            linear / "net.onnx", "--data", linear / "data.npz", "--input-range", "-9,9", "--json", "--samples", 3,
            "--method", method, "--device", "cpu",
        )  # fmt: skip
        rows[method] = json.loads(found.output)["results"]
    for row in (*rows["crown"], *rows["mip"]):
        assert row["gap"] <= 0.011 * row["upper"]
        assert row["reason"] == ""


def test_files_hold_what_is_shown(linear, tmp_path):
    out = tmp_path / "new" / "distances"
    arguments = (linear / "net.onnx", "--data", linear / "data.npz", "--ids", "3,5,7", "--method", "crown")
    found = call(*arguments, "--out", out, "--device", "cpu")
    assert found.exit_code == 0, found.output
    with (out / "distances.csv").open() as file:
        rows = list(csv.DictReader(file))
    document = json.loads((out / "distances.json").read_text())
    assert [int(r["id"]) for r in rows] == [3, 5, 7] == [r["id"] for r in document["results"]]
    for row in rows:
        assert row["id"] in found.output
        if float(row["upper"]) < np.inf:
            witness = np.load(out / "witnesses" / f"{row['id']}.npz")
            assert int(witness["label"]) != int(np.argmax(witness["y"]))
            x = np.load(linear / "data.npz")["x"][int(row["id"])].astype(np.float64)
            assert np.abs(witness["x"].ravel() - x).max() <= float(row["upper"])
    uppers = sorted(np.inf if r["upper"] is None else r["upper"] for r in document["results"])
    (half,) = [q for q in document["quantiles"] if q["quantile"] == 0.5]
    assert half["upper"] == uppers[1]
    assert f"0.5,{half['lower']!r}," in (out / "quantiles.csv").read_text()
    assert (out / "distances.svg").read_text().startswith("<svg")
    again = call(*arguments, "--out", out)
    assert again.exit_code == 2
    assert "exists already" in again.output


def test_a_largest_eps_below_the_distance_leaves_the_top_open(linear):
    want = exact_distances(linear, "linf")[0]
    found = call(
        linear / "net.onnx", "--data", linear / "data.npz", "--samples", 1, "--max-eps", want / 2, "--json",
        "--method", "crown", "--device", "cpu",
    )  # fmt: skip
    (row,) = json.loads(found.output)["results"]
    assert row["upper"] is None
    assert row["lower"] == pytest.approx(want / 2)
    assert row["reason"] == "certified up to the largest eps"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--tolerance", "0"), "between 0 and 1"),
        (("--max-eps", "0"), "above 0"),
        (("--max-eps", "1/255,2/255"), "give one number"),
        (("--max-eps", "-1"), "negative"),
        (("--timeout", "-3"), "--timeout"),
        (("--ids", "99"), "99"),
    ],
)
def test_what_cannot_be_used_is_said(linear, extra, message):
    found = call(linear / "net.onnx", "--data", linear / "data.npz", *extra)
    assert found.exit_code == 2
    assert message in found.output
