"""`certify smooth`: closed forms of a linear network, files, resume, the attack from above, messages."""

from __future__ import annotations

import csv
import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from scipy.stats import multivariate_normal, norm

from certify.cli.main import cli

QUICK = ("--n", "2000", "--n0", "50", "--sigma", "0.2")


def call(*arguments):
    return CliRunner().invoke(cli, ["smooth", *map(str, arguments)])


def smooth(linear, *arguments):
    found = call(linear / "net.onnx", "--data", linear / "data.npz", *QUICK, "--json", *arguments)
    assert found.exit_code == 0, found.output
    return json.loads(found.output)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def true_probabilities(folder, sigma):
    """P(each class) for each sample: the margins' joint normal law."""
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "net.onnx").graph.initializer}
    weight, bias = values["W"].astype(np.float64), values["b"].astype(np.float64)
    x = np.load(folder / "data.npz")["x"].astype(np.float64)
    found = []
    for row in x:
        y, probabilities = row @ weight + bias, []
        for label in range(3):
            others = [j for j in range(3) if j != label]
            ways = weight[:, [label]] - weight[:, others]
            law = multivariate_normal(mean=y[others] - y[label], cov=sigma**2 * ways.T @ ways, allow_singular=True)
            probabilities.append(float(law.cdf(np.zeros(2))))
        found.append(probabilities)
    return np.array(found)


def test_probabilities_and_radii_are_those_of_the_closed_form(linear, out):
    document = smooth(linear, "--out", out)
    truth = true_probabilities(linear, 0.2)
    assert len(document["results"]) == 24
    for row, p in zip(document["results"], truth, strict=True):
        chosen = p[row["chosen"]]
        assert abs(row["successes"] / row["n"] - chosen) < 5 * np.sqrt(0.25 / row["n"])
        assert row["lower"] < chosen
        if row["predicted"] >= 0:
            assert row["predicted"] == int(np.argmax(p))
            assert 0 < row["radius"] < 0.2 * norm.ppf(chosen)
    assert document["norm"] == "l2"
    assert document["failure_probability"] == 0.001


def test_files_and_resume(linear, out):
    first = smooth(linear, "--out", out, "--eps", "0.1", "--no-attack")
    again = call(linear / "net.onnx", "--data", linear / "data.npz", *QUICK, "--eps", "0.1", "--out", out)
    assert again.exit_code == 2
    assert "--resume" in again.output
    resumed = smooth(linear, "--out", out, "--eps", "0.1", "--no-attack", "--resume")
    assert resumed["results"] == first["results"]
    other = call(
        linear / "net.onnx", "--data", linear / "data.npz", *QUICK, "--eps", "0.2", "--out", out, "--resume"
    )  # fmt: skip
    assert other.exit_code == 2
    assert "eps was ['1/10'] and is ['1/5']" in other.output
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["id"]) for r in rows] == list(range(24))
    assert {r["eps 1/10"] for r in rows} <= {"certified", "misclassified", "unknown"}
    curve = [line.split(",") for line in (out / "curve.csv").read_text().splitlines()[1:]]
    certified = sum(r["eps 1/10"] == "certified" for r in rows)
    assert (
        sum(float(r) >= 0.1 and row["predicted"] == row["label"] for row in rows for r in [row["radius"]]) == certified
    )
    assert float(curve[0][1]) == first["smoothed_accuracy"]
    assert (out / "curve.svg").read_text().startswith("<svg")
    assert json.loads((out / "manifest.json").read_text())["brackets"][0]["certified"] == certified


