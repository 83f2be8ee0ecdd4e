"""Mutants of losses, attacks, schedules and loop: each is a mistake that training would hide, and a law must see it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import certify.trainers

HERE = Path(__file__).parent
PACKAGE = "certify.trainers"
OBJECTIVES, CERTIFIED, TRAINING, CENTRES, TAPS = "objectives", "certified", "training", "mahalanobis", "taps"

# file of laws, module, what is there, what the mutant has instead
MUTANTS: dict[str, tuple[str, str, str, str]] = {
    "a ball does not project": (OBJECTIVES, "objective", "moved.clamp(-self.epsilon, self.epsilon)", "moved"),
    "an L2 ball does not project": (OBJECTIVES, "objective", ".clamp(max=1.0)\n", ".clamp(min=1.0)\n"),
    "a projection leaves the input range": (
        OBJECTIVES,
        "objective",
        "return (x + moved).clamp(self.low, self.high)",
        "return x + moved",
    ),
    "Linf starts at x": (OBJECTIVES, "objective", "x + self.epsilon * noise)", "x + 0 * noise)"),
    "Linf starts on one side": (OBJECTIVES, "objective", "dtype=x.dtype) * 2 - 1", "dtype=x.dtype)"),
    "L2 starts on the sphere": (OBJECTIVES, "objective", "self.epsilon * share * noise", "self.epsilon * noise"),
    "the box forgets the range": (
        CERTIFIED,
        "objective",
        "return (x - self.epsilon).clamp(self.low, self.high), (x + self.epsilon).clamp(self.low, self.high)",
        "return x - self.epsilon, x + self.epsilon",
    ),
    "a ramp starts at 0": (
        OBJECTIVES,
        "objective",
        "(progress - begin) / (end - begin)",
        "progress / end",
    ),
    "a ramp that has ended is 0": (OBJECTIVES, "objective", "return 1.0", "return 0.0"),
    "an attack goes downhill": (OBJECTIVES, "ascent", "points + step * direction", "points - step * direction"),
    "an attack forgets to project": (
        OBJECTIVES,
        "ascent",
        "ball.project(points + step * direction, x)",
        "points + step * direction",
    ),
    "an attack projects around its start": (
        OBJECTIVES,
        "ascent",
        "ball.project(points + step * direction, x)",
        "ball.project(points + step * direction, start)",
    ),
    "steps of L2 are not normalised": (
        OBJECTIVES,
        "ascent",
        "slope / lengths(slope).clamp(min=1e-12)",
        "slope",
    ),
    "one step fewer": (OBJECTIVES, "ascent", "in range(steps)", "in range(steps - 1)"),
    "the label is its own rival": (
        OBJECTIVES,
        "ascent",
        "logits.masked_fill(label, -torch.inf).amax(1)",
        "logits.amax(1)",
    ),
    "survivors need not be right at x": (
        OBJECTIVES,
        "ascent",
        "(module(x).argmax(1) == y) & (module(points)",
        "(module(points)",
    ),
    "survivors need not be right at x'": (OBJECTIVES, "ascent", "& (module(points).argmax(1) == y)", ""),
    "PGD learns from clean samples": (
        OBJECTIVES,
        "adversarial",
        "                points = ascend(cross_entropies(module, batch.y), batch.x, start, ball, self.steps, step)\n"
        "        return torch.nn.functional.cross_entropy(module(points), batch.y)",
        "                points = ascend(cross_entropies(module, batch.y), batch.x, start, ball, self.steps, step)\n"
        "        return torch.nn.functional.cross_entropy(module(batch.x), batch.y)",
    ),
    "PGD starts at x": (
        OBJECTIVES,
        "adversarial",
        "            start = ball.draw(batch.x, batch.generator)\n            if",
        "            start = batch.x\n            if",
    ),
    "PGD attacks in training mode": (
        OBJECTIVES,
        "adversarial",
        "with batch.attacking(module):",
        "if True:",
    ),
    "PGD's step does not grow": (OBJECTIVES, "adversarial", "self.step * grown", "self.step"),
    "targeted PGD flees its target": (OBJECTIVES, "adversarial", "-toward(p)", "toward(p)"),
    "a target may be the label": (OBJECTIVES, "adversarial", "torch.randint(1, classes", "torch.randint(0, classes"),
    "fast steps by epsilon": (OBJECTIVES, "adversarial", "self.step_ratio * self.epsilon", "self.epsilon"),
    "fast starts at x": (
        OBJECTIVES,
        "adversarial",
        "start = ball.draw(batch.x, batch.generator)\n        score",
        "start = batch.x\n        score",
    ),
    "free's delta is not cut": (
        OBJECTIVES,
        "adversarial",
        "slope.sign()).clamp(-self.epsilon, self.epsilon)",
        "slope.sign())",
    ),
    "free's delta goes downhill": (OBJECTIVES, "adversarial", "+ self.epsilon * slope", "- self.epsilon * slope"),
    "free starts anew each batch": (
        OBJECTIVES,
        "adversarial",
        "whole = kept if len(kept)",
        "whole = 0 * kept if len(kept)",
    ),
    "KL from the moved side": (
        OBJECTIVES,
        "trades",
        "kl_div(moved.log_softmax(1), logits.softmax(1)",
        "kl_div(logits.log_softmax(1), moved.softmax(1)",
    ),
    "KL's clean side is held": (OBJECTIVES, "trades", "logits.softmax(1)", "logits.softmax(1).detach()"),
    "KL's moved side is held": (OBJECTIVES, "trades", "moved.log_softmax(1)", "moved.log_softmax(1).detach()"),
    "KL's mean over classes, too": (OBJECTIVES, "trades", '"batchmean"', '"mean"'),
    "beta on the wrong term": (
        OBJECTIVES,
        "trades",
        "natural + self.beta * divergence(clean, module(points))",
        "self.beta * natural + divergence(clean, module(points))",
    ),
    "TRADES starts at x": (OBJECTIVES, "trades", "x + START * noise, ball", "x, ball"),
    "TRADES starts far away": (OBJECTIVES, "trades", "START = 0.001", "START = 1.0"),
    "TRADES learns from p(x) in evaluation mode": (
        OBJECTIVES,
        "trades",
        "clean = module(batch.x)\n",
        "with batch.attacking(module):\n            clean = module(batch.x)\n",
    ),
    "MART's KL is not weighed": (OBJECTIVES, "mart", "(1 - clean[label].exp())", "1.0"),
    "MART weighs by confidence": (OBJECTIVES, "mart", "(1 - clean[label].exp())", "clean[label].exp()"),
    "MART's KL from the moved side": (
        OBJECTIVES,
        "mart",
        "(clean.exp() * (clean - moved))",
        "(moved.exp() * (moved - clean))",
    ),
    "MART's margin of the clean sample": (OBJECTIVES, "mart", "rival = moved.exp()", "rival = clean.exp()"),
    "MART's cross-entropy of the clean sample": (OBJECTIVES, "mart", "= -moved[label]", "= -clean[label]"),
    "MART's rivals hold the label": (OBJECTIVES, "mart", ".masked_fill(label, 0).amax(1)", ".amax(1)"),
    "MART's weight is held": (OBJECTIVES, "mart", "clean[label].exp()", "clean[label].exp().detach()"),
    "centres are too short": (CENTRES, "mahalanobis", "return length * mu", "return mu"),
    "centres lean by 1 / L": (
        CENTRES,
        "mahalanobis",
        "-(1 / (classes - 1) + mu[k] @ mu[j])",
        "-(1 / classes + mu[k] @ mu[j])",
    ),
    "the head is M z": (CENTRES, "mahalanobis", "head.weight.copy_(2 * mu)", "head.weight.copy_(mu)"),
    "the head learns": (CENTRES, "mahalanobis", "head.weight.requires_grad_(False)", "pass"),
    "features flee from twice the centre": (CENTRES, "mahalanobis", "head.weight[batch.y] / 2", "head.weight[batch.y]"),
    "MMC without a half": (CENTRES, "mahalanobis", "apart.square().sum(1).mean() / 2", "apart.square().sum(1).mean()"),
    "MMC learns from clean samples": (CENTRES, "mahalanobis", "apart = body(points)", "apart = body(batch.x)"),
    "MMC's attack in training mode": (
        CENTRES,
        "mahalanobis",
        "with batch.attacking(module):",
        "if True:",
    ),
    "MM-LDA on all of the logits": (CENTRES, "mahalanobis", "module(batch.x) / 2, batch.y", "module(batch.x), batch.y"),
    "centres of the center loss flee": (
        TRAINING,
        "mahalanobis",
        "means - self.rate * change",
        "means + self.rate * change",
    ),
    "center loss counts no one": (TRAINING, "mahalanobis", "(1 + count)", "(2 + count)"),
    "center loss without its weight": (TRAINING, "mahalanobis", "self.weight * near", "near"),
    "reversed labels are shared by all": (
        OBJECTIVES,
        "reverse",
        "(logs.shape[1] - 1)",
        "logs.shape[1]",
    ),
    "RCE is not negated": (OBJECTIVES, "reverse", "(-module(batch.x))", "module(batch.x)"),
    "RCE counts the label": (OBJECTIVES, "reverse", "-(logs.sum(1) - own)", "-logs.sum(1)"),
    "ADP lowers the entropy": (OBJECTIVES, "ensemble", "loss - self.alpha * entropy", "loss + self.alpha * entropy"),
    "ADP lowers the volume": (OBJECTIVES, "ensemble", "- self.beta * volume", "+ self.beta * volume"),
    "ADP leaves out another class": (
        OBJECTIVES,
        "ensemble",
        "one_hot(batch.y, classes)",
        "one_hot((batch.y + 1) % classes, classes)",
    ),
    "ADP's entropy of one member": (OBJECTIVES, "ensemble", "mean = chances.mean(0)", "mean = chances[0]"),
    "ADP's rests are not normalised": (
        OBJECTIVES,
        "ensemble",
        "torch.nn.functional.normalize(chances[:, others].reshape(count, len(batch.y), classes - 1), dim=2)",
        "chances[:, others].reshape(count, len(batch.y), classes - 1)",
    ),
    "an ensemble is a sum": (OBJECTIVES, "ensemble", "total * (1 / len(self.members))", "total"),
    "noise without its deviation": (OBJECTIVES, "noise", "return sigma * torch.randn", "return torch.randn"),
    "SmoothAdv flees uphill": (OBJECTIVES, "noise", "return -chances.gather", "return chances.gather"),
    "SmoothAdv averages logits": (
        OBJECTIVES,
        "noise",
        "logits.softmax(1).reshape(len(y), m, -1).mean(1)",
        "logits.reshape(len(y), m, -1).mean(1).softmax(1)",
    ),
    "SmoothAdv learns under other noise": (
        OBJECTIVES,
        "noise",
        "logits = module(points.repeat_interleave(m, 0) + noise)\n        return",
        "logits = module(points.repeat_interleave(m, 0) + noisy(batch, self.sigma, m))\n        return",
    ),
    "SmoothAdv's noise of other samples": (
        OBJECTIVES,
        "noise",
        "logits = module(points.repeat_interleave(m, 0) + noise)\n        return",
        "logits = module(points.repeat(m, 1) + noise)\n        return",
    ),
    "MACER without beta": (OBJECTIVES, "noise", "(self.beta * logits)", "logits"),
    "MACER's hinge upside down": (OBJECTIVES, "noise", "missing = self.gamma - (", "missing = self.gamma + ("),
    "MACER counts the wrong": (OBJECTIVES, "noise", "(best.indices[:, 0] == batch.y) & ", ""),
    "MACER without its half": (OBJECTIVES, "noise", "self.sigma / 2 * missing", "self.sigma * missing"),
    "MACER counts far ones": (OBJECTIVES, "noise", " & (gap.abs() <= self.gamma)", ""),
    "the quantile of another scale": (OBJECTIVES, "noise", "math.sqrt(2) * (2 * p - 1)", "(2 * p - 1)"),
    "noisy TRADES without beta": (OBJECTIVES, "noise", "+ self.beta * divergence", "+ divergence"),
    "kappa reversed": (
        CERTIFIED,
        "certified",
        "share * clean + (1 - share) * self",
        "(1 - share) * clean + share * self",
    ),
    "kappa does not move": (
        CERTIFIED,
        "certified",
        "self.kappa[0] + (self.kappa[1] - self.kappa[0]) * grown",
        "self.kappa[0]",
    ),
    "the radius does not grow": (
        CERTIFIED,
        "certified",
        "Ball(self.epsilon * grown, ",
        "Ball(self.epsilon, ",
    ),
    "regularisers stay": (CERTIFIED, "certified", "self.regularise * (1 - grown)", "self.regularise"),
    "CROWN-IBP's share stays": (CERTIFIED, "certified", "(self.crown[1] - self.crown[0]) * ramped", "0 * ramped"),
    "CROWN-IBP's shares exchanged": (
        CERTIFIED,
        "certified",
        "(1 - share) * bounded + share * crown_margins",
        "share * bounded + (1 - share) * crown_margins",
    ),
    "fusion's shares exchanged": (
        CERTIFIED,
        "certified",
        "(1 - share) * worst_loss(bounded, batch.y) + share * fused",
        "share * worst_loss(bounded, batch.y) + (1 - share) * fused",
    ),
    "margins upside down": (
        CERTIFIED,
        "bounds",
        "unit[y][:, None, :] - unit[None]",
        "unit[None] - unit[y][:, None, :]",
    ),
    "rows are not merged": (
        CERTIFIED,
        "bounds",
        "margins: torch.Tensor = affine_tail(known, row_form(known.graph.output, rows_of(y, known)))",
        "box = known.boxes[-1]\n    assert box is not None\n    margins = box[0].gather(1, y[:, None]) - box[1]",
    ),
    "the worst loss is the best": (CERTIFIED, "bounds", "cross_entropy(-margins, y)", "cross_entropy(margins, y)"),
    "statistics are held": (CERTIFIED, "bounds", "inputs[0].mean(axes)", "inputs[0].mean(axes).detach()"),
    "the variance is the sample's": (CERTIFIED, "bounds", "correction=0", "correction=1"),
    "statistics are the running ones": (
        CERTIFIED,
        "bounds",
        "graph_from_torch(module, x, seen)",
        "graph_from_torch(module, x)",
    ),
    "tightness upside down": (
        CERTIFIED,
        "bounds",
        "width / _width(known, index).clamp(min=1e-12)",
        "_width(known, index) / width.clamp(min=1e-12)",
    ),
    "balance without variance": (CERTIFIED, "bounds", "for ratio in ratios:", "for ratio in ratios[:1]:"),
    "balance without mean": (CERTIFIED, "bounds", "for ratio in ratios:", "for ratio in ratios[1:]:"),
    "a chord of the fused loss too steep": (CERTIFIED, "bounds", "(high - low) / torch", "2 * (high - low) / torch"),
    "SABR's box is the whole one": (CERTIFIED, "sabr", "ball.scaled(self.small).box(center)", "ball.box(center)"),
    "SABR's box leaves the ball": (
        CERTIFIED,
        "sabr",
        "ball.scaled(1 - self.small).project(points, batch.x)",
        "points",
    ),
    "SABR attacks in training mode": (
        CERTIFIED,
        "sabr",
        "with batch.attacking(module):",
        "if True:",
    ),
    "the attack's reach is forgotten": (CERTIFIED, "sabr", "ball.scaled(self.reach)", "ball"),
    "the attack's step is absolute": (CERTIFIED, "sabr", "self.step * wide.epsilon", "self.step"),
    "MTL-IBP's mix reversed": (
        CERTIFIED,
        "expressive",
        "(1 - self.mix) * worst_loss(reached, batch.y) + self.mix * worst",
        "self.mix * worst_loss(reached, batch.y) + (1 - self.mix) * worst",
    ),
    "CC-IBP's mix reversed": (
        CERTIFIED,
        "expressive",
        "(1 - self.mix) * reached + self.mix * bounded",
        "self.mix * reached + (1 - self.mix) * bounded",
    ),
    "Exp-IBP's mix reversed": (
        CERTIFIED,
        "expressive",
        "first ** (1 - self.mix) * second**self.mix",
        "first ** self.mix * second ** (1 - self.mix)",
    ),
    "expressive losses on clean samples": (CERTIFIED, "expressive", "logits = now.at(points)", "logits = now.logits"),
    "TAPS multiplies nothing": (TAPS, "taps", "return boosted * bounded", "return boosted + bounded"),
    "TAPS on the ramp": (TAPS, "taps", "if ramped(batch.progress, self.ramp) < 1:", "if False:"),
    "TAPS is not boosted": (TAPS, "taps", "self.boost * estimate - (self.boost - 1) * estimate.detach()", "estimate"),
    "TAPS flees downhill": (TAPS, "taps", "lambda p: -margins(p)", "lambda p: margins(p)"),
    "TAPS' connector has no slope": (TAPS, "taps", "to_upper * (upper - upper.detach())", "0 * upper"),
    "TAPS' connector of the far bound": (
        TAPS,
        "taps",
        "((points - upper) / slack + 1)",
        "((lower - points) / slack + 1)",
    ),
    "TAPS leaves its box": (TAPS, "taps", "slope.sign()).clamp(lower, upper)", "slope.sign())"),
    "the rate never decays": (TRAINING, "schedule", "progress >= point for", "progress > 2 for"),
    "the rate decays late": (TRAINING, "schedule", "progress >= point for", "progress > point for"),
    "weight decay is lost": (
        TRAINING,
        "schedule",
        "lr=self.learning_rate, weight_decay=self.weight_decay)\n        return torch.optim.SGD",
        "lr=self.learning_rate)\n        return torch.optim.SGD",
    ),
    "momentum is lost": (TRAINING, "schedule", ", momentum=self.momentum", ""),
    "gradients are not clipped": (
        TRAINING,
        "loop",
        "torch.nn.utils.clip_grad_norm_(self.module.parameters(), schedule.clip)",
        "pass",
    ),
    "gradients pile up": (TRAINING, "loop", "self._optimizer.zero_grad(set_to_none=True)", "pass"),
    "the rate is not set": (TRAINING, "loop", 'group["lr"] = schedule.rate_at(batch.progress)', "pass"),
    "L1 is lost": (TRAINING, "loop", "loss = loss + schedule.l1 *", "loss = loss + 0 *"),
    "L1 counts biases": (TRAINING, "loop", " if p.ndim > 1)", ")"),
    "progress stands still": (TRAINING, "loop", "(self.done + number / len(parts))", "self.done"),
    "samples are not shuffled": (
        TRAINING,
        "loop",
        "torch.randperm(len(samples.y), generator=self._order)",
        "torch.arange(len(samples.y))",
    ),
    "every batch draws the same": (TRAINING, "loop", "{self.seed}/{self.done}/{number}/", "{self.seed}/"),
    "replays draw the same": (TRAINING, "loop", "/{replay}/", "/"),
    "batches are not replayed": (TRAINING, "loop", "in range(schedule.replays)", "in range(1)"),
    "weights are not averaged": (TRAINING, "loop", "mean.lerp_(now, share)", "pass"),
    "EMA's share reversed": (
        TRAINING,
        "loop",
        "max(1 - self.schedule.ema_decay, 1 / self._taken)",
        "max(self.schedule.ema_decay, 1 / self._taken)",
    ),
    "SWA from the start": (TRAINING, "loop", " and self.done > schedule.average_from * schedule.epochs", ""),
    "a resumed order starts anew": (TRAINING, "loop", 'self._order.set_state(state["order"].cpu())', "pass"),
    "a resumed optimizer starts anew": (
        TRAINING,
        "loop",
        'self._optimizer.load_state_dict(state["optimizer"])',
        "pass",
    ),
    "a resumed memory is empty": (TRAINING, "loop", 'self.memory = dict(state["memory"])', "pass"),
    "a resumed mean counts anew": (TRAINING, "loop", 'state["done"], state["taken"]', 'state["done"], 0'),
    "images are not flipped": (
        TRAINING,
        "schedule",
        "torch.where(draw(2).bool(), columns.flip(1), columns)",
        "columns",
    ),
    "images are not moved": (
        TRAINING,
        "schedule",
        "rows = draw(2 * padding + 1)",
        "rows = padding + 0 * draw(2 * padding + 1)",
    ),
}


@contextmanager
def mutated(module: str, old: str, new: str) -> Iterator[None]:
    """The package is imported anew around the mutant; afterwards all is as before."""
    kept = {name: found for name, found in sys.modules.items() if name.startswith(PACKAGE)}
    for name in kept:
        del sys.modules[name]
    before = certify.trainers
    try:
        spec = importlib.util.find_spec(f"{PACKAGE}.{module}")
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{module}: {old!r} stands there {source.count(old)} times"
        made = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = made
        exec(compile(source.replace(old, new), spec.origin, "exec"), made.__dict__)
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
            del sys.modules[name]
        sys.modules.update(kept)
        certify.trainers = before


def laws(name: str) -> ModuleType:
    """A file of laws, imported anew around what `mutated` has put in place."""
    spec = importlib.util.spec_from_file_location(f"laws_{name}", HERE / f"test_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def cases(law: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """The arguments of a law, as its parametrize marks give them."""
    marks = [mark for mark in getattr(law, "pytestmark", []) if mark.name == "parametrize"]
    for values in itertools.product(*(mark.args[1] for mark in marks)):
        found: dict[str, Any] = {}
        for mark, value in zip(marks, values, strict=True):
            if isinstance(mark.args[0], str):
                found[mark.args[0]] = value
            else:
                found.update(zip(mark.args[0], value, strict=True))
        yield found


def broken(found: ModuleType) -> str | None:
    """The first law of the file that does not hold."""
    for name, law in inspect.getmembers(found, inspect.isfunction):
        if not name.startswith("test_"):
            continue
        for arguments in cases(law):
            try:
                law(**arguments)
            except (Exception, pytest.fail.Exception):
                return name
    return None


@pytest.mark.long
@pytest.mark.parametrize("file", [OBJECTIVES, CERTIFIED, TRAINING, CENTRES, TAPS])
def test_without_a_mutant_every_law_holds(file: str) -> None:
    assert broken(laws(file)) is None


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_every_mutant_breaks_a_law(name: str) -> None:
    file, *mutant = MUTANTS[name]
    with mutated(*mutant):
        assert broken(laws(file)) is not None
