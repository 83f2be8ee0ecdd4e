"""Builder: constants that are computed state an error that holds; torch weights keep their gradients; nodes merge."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
import pytest

from certify import ops
from certify.errors import ModelError
from certify.frontends import inexact
from certify.frontends.inexact import Known, known
from certify.frontends.lower import Builder
from certify.frontends.windows import Geometry

SCALE = 10**400  # digits of reference square roots


def numbers(rng: np.random.Generator, size: int) -> Any:
    """Doubles of all kinds: float32-valued, powers of two, tiny, huge, zero, and ordinary ones."""
    ordinary = rng.standard_normal(size) * 2.0 ** rng.integers(-30, 30, size)
    kinds = [
        ordinary,
        ordinary.astype(np.float32).astype(np.float64),
        2.0 ** rng.integers(-40, 40, size),
        ordinary * 2.0**-1000,
        ordinary * 2.0**400,
        np.zeros(size),
    ]
    return np.choose(rng.integers(0, len(kinds), size), kinds)


def exact(x: Known, i: int) -> tuple[Fraction, Fraction]:
    error = np.broadcast_to(x.error, x.shape)
    return Fraction(float(x.value[i])), Fraction(float(error[i]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide"])
def test_arithmetic_on_constants_states_a_true_error(name: str, seed: int) -> None:
    """For every pair of true operands within the stated errors the true result is within the result's error."""
    rng = np.random.default_rng(seed)
    a_value, b_value = numbers(rng, 300), numbers(rng, 300)
    if name == "divide":
        b_value = np.where(b_value == 0, 1.5, b_value)
    b_error = np.abs(b_value) * 2.0**-50 * rng.integers(0, 2, 300)
    a_error = np.abs(a_value) * 2.0**-48 * rng.integers(0, 2, 300)
    with np.errstate(all="ignore"):
        result = getattr(inexact, name)(Known(a_value, a_error), Known(b_value, b_error))
    functions = {
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "multiply": lambda a, b: a * b,
        "divide": lambda a, b: a / b,
    }
    for i in range(300):
        if not np.isfinite(result.value[i]):
            continue
        value, error = exact(result, i)
        for sign_a in (-1, 1):
            for sign_b in (-1, 1):
                left = Fraction(float(a_value[i])) + sign_a * Fraction(float(a_error[i]))
                right = Fraction(float(b_value[i])) + sign_b * Fraction(float(b_error[i]))
                assert abs(functions[name](left, right) - value) <= error


@pytest.mark.parametrize("seed", range(3))
def test_square_roots_state_a_true_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = np.abs(rng.standard_normal(200)) * 2.0 ** rng.integers(-60, 60, 200)
    error = value * 2.0**-45 * rng.integers(0, 2, 200)
    result = inexact.square_root(Known(value, error))
    for i in range(200):
        ours, stated = exact(result, i)
        for sign in (-1, 1):
            true = Fraction(float(value[i])) + sign * Fraction(float(error[i]))
            root = Fraction(isqrt(true.numerator * SCALE * SCALE // true.denominator), SCALE)
            assert abs(root - ours) <= stated + Fraction(1, SCALE)


def test_what_is_exact_states_no_error() -> None:
    a, b = np.float32([1.1, 0.3, -7.7]).astype(np.float64), np.float32([1e-10, 3.3, 5.5]).astype(np.float64)
    assert not np.any(inexact.multiply(known(a), known(b)).error)
    assert not np.any(inexact.divide(known(a * 1.23), known(np.array([4.0, 0.5, -2.0]))).error)
    assert not np.any(inexact.add(known(np.array([1.0, 0.5])), known(np.array([2.0, -0.25]))).error)


def test_divisions_by_zero_and_roots_of_nothing_are_refused() -> None:
    with pytest.raises(ModelError, match="divides by zero"):
        inexact.divide(known(1.0), Known(np.array([1e-3]), np.array([1e-3])))
    with pytest.raises(ModelError, match="square root"):
        inexact.square_root(known(np.array([0.0])))


def test_a_weight_whose_digits_are_lost_is_refused() -> None:
    with pytest.raises(ModelError, match="digits"):
        inexact.relative(Known(np.array([1.0, 1e-8]), np.array([0.0, 1e-9])))
    with pytest.raises(ModelError, match="comes out as 0"):
        inexact.relative(Known(np.array([1.0, 0.0]), np.array([0.0, 1e-300])))


def test_moves_merge_and_identities_vanish() -> None:
    build = Builder((3, 4, 5))
    assert build.reshape(0, (3, 4, 5)) == 0
    assert build.transpose(0, (0, 1, 2)) == 0
    assert build.scale(0, 1.0, np.zeros(5)) == 0
    twice = build.transpose(build.transpose(0, (2, 0, 1)), (1, 2, 0))
    assert twice == 0
    x = build.reshape(build.reshape(build.slice(build.transpose(0, (0, 2, 1)), (slice(0, 2),)), (40,)), (2, 20))
    graph = build.graph(x)
    assert [type(n.op) for n in graph.nodes] == [ops.Input, ops.Select]
    image = np.random.default_rng(0).random((2, 3, 4, 5))
    np.testing.assert_array_equal(graph(image), image.transpose(0, 1, 3, 2)[:, :2].reshape(2, 2, 20))


def test_dead_nodes_are_dropped_and_the_output_is_last() -> None:
    build = Builder((2,))
    kept = build.relu(0)
    build.sigmoid(kept)
    graph = build.graph(kept)
    assert [type(n.op) for n in graph.nodes] == [ops.Input, ops.Relu]


@pytest.mark.parametrize("with_sample", [False, True])
def test_torch_weights_keep_their_gradients(with_sample: bool) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    kernel, bias, gamma, beta, matrix = tensor(3, 2, 2, 2), tensor(3), tensor(3), tensor(3), tensor(4, 27)
    mean, variance = torch.tensor([0.1, -0.2, 0.3]).double(), torch.tensor([1.0, 2.0, 0.5]).double()
    x = torch.rand(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    build = Builder((2, 4, 4), x if with_sample else None)
    node = build.conv(0, kernel, bias, geometry=Geometry.plain(2))
    node = build.relu(build.batch_norm(node, gamma, beta, mean, variance, 1e-5))
    graph = build.graph(build.linear(build.reshape(node, (-1,)), matrix))
    assert len(graph.nodes) == 5

    def forward() -> Any:
        y = torch.nn.functional.conv2d(x, kernel, bias)
        y = torch.nn.functional.batch_norm(y, mean, variance, gamma, beta, eps=1e-5)
        return y.relu().flatten(1) @ matrix.T

    torch.testing.assert_close(graph(x), forward(), rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(graph(x).square().sum(), [kernel, bias, gamma, beta, matrix])
    theirs = torch.autograd.grad(forward().square().sum(), [kernel, bias, gamma, beta, matrix])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