def test_a_run_cut_short_goes_on_with_the_same_rows(linear, tmp_path, monkeypatch):
    from certify.smoothing.run import Run

    whole = smooth(linear, "--out", tmp_path / "whole")
    decide = Run.decide

    def stopped(self, position):
        if position == 5:
            raise KeyboardInterrupt
        return decide(self, position)

    monkeypatch.setattr(Run, "decide", stopped)
    cut = call(linear / "net.onnx", "--data", linear / "data.npz", *QUICK, "--out", tmp_path / "cut")
    assert cut.exit_code == 130
    assert "--resume" in cut.output
    monkeypatch.undo()
    resumed = smooth(linear, "--out", tmp_path / "cut", "--resume")
    for a, b in zip(whole["results"], resumed["results"], strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_a_sample_s_votes_do_not_depend_on_the_others_or_on_the_batch(linear, tmp_path, monkeypatch):
    whole = smooth(linear, "--out", tmp_path / "a")
    monkeypatch.setattr("certify.smoothing.votes.CPU_BATCH", 37)
    some = smooth(linear, "--ids", "3,9", "--out", tmp_path / "b")
    for row in some["results"]:
        assert row["successes"] == whole["results"][row["id"]]["successes"]


def test_the_attack_bounds_from_above(linear, out):
    """Of a half-space the certificate is tight: between it and the attack little is left open."""
    document = smooth(linear, "--out", out, "--eps", "0.02,0.1,0.3", "--norm", "l2")
    open_before = None
    for bracket in document["brackets"]:
        assert bracket["certified"] <= bracket["attacked"] <= bracket["clean"]
        assert bracket["certified"] + bracket["unknown"] + bracket["falsified"] + bracket["misclassified"] == 24
        open_before = bracket["unknown"]
    assert document["brackets"][-1]["falsified"] > 0
    for row in document["results"]:
        order = ["certified", "unknown", "falsified"]
        places = [order.index(v) for v in row["verdicts"].values() if v in order]
        assert places == sorted(places)
    assert open_before is not None
    truth, falsified = true_probabilities(linear, 0.2), 0
    for row in document["results"]:
        # Two classes: the boundary of the smoothed classifier lies where both have one half.
        p = np.sort(truth[row["id"]])
        if row["verdicts"]["3/10"] == "falsified":
            falsified += 1
        if p[0] < 1e-3 and 0.2 * norm.ppf(p[2]) > 0.31:
            assert row["verdicts"]["3/10"] != "falsified"
    assert falsified > 0


@pytest.mark.parametrize("norm_name", ["linf", "l2", "l1"])
def test_the_attack_keeps_to_the_ball(linear, out, norm_name, monkeypatch):
    from certify.smoothing.attack import Attack

    seen = []
    original = Attack._round

    def watched(self, moved, steps, name):
        found = original(self, moved, steps, name)
        seen.append((found, steps))
        return found

    monkeypatch.setattr(Attack, "_round", watched)
    smooth(linear, "--out", out, "--eps", "0.2", "--norm", norm_name)
    assert seen
    for found, steps in seen:
        assert np.array_equal(found, np.rint(found))
        size = np.linalg.norm(found, {"linf": np.inf, "l2": 2, "l1": 1}[norm_name])
        assert 0 < size <= steps * (1 + 1e-6)


def test_sequential_answers_as_fixed_does_with_fewer_draws(linear, tmp_path):
    fixed = smooth(linear, "--eps", "0.1", "--no-attack", "--out", tmp_path / "fixed", "--n", 20000)
    fast = smooth(linear, "--eps", "0.1", "--no-attack", "--out", tmp_path / "fast", "--n", 20000, "--sequential")
    for a, b in zip(fixed["results"], fast["results"], strict=True):
        if a["verdicts"] != b["verdicts"]:
            assert b["verdicts"]["1/10"] == "unknown"
    assert fast["median_draws"] * 5 < fixed["median_draws"]
    radius = smooth(linear, "--out", tmp_path / "radius", "--n", 20000, "--sequential")
    for a, b in zip(fixed["results"], radius["results"], strict=True):
        if a["radius"] > 0.02:
            assert b["radius"] >= 0.8 * a["radius"]


@pytest.mark.parametrize("noise", ["uniform", "splitting"])
def test_noises_for_l1(linear, out, noise):
    x = np.rint(np.load(linear / "data.npz")["x"] * 255) / 255
    np.savez(linear / "grid.npz", x=x.astype(np.float32), y=np.load(linear / "data.npz")["y"])
    found = call(
        linear / "net.onnx", "--data", linear / "grid.npz", *QUICK, "--noise", noise, "--eps", "0.05", "--json",
        "--out", out,
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    document = json.loads(found.output)
    assert document["norm"] == "l1"
    assert document["failure_probability"] == (0 if noise == "splitting" else 0.001)
    assert document["brackets"][0]["certified"] > 0
    if noise == "splitting":
        assert {row["n"] for row in document["results"]} == {int(2 * np.sqrt(3) * 0.2 * 255)}
        assert all(abs(row["radius"] * 255 - round(row["radius"] * 255)) < 1e-9 for row in document["results"])


def test_the_table_says_what_it_is_about(linear, out):
    found = call(linear / "net.onnx", "--data", linear / "data.npz", *QUICK, "--eps", "0.1", "--out", out)
    assert found.exit_code == 0, found.output
    for text in ("Smoothed classifier", "probable", "each fails with probability 0.001 at most", "0.024 at most"):
        assert text in found.output


def test_limit_tells_what_is_in_reach(linear):
    found = call(linear / "net.onnx", "--sigma", "0.2", "--limit", "--eps", "0.1,0.5,90")
    assert found.exit_code == 0, found.output
    assert f"{0.2 / np.sqrt(2 * 4 * 0.1):.6g}" in found.output
    assert "eps 0.1 is" not in found.output
    assert "eps 0.5 is out of reach of Gaussian noise" in found.output
    assert "eps 90 is out of reach of any noise" in found.output


def test_an_eps_out_of_reach_is_told_in_a_run(linear, out):
    document = smooth(linear, "--out", out, "--eps", "90", "--norm", "linf", "--samples", "2", "--no-attack")
    assert any("out of reach" in note for note in document["notes"])
    assert any("no noise" in note for note in document["notes"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--sigma", "0"), "--sigma"),
        (("--sigma", "-1"), "--sigma"),
        (("--sigma", "nan"), "--sigma"),
        (("--n", "0"), "--n 0"),
        (("--n0", "0"), "--n0 0"),
        (("--alpha", "0"), "--alpha"),
        (("--alpha", "1"), "--alpha"),
        (("--alpha", "nan"), "--alpha"),
        (("--eps", "-1"), "negative"),
        (("--noise", "splitting"), "grid"),
        (("--resume",), "--out"),
        (("--limit", "--norm", "l2"), "linf"),
        (("--ids", "99"), "99"),
        (("--seed", "-1"), "seed"),
        (("--device", "tpu9"), "device"),
    ],
)
def test_what_cannot_be_used_is_said(linear, extra, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = call(linear / "net.onnx", "--data", linear / "data.npz", "--sigma", "0.2", *extra)
    assert found.exit_code == 2, found.output
    assert message in found.output
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_gone_on_with_behind_another_normalisation(linear, out):
    """The file is the same, the network that is smoothed is not: its rows must not be mixed."""
    smooth(linear, "--out", out, "--samples", "2")
    other = call(
        linear / "net.onnx", "--data", linear / "data.npz", *QUICK, "--samples", "2", "--out", out, "--resume",
        "--mean", "0.5", "--std", "0.5",
    )  # fmt: skip
    assert other.exit_code == 2
    assert "network was" in other.output


def test_noise_comes_before_the_normalisation(linear, tmp_path):
    """(x - 0.5) / 2 before the network, weights to undo it: the same votes in raw units, whatever the eps."""
    model = onnx.load(linear / "net.onnx")
    values = {t.name: t for t in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(values[name]) for name in ("W", "b"))
    undone = {"W": 2 * weight, "b": bias + 0.5 * weight.sum(axis=0)}
    for name, value in undone.items():
        values[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    (tmp_path / "undone").mkdir()
    onnx.save(model, tmp_path / "undone" / "net.onnx")
    np.savez(tmp_path / "undone" / "data.npz", **np.load(linear / "data.npz"))
    plain = smooth(linear, "--out", tmp_path / "a")
    behind = smooth(tmp_path / "undone", "--out", tmp_path / "b", "--mean", "0.5", "--std", "2")
    for a, b in zip(plain["results"], behind["results"], strict=True):
        assert abs(a["successes"] - b["successes"]) <= 2  # the last bits of the outputs differ
        assert a["radius"] == pytest.approx(b["radius"], abs=2e-3)


def test_what_lies_farther_from_the_grid_than_its_radius_is_no_class_s(linear, out, monkeypatch):
    from certify.smoothing.grid import Grid

    places = Grid.places
    monkeypatch.setattr(Grid, "places", lambda self, x, order: (places(self, x, order)[0], 10.0))
    document = smooth_or_undecided(linear, "--out", out, "--eps", "0.1", "--no-attack")
    for row in document["results"]:
        assert (row["predicted"], row["radius"], row["verdicts"]) == (-1, 0, {"1/10": "unknown"})
    assert document["smoothed_accuracy"] == 0


def smooth_or_undecided(linear, *arguments):
    found = call(linear / "net.onnx", "--data", linear / "data.npz", *QUICK, "--json", *arguments)
    assert found.exit_code in (0, 4), found.output
    return json.loads(found.output)


def test_the_attacks_of_a_sample_share_its_failure_probability(linear, out, monkeypatch):
    from certify.smoothing import attack

    seen = []
    predict = attack.predict

    def watched(votes, n, alpha, purpose):
        seen.append(alpha)
        return predict(votes, n, alpha, purpose)

    monkeypatch.setattr(attack, "predict", watched)
    smooth(linear, "--out", out, "--eps", "0.3,0.4,0.5,0.6")
    assert set(seen) == {0.001 / 4}


def test_the_best_of_sequential_draws_is_told(linear, tmp_path):
    """All of 2,000 draws for one class: fixed n certifies up to 0.5404, the sequential bound up to 0.5070."""
    for extra, told in ((), False), (("--sequential",), True):
        document = smooth(linear, "--out", tmp_path / str(told), "--eps", "0.52", "--no-attack", *extra)
        assert any("out of reach" in note for note in document["notes"]) is told


@pytest.fixture
def odd(linear):
    """A network with an op in its middle that no bound knows: y -> y softmax(y), which keeps the best class."""
    model = onnx.load(linear / "net.onnx")
    last = model.graph.node[-1]
    name = model.graph.output[0].name
    last.output[0] = "logits"
    model.graph.node.extend(
        [
            onnx.helper.make_node("Softmax", ["logits"], ["soft"], axis=-1),
            onnx.helper.make_node("Exp", ["soft"], ["raised"]),
            onnx.helper.make_node("Mul", ["raised", "soft"], [name]),
        ]
    )
    (linear / "odd").mkdir()
    onnx.save(model, linear / "odd" / "net.onnx")
    np.savez(linear / "odd" / "data.npz", **np.load(linear / "data.npz"))
    return linear / "odd"


def test_a_network_that_only_onnxruntime_knows_is_smoothed(linear, odd, tmp_path):
    plain = smooth(linear, "--eps", "0.1,0.5", "--no-attack", "--out", tmp_path / "a")
    document = smooth(odd, "--eps", "0.1,0.5", "--out", tmp_path / "b")
    for a, b in zip(plain["results"], document["results"], strict=True):
        assert abs(a["successes"] - b["successes"]) <= 2
    assert any("onnxruntime alone" in note for note in document["notes"])
    assert not any(bracket["falsified"] for bracket in document["brackets"])
    refused = call(odd / "net.onnx", "--data", odd / "data.npz", *QUICK, "--device", "cuda")
    assert refused.exit_code == 2


def test_a_fixed_batch_is_refused(linear):
    model = onnx.load(linear / "net.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, linear / "fixed.onnx")
    found = call(linear / "fixed.onnx", "--data", linear / "data.npz", "--sigma", "0.2")
    assert found.exit_code == 2
    assert "dynamic batch" in found.output


def test_missing_labels_are_said(linear):
    np.savez(linear / "bare.npz", x=np.load(linear / "data.npz")["x"])
    found = call(linear / "net.onnx", "--data", linear / "bare.npz", "--sigma", "0.2")
    assert found.exit_code == 2
    assert "y" in found.output
