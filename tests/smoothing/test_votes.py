"""Votes: every draw is answered once, by whoever computes the network, whatever the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from certify.api import Preprocessing, load_model
from certify.errors import ModelError
from certify.frontends.dataset import Dataset
from certify.options import parse_eps
from certify.smoothing.certify import Budget
from certify.smoothing.grid import Grid
from certify.smoothing.noise import ESTIMATION, SELECTION, Blocks, Noise
from certify.smoothing.radii import Smoothing
from certify.smoothing.run import Question, Run
from certify.smoothing.splitting import Splitting
from certify.smoothing.votes import DrawnVotes, Network, _on_torch, split_votes

GRID = Grid(0.0, 1 / 255)
PLACES = np.array([10, 100, 200, 30], dtype=np.float32)


@pytest.fixture
def model(linear):
    return load_model(linear / "net.onnx", Preprocessing())


@pytest.fixture
def network(model):
    return Network.of(model, "cpu")


def test_votes_are_the_answers_to_the_noisy_inputs(network):
    smoothing = Smoothing("gaussian", 0.3, GRID, 4)
    blocks = Blocks(smoothing.law, 4, 5)
    votes = DrawnVotes(network, smoothing, blocks, PLACES, 11)
    inputs = (Noise(blocks, 11, ESTIMATION).draws(70, 5000) + PLACES) * np.float32(GRID.step)
    assert np.array_equal(votes(ESTIMATION, 70, 5000), np.bincount(network.classify(inputs), minlength=3))
    assert votes(SELECTION, 0, 1).sum() == 1


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("batch", [1, 37, 1024])
def test_votes_do_not_depend_on_the_batch_or_on_who_makes_it(network, batch, ahead):
    smoothing = Smoothing("uniform", 0.3, GRID, 4)
    blocks = Blocks(smoothing.law, 4, 0)
    whole = DrawnVotes(network, smoothing, blocks, PLACES, 0)(ESTIMATION, 0, 1500)
    votes = DrawnVotes(replace(network, batch=batch, ahead=ahead), smoothing, Blocks(smoothing.law, 4, 0), PLACES, 0)
    assert np.array_equal(votes(ESTIMATION, 0, 700) + votes(ESTIMATION, 700, 1500), whole)


def test_splits_are_looked_at_once_each(network):
    splitting = Splitting(221, 4, 0, (0.0, 1.0), 255)
    places = PLACES.astype(np.int64)
    counts = split_votes(replace(network, batch=50), splitting, places)
    assert counts.sum() == 221
    assert np.array_equal(counts, split_votes(network, splitting, places))


def test_answers_that_are_not_finite_are_no_class_s(network):
    def broken(x):
        return np.where(np.arange(len(x)) % 2, -1, network.classify(x))

    smoothing = Smoothing("gaussian", 0.3, GRID, 4)
    counts = DrawnVotes(replace(network, classify=broken), smoothing, Blocks(smoothing.law, 4, 0), PLACES, 0)(
        ESTIMATION, 0, 1024
    )
    assert counts.sum() == 512


def test_splits_without_an_answer_are_an_abstention(model, network):
    """Not even class 0, the first of equals: nothing is known of a network that answers nothing finite."""
    x, y = np.full((1, 4), 10 / 255, dtype=np.float32), np.zeros(1, dtype=np.int64)
    question = Question(parse_eps("0,0.1"), "l1", Budget(), sequential=False, attack=True, seed=0)
    splitting = Splitting.of(x, 0.25, 0, (0.0, 1.0))
    run = Run(model, Dataset("x", x, y, np.arange(1), (), "0", (0.0, 1.0)), splitting, question, (0.0, 1.0), "cpu")
    run.__dict__["network"] = replace(network, classify=lambda x: np.full(len(x), -1))
    row = run.decide(0)
    assert (row.predicted, row.radius, set(row.verdicts.values())) == (-1, 0, {"unknown"})


def test_torch_answers_as_onnxruntime_does(model, network):
    x = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    x[3, 0] = np.inf
    found = _on_torch(model, "cpu")(x)
    assert found[3] == network.classify(x)[3] == -1
    assert np.mean(found == network.classify(x)) > 0.99


def test_a_network_that_mixes_its_batch_is_refused(model, monkeypatch):
    monkeypatch.setattr("certify.attacks.replay.Replayer.can_batch", lambda self, pair: False)
    with pytest.raises(ModelError, match="constant Reshape"):
        Network.of(model, "cpu")
    with pytest.raises(ModelError, match="dynamic batch"):
        Network.of(replace(model, onnx_shape=(1, 4)), "cpu")
