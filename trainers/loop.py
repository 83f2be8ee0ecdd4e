"""One training loop for every objective: seeded batches, averaged weights, and a state that goes on bit for bit."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from certify.errors import UsageError
from certify.frontends.torch_export import evaluation
from certify.trainers.objective import Batch, Objective
from certify.trainers.schedule import Schedule, augmented
from certify.trainers.team import ALONE, Team

if TYPE_CHECKING:
    import torch

PIECE = 1000  # samples that are evaluated at once


@dataclass(frozen=True, eq=False)
class Samples:
    """x (N, ...) and y (N,), on the device that trains."""

    x: torch.Tensor
    y: torch.Tensor

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not len(self.y):
            raise UsageError(f"{len(self.x)} samples and {len(self.y)} labels: give as many labels, at least one")


@dataclass
class Trainer:
    """A training under way: `epoch()` trains on all samples once; `state()` is what going on later needs.

    seed: of the order of the samples and of all randomness of the objective; the module's initialisation is the
    caller's. Equal states go on equally, bit for bit, on the same machine with the same number of threads.
    """

    module: torch.nn.Module
    samples: Samples
    objective: Objective
    schedule: Schedule
    seed: int
    team: Team = ALONE
    done: int = 0
    memory: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        self._optimizer = self.schedule.make_optimizer(self.module)
        self._order = torch.Generator().manual_seed(self.seed)
        self._mean: torch.nn.Module | None = None
        self._taken = 0

    @property
    def finished(self) -> bool:
        return self.done >= self.schedule.epochs

    @property
    def answer(self) -> torch.nn.Module:
        """The module with averaged weights where there are any, else the module itself."""
        return self.module if self._mean is None else self._mean

    def epoch(self, pulse: Callable[[int, int], None] | None = None) -> float:
        """Train on every sample once; the mean loss. Raises UsageError, naming epoch and batch, where it diverges.

        pulse: told after each batch how many are done, of how many.
        """
        import torch

        schedule, samples = self.schedule, self.samples
        self.module.train()
        order = torch.randperm(len(samples.y), generator=self._order).to(samples.y.device)
        # BatchNorm has no statistics of one sample: a last batch of one joins the one before.
        parts = list(torch.split(order, schedule.batch_size))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        total = samples.x.new_zeros(())
        for number, rows in enumerate(parts):
            progress = (self.done + number / len(parts)) / schedule.epochs
            for replay in range(schedule.replays):
                generator = self._generator(number, replay)
                mine = self.team.share(rows)
                x = samples.x[mine]
                x = augmented(x, schedule.augment, generator)
                batch = Batch(x, samples.y[mine], progress, generator, self.memory, schedule.amp)
                loss = self._step(batch, len(mine) / len(rows) if len(mine) < len(rows) else 1 / self.team.size)
                if not bool(torch.isfinite(loss)):
                    raise UsageError(
                        f"training diverged in epoch {self.done + 1}, batch {number + 1}: the loss is {loss.item()}; "
                        "lower the learning rate or the radius, or clip gradients more"
                    )
                total += loss * len(rows)
            if pulse is not None:
                pulse(number + 1, len(parts))
        self.done += 1
        self.team.agree(self.module)
        if schedule.average == "swa" and self.done > schedule.average_from * schedule.epochs:
            self._average()
        self.module.eval()
        return float(total) / (len(order) * schedule.replays)

    def _step(self, batch: Batch, weight: float) -> torch.Tensor:
        """One step of the optimizer; the loss. weight: of this process's share of the batch."""
        import torch

        schedule = self.schedule
        for group in self._optimizer.param_groups:
            group["lr"] = schedule.rate_at(batch.progress)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.objective(self.module, batch)
        if schedule.l1:
            loss = loss + schedule.l1 * sum(p.abs().sum() for p in self.module.parameters() if p.ndim > 1)
        loss = weight * loss
        whole = loss.detach().clone()
        self.team.add(whole)
        if not bool(torch.isfinite(whole)):
            return whole
        loss.backward()  # type: ignore[no-untyped-call]
        if self.team.size > 1 and self.memory:
            raise UsageError("this method keeps something from batch to batch; train it in one process")
        self.team.add_gradients(self.module)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), schedule.clip)
        self._optimizer.step()
        if schedule.average == "ema":
            self._average()
        return whole

    def _generator(self, number: int, replay: int) -> torch.Generator:
        """A batch's own randomness: a function of seed, epoch, batch and replay, so that no state need be kept."""
        import torch

        digest = hashlib.sha256(f"{self.seed}/{self.done}/{number}/{replay}/{self.team.rank}".encode()).digest()
        return torch.Generator(self.samples.x.device).manual_seed(int.from_bytes(digest[:7], "big"))

    def _average(self) -> None:
        """Take the weights of now into the mean; BatchNorm's statistics are averaged alike."""
        import torch

        self._taken += 1
        if self._mean is None:
            self._mean = copy.deepcopy(self.module).eval().requires_grad_(False)
            return
        # At first the plain mean, so that the early steps do not count for ever.
        share = max(1 - self.schedule.ema_decay, 1 / self._taken) if self.schedule.average == "ema" else 1 / self._taken
        with torch.no_grad():
            for mean, now in zip(_tensors(self._mean), _tensors(self.module), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(now, share)
                else:
                    mean.copy_(now)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only, on the CPU where torch.save puts them back from."""
        return {
            "done": self.done,
            "module": self.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "order": self._order.get_state(),
            "memory": self.memory,
            "mean": None if self._mean is None else self._mean.state_dict(),
            "taken": self._taken,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same module, objective and schedule. Raises UsageError where it is of another."""
        try:
            self.module.load_state_dict(state["module"])
            self._optimizer.load_state_dict(state["optimizer"])
            if state["mean"] is not None:
                self._mean = copy.deepcopy(self.module).eval().requires_grad_(False)
                self._mean.load_state_dict(state["mean"])
        except (KeyError, RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise UsageError(f"the checkpoint is of another architecture or training: {first}") from error
        self.done, self._taken = state["done"], state["taken"]
        self._order.set_state(state["order"].cpu())
        self.memory = dict(state["memory"])
        self.module.eval()


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def train(module: torch.nn.Module, samples: Samples, objective: Objective, schedule: Schedule, *, seed: int) -> None:
    """Minimise the objective over the samples, in place; the module ends in evaluation mode with averaged weights."""
    trainer = Trainer(module, samples, objective, schedule, seed)
    while not trainer.finished:
        trainer.epoch()
    if trainer.answer is not module:
        module.load_state_dict(trainer.answer.state_dict())


def accuracy(module: torch.nn.Module, samples: Samples) -> float:
    """Fraction of samples whose largest logit is the label's, in evaluation mode."""
    import torch

    right = 0
    with torch.no_grad(), evaluation(module):
        for x, y in zip(torch.split(samples.x, PIECE), torch.split(samples.y, PIECE), strict=True):
            right += int((module(x).argmax(dim=1) == y).sum())
    return right / len(samples.y)
