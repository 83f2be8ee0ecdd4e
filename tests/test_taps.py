"""The gradient of a strided transposed convolution, where outputs are cropped or left over too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from certify.arrays import convolve_transposed


@pytest.mark.parametrize("seed", range(40))
def test_the_gradient_is_that_of_the_linear_map(seed):
    """<conv^T(x), g> is linear in x: with gradient y, <conv^T(z), g> = <z, y> for every z."""
    rng = np.random.default_rng([72, seed])
    stride, dilation, kernel = (tuple(int(n) for n in rng.integers(1, top, 2)) for top in (4, 3, 5))
    begin = tuple(int(n) for n in rng.integers(0, 3, 2))
    size = tuple(int(n) for n in rng.integers(1, 5, 2))
    full = [
        (n - 1) * s + (k - 1) * d + 1 - b for n, s, k, d, b in zip(size, stride, kernel, dilation, begin, strict=True)
    ]
    room = tuple(max(1, f + int(extra)) for f, extra in zip(full, rng.integers(-2, 3, 2), strict=True))
    weight, x, z = (
        torch.tensor(rng.standard_normal(shape)) for shape in ((3, 2, *kernel), (4, 3, *size), (4, 3, *size))
    )
    g = torch.tensor(rng.standard_normal((4, 2, *room)))
    x.requires_grad_()

    def back(rows):
        return convolve_transposed(rows, weight, stride, (*begin, 0, 0), dilation, 1, room)

    (y,) = torch.autograd.grad((back(x) * g).sum(), x)
    torch.testing.assert_close((back(z) * g).sum(), (y * z).sum())
