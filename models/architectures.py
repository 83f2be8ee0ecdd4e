"""Small reference networks, as torch modules on raw inputs of one sample's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def mlp(input_shape: Sequence[int], classes: int, hidden: Sequence[int] = (64, 64)) -> torch.nn.Module:
    """Flatten, then Linear and ReLU for each hidden width, then Linear to the logits."""
    from torch import nn

    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, classes))


def cnn(
    input_shape: Sequence[int], classes: int, channels: Sequence[int] = (16, 32), hidden: int = 64
) -> torch.nn.Module:
    """3x3 convolutions with ReLU, the first of stride 1, the others of stride 2; a hidden layer; the logits.

    input_shape: (C, H, W). No pooling and no normalisation: ReLU is the only nonlinear op.
    """
    from torch import nn

    before, height, width = input_shape
    layers: list[nn.Module] = []
    for number, count in enumerate(channels):
        stride = 1 if number == 0 else 2
        layers += [nn.Conv2d(before, count, kernel_size=3, stride=stride, padding=1), nn.ReLU()]
        before, height, width = count, (height - 1) // stride + 1, (width - 1) // stride + 1
    layers += [nn.Flatten(), nn.Linear(before * height * width, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))
