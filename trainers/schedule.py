"""How long, how fast and in what steps to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.errors import UsageError

if TYPE_CHECKING:
    import torch

OPTIMIZERS = ("adam", "sgd")
RATES = ("step", "cyclic", "cosine")
AVERAGES = ("none", "ema", "swa")
CROPS = ("none", "zeros4", "edge2")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; points in time are fractions of the training.

    rate: "step", times decay at each of decay_at; "cyclic", linearly up until peak_at and down to 0; "cosine".
    clip: the largest norm of a gradient; bounds' gradients have rare large ones. l1: weight of the sum of |w| over
    linear and convolution weights. replays: steps on each batch. average: of the weights, "ema" (each step, by
    ema_decay) or "swa" (the mean over the epochs after average_from). augment: flips, and crops
    of images padded by "zeros4" (He et al. 2016) or "edge2" (Shi et al. 2021).
    amp: attacks run in bfloat16 (mixed precision); the loss and bounds never do.
    drop: stop where the adversarial accuracy falls by so much from one epoch to the next, keeping the epoch before.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    rate: str = "step"
    decay_at: tuple[float, ...] = (0.7, 0.9)
    decay: float = 0.1
    peak_at: float = 0.4
    clip: float = 10.0
    l1: float = 0.0
    replays: int = 1
    average: str = "none"
    average_from: float = 0.9
    ema_decay: float = 0.999
    augment: str = "none"
    drop: float | None = None
    amp: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("rate", self.rate, RATES),
            ("average", self.average, AVERAGES),
            ("augment", self.augment, CROPS),
        ):
            if value not in known:
                raise UsageError(f"{name} {value!r} is not known; choose one of {', '.join(known)}")
        for name, number in (("epochs", self.epochs), ("batch_size", self.batch_size), ("replays", self.replays)):
            if number < 1:
                raise UsageError(f"{name} is {number}; give 1 or more")
        for name, share in (("learning_rate", self.learning_rate), ("decay", self.decay), ("clip", self.clip)):
            # An infinite clip clips nothing.
            if not share > 0 or (math.isinf(share) and name != "clip"):
                raise UsageError(f"{name} is {share}; give a positive number")
        for name, share in (("l1", self.l1), ("weight_decay", self.weight_decay)):
            if not 0 <= share < math.inf:
                raise UsageError(f"{name} is {share}; give a number of 0 or more")
        for name, share in (("momentum", self.momentum), ("ema_decay", self.ema_decay)):
            if not 0 <= share < 1:
                raise UsageError(f"{name} is {share}; give a number from 0 to below 1")

    def rate_at(self, progress: float) -> float:
        """The learning rate at a fraction of the training."""
        if self.rate == "cyclic":
            rising = progress / self.peak_at if progress < self.peak_at else (1 - progress) / (1 - self.peak_at)
            return self.learning_rate * rising
        if self.rate == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        return self.learning_rate * self.decay ** sum(progress >= point for point in self.decay_at)

    def make_optimizer(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        """Adam or SGD with momentum over the parameters that learn."""
        import torch

        learning = [p for p in module.parameters() if p.requires_grad]
        if self.optimizer == "adam":
            return torch.optim.Adam(learning, lr=self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(learning, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)


def augmented(x: torch.Tensor, how: str, generator: torch.Generator) -> torch.Tensor:
    """Each image (B, C, H, W) cropped anew from itself padded, and flipped with probability one half; see Schedule."""
    import torch

    if how == "none":
        return x
    if x.ndim != 4:
        raise UsageError(f"augment {how!r} is for images (C, H, W), samples have shape {tuple(x.shape[1:])}")
    kind, padding = ("constant", 4) if how == "zeros4" else ("replicate", 2)
    count, _, height, width = x.shape
    wide = torch.nn.functional.pad(x, (padding,) * 4, kind)

    def draw(limit: int) -> torch.Tensor:
        return torch.randint(limit, (count, 1), generator=generator, device=x.device)

    rows = draw(2 * padding + 1) + torch.arange(height, device=x.device)
    columns = draw(2 * padding + 1) + torch.arange(width, device=x.device)
    columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    each = torch.arange(count, device=x.device)[:, None, None]
    return wide.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
