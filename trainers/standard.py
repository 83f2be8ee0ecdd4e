"""Standard training: the mean cross-entropy on clean samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cross_entropy(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, progress: float) -> torch.Tensor:
    """mean -log softmax(module(x))_y, an Objective."""
    import torch

    return torch.nn.functional.cross_entropy(module(x), y)
