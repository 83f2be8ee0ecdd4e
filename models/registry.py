"""Architectures and initialisations by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from certify.errors import UsageError
from certify.models.architectures import Layer, convolutional, mlp
from certify.models.residual import RESNET18, RESNET110, WRN28_10, Stages, residual

if TYPE_CHECKING:
    import torch

Shape = Sequence[int]
Builder = Callable[[Shape, int, float], "torch.nn.Module"]

# CTBench's CNN7 (Mao et al. 2024), and what is left of it with fewer convolutions.
CNN7: tuple[Layer, ...] = ((64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1), (128, 3, 1, 1), (128, 3, 1, 1))
CNN5: tuple[Layer, ...] = ((64, 3, 1, 1), (64, 3, 2, 1), (128, 3, 2, 1))
CNN3: tuple[Layer, ...] = ((64, 3, 2, 1),)
# Wong & Kolter 2018, the network that verification papers call WK17 or "small".
WONG_KOLTER: tuple[Layer, ...] = ((16, 4, 2, 1), (32, 4, 2, 1))


def _scaled(count: int, width: float) -> int:
    return max(1, round(count * width))


def _cnn(layers: Sequence[Layer], hidden: int, *, batch_norm: bool) -> Builder:
    def build(shape: Shape, classes: int, width: float) -> torch.nn.Module:
        fitted = [(_scaled(count, width), kernel, stride, pad) for count, kernel, stride, pad in layers]
        return convolutional(shape, classes, fitted, _scaled(hidden, width), batch_norm=batch_norm)

    return build


def _residual(plan: Stages) -> Builder:
    def build(shape: Shape, classes: int, width: float) -> torch.nn.Module:
        stages = tuple((_scaled(channels, width), blocks) for channels, blocks in plan.stages)
        return residual(shape, classes, replace(plan, stem=_scaled(plan.stem, width), stages=stages))

    return build


def _mlp(shape: Shape, classes: int, width: float) -> torch.nn.Module:
    return mlp(shape, classes, (_scaled(256, width),) * 2)


ARCHITECTURES: Mapping[str, tuple[str, Builder]] = {
    "mlp": ("two hidden layers of 256", _mlp),
    "cnn-small": ("Wong-Kolter: 16 4x4 s2, 32 4x4 s2, FC 100", _cnn(WONG_KOLTER, 100, batch_norm=False)),
    "cnn-small-bn": (
        "cnn-small, trained with BatchNorm, which the export folds into the weights",
        _cnn(WONG_KOLTER, 100, batch_norm=True),
    ),
    "cnn3": ("3x3: 64 s2, FC 512, BatchNorm", _cnn(CNN3, 512, batch_norm=True)),
    "cnn5": ("3x3: 64, 64 s2, 128 s2, FC 512, BatchNorm", _cnn(CNN5, 512, batch_norm=True)),
    "cnn7": ("3x3: 64, 64, 128 s2, 128, 128, FC 512, BatchNorm", _cnn(CNN7, 512, batch_norm=True)),
    "resnet18": ("He et al. 2016, CIFAR stem", _residual(RESNET18)),
    "resnet110": ("He et al. 2016, 54 blocks of 16, 32, 64 channels", _residual(RESNET110)),
    "wrn28-10": ("Zagoruyko & Komodakis 2016, depth 28, width 10", _residual(WRN28_10)),
}


def build(name: str, input_shape: Shape, classes: int, *, width: float = 1.0, init: str = "default") -> torch.nn.Module:
    """The architecture of that name with random weights (torch's generator), all its layers `width` times as wide.

    input_shape: (C, H, W), or (n,) for mlp. init: see INITIALISATIONS. Raises UsageError, naming what there is.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"architecture {name!r} is not known; choose one of {', '.join(ARCHITECTURES)}")
    if init not in INITIALISATIONS:
        raise UsageError(f"initialisation {init!r} is not known; choose one of {', '.join(INITIALISATIONS)}")
    if not (math.isfinite(width) and width > 0):
        raise UsageError(f"width {width} must be a positive number: 1 is the architecture as published")
    module = ARCHITECTURES[name][1](tuple(input_shape), classes, width)
    INITIALISATIONS[init](module)
    return module


def _leave(module: torch.nn.Module) -> None:
    """torch's own initialisation stays."""


def interval_init(module: torch.nn.Module) -> None:
    """Weights of the affine layers but the last from N(0, 2 pi / n^2), n their fan-in (Shi et al. 2021).

    The last one, whose rows the margins merge, is left alone, as the authors' code leaves it.
    The width of an interval then neither grows nor falls from layer to layer: E|w| n / 2 = 1 with ReLU halving it.
    Values shrink by about sqrt(n), so that the network needs BatchNorm: without it, IBP training of cnn-small, half as
    wide, for 8 epochs of 12,000 images of MNIST stayed at one class (eps 0.3) or went to 68 % clean (eps 0.1), against
    77 % and 89 % from torch's own weights.
    """
    import torch

    affine = [part for part in module.modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    for part in affine[:-1]:
        fan_in = part.weight[0].numel()
        torch.nn.init.normal_(part.weight, std=math.sqrt(2 * math.pi) / fan_in)


def orthogonal_init(module: torch.nn.Module) -> None:
    """Orthogonal weights and no biases in every affine layer."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.orthogonal_(part.weight)
            if part.bias is not None:
                torch.nn.init.zeros_(part.bias)


INITIALISATIONS: Mapping[str, Callable[[torch.nn.Module], None]] = {
    "default": _leave,
    "interval": interval_init,
    "orthogonal": orthogonal_init,
}
