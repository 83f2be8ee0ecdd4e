"""Normalisation and layout as layers of the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_cases import (
    image_net,
    outputs,
)

from certify.errors import UsageError
from certify.frontends.onnx_import import load_model


class TestPrepend:
    def test_mean_and_std_per_channel(self) -> None:
        proto = image_net((1, 3, 2, 2), 12)
        mean, std = (0.5, 0.25, 0.125), (0.3, 0.2, 0.1)
        x = np.random.default_rng(0).random((4, 3, 2, 2))
        stored = np.array(std, np.float32).astype(float).reshape(3, 1, 1)
        normalised = (x - np.array(mean).reshape(3, 1, 1)) / stored
        model = load_model(proto, mean=mean, std=std)
        np.testing.assert_allclose(outputs(model, x), outputs(load_model(proto), normalised), rtol=1e-14)
        assert model.onnx_bytes != load_model(proto).onnx_bytes
        assert model.sha256 == load_model(proto).sha256

    def test_nhwc(self) -> None:
        proto = image_net(("n", 2, 4, 3), 24)
        x = np.random.default_rng(0).random((5, 3, 2, 4))
        model = load_model(proto, mean=[0.1, 0.2, 0.3], layout="nhwc")
        assert (model.onnx_shape, model.graph.input_shape) == ((-1, 3, 2, 4), (3, 2, 4))
        shifted = x - np.array([0.1, 0.2, 0.3], np.float32).astype(float).reshape(3, 1, 1)
        np.testing.assert_allclose(
            outputs(model, x), outputs(load_model(proto), shifted.transpose(0, 2, 3, 1)), rtol=1e-14
        )

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"mean": [0.1, 0.2]}, "2 numbers.*3 channels"),
            ({"std": [0.1, 0.0, 0.2]}, "positive"),
            ({"std": 1e-60}, "positive"),
            ({"mean": float("nan")}, "finite"),
            ({"layout": "chwn"}, "layout"),
            ({"mean": [0.1] * 2, "layout": "nchw"}, "nhwc"),
        ],
    )
    def test_what_does_not_fit(self, options: Any, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            load_model(image_net((1, 3, 4, 2), 24), **options)
