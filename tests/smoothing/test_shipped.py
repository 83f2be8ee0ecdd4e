"""The shipped network that was trained with noise is worth more under noise than the plain one of its shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from certify.api import Preprocessing, Selection, load_data, load_model
from certify.models.manifest import FOLDER
from certify.smoothing.certify import Budget
from certify.smoothing.grid import Grid
from certify.smoothing.radii import Smoothing
from certify.smoothing.run import Question, Run


def average_radius(path: Path) -> float:
    model, given = load_model(path, Preprocessing()), Preprocessing()
    data = load_data(Selection(samples=40), model, given)
    noise = Smoothing("gaussian", 0.25, Grid.of(data.x, (0.0, 1.0), 0.25), 64)
    question = Question((), "l2", Budget(50, 1000), sequential=False, attack=False, seed=0)
    run = Run(model, data, noise, question, (0.0, 1.0), "cpu")
    return float(np.mean([run.decide(i).correct_radius for i in range(len(data.y))]))


def test_training_with_noise_pays() -> None:
    assert average_radius(FOLDER / "digits_cnn_noise.onnx") > 1.1 * average_radius(FOLDER / "digits_cnn.onnx") > 0
