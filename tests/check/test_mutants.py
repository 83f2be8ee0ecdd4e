"""Mutants of the checker's engine: each is a damage that could make it accept what is false, and the laws must see it.

A mutant is one replacement in the source of one module; the package is imported anew around it, and the laws with it.
"""

from __future__ import annotations

import pytest
from mutated_checker import Mutant, broken, mutated

# module, what is there, what the mutant has instead
MUTANTS: dict[str, Mutant] = {
    "a backward pass drops the bias": (
        "backward",
        "self._add(look.dots(arithmetic.coefficients(rule.bias[None]), a)[0])",
        "pass",
    ),
    "a filter's bias is dropped": (
        "backward",
        "constant = zero if rule.bias is None else signs * rule.bias[places]",
        "constant = zero",
    ),
    "a filter's loss is dropped": (
        "backward",
        "arithmetic.wider * lost + arithmetic.tiny * _rows(bounds.floor[node], box))",
        "0 * lost)",
    ),
    "windows forget the pads": (
        "patches",
        "origin = spots * np.array(op.stride) - np.array(op.pads[: len(op.stride)])",
        "origin = spots * np.array(op.stride)",
    ),
    "windows move by the wrong stride": (
        "patches",
        "origin = old.origin * np.array(op.stride) - np.array(op.pads[: len(size)])",
        "origin = old.origin - np.array(op.pads[: len(size)])",
    ),
    "windows keep coefficients of the padding": (
        "patches",
        "values[rim] *= real[self.place[rim]]",
        "pass",
    ),
    "windows behind a convolution count as clean": ("patches", "whole), clean=False)", "whole), clean=True)"),
    "an interval drops the bias": ("interval", "value = value + rule.bias", "pass"),
    "the charge for A W is missing": (
        "interval",
        "loss = (arithmetic.gamma(rule.back) + inexact) * large",
        "loss = inexact * large",
    ),
    "the charge for A b is missing": (
        "interval",
        "loss = loss + arithmetic.gamma(chain(node.size)) * np.abs(rule.bias)",
        "pass",
    ),
    "an interval's rounding is missing": (
        "interval",
        "spread = spread + (arithmetic.slip(2 * rule.terms + 8) + inexact) * large",
        "spread = spread + inexact * large",
    ),
    "the error of a weight is missing": (
        "interval",
        "arithmetic.number(rule.weight_error) * slack",
        "arithmetic.number(0.0)",
    ),
    "the error of a bias is missing": (
        "interval",
        "spread, loss = spread + wrong, loss + wrong",
        "spread, loss = spread, loss",
    ),
    "the losses are not charged": (
        "backward",
        "self.error + look.charge(np.abs(a), arithmetic.wider * loss) + floor",
        "self.error + floor",
    ),
    "sums of readers are not charged": (
        "backward",
        "self.asked[node] = total\n        self._charge_rounding(node, total)",
        "self.asked[node] = total",
    ),
    "the least value's rounding is missing": (
        "region",
        "error = arithmetic.slip(2 * chain(count) + 4) * look",
        "error = 0 * look",
    ),
    "a mix's rounding is missing": ("steps", "arithmetic.gamma(max(counts)) * lost + underflow", "underflow"),
    "errors help instead of hurting": (
        "backward",
        "self.spread - self._slack(least, error)",
        "self.spread + self._slack(least, error)",
    ),
    "the spread helps": ("backward", "self.constant + least - self.spread", "self.constant + least + self.spread"),
    "lower and upper swapped over the box": (
        "region",
        "return value - spread, value + spread, error",
        "return value + spread, value - spread, error",
    ),
    "the box's middle for its ends": (
        "region",
        "return value - spread, value + spread, error",
        "return value, value, error",
    ),
    "the line above where the one below belongs": ("relax", "(low - slope) * by", "(slope - low) * by"),
    "the line above for both": ("backward", "rising += look.times(found.bend, large, out=large)", "pass"),
    "intercepts above left out": (
        "relax",
        "half = arithmetic.array(found.above) * by",
        "half = 0 * arithmetic.array(found.above)",
    ),
    "intercepts below left out": ("relax", "middle, half = middle + below, half - below", "pass"),
    "the spread of intercepts left out": ("backward", "self.spread = self.spread + spread", "pass"),
    "ReLU's chord too low": (
        "relax",
        "np.maximum(-slope * lower, upper * (1 - slope))",
        "np.minimum(-slope * lower, upper * (1 - slope)) / 2",
    ),
    "ReLU's chord not rounded up": (
        "relax",
        "(upper > 0), top + away(top), 0.0)",
        "(upper > 0), np.nextafter(top, 0), 0.0)",
    ),
    "an unsettled ReLU taken for settled": (
        "relax",
        "return np.where((lower < 0) & (upper > 0), top",
        "return np.where((lower < -0.3) & (upper > 0), top",
    ),
    "ReLU keeps negative values": (
        "relax",
        "return np.maximum(lower, 0.0), np.maximum(upper, 0.0)",
        "return np.maximum(lower, 0.0), upper * 0.9",
    ),
    "sigmoid's rounding is missing": ("relax", "error = near * SIGMOID_ERROR + 2 * TINY", "error = 0.0"),
    "exp's reduction is too short": ("relax", "(x - k * LN2_HIGH) - k * LN2_LOW", "x - k * LN2_HIGH"),
    "sigmoid's tangent touches where it may cross": (
        "relax",
        "tangent = g(touch) + np.minimum(tilt, 0.0)",
        "tangent = g(lower)",
    ),
    "sigmoid's line ignores the far end": ("relax", "np.minimum(tangent, g(upper))", "tangent"),
    "sigmoid above and below swapped": (
        "relax",
        "top = 1 - _sigmoid_below(-upper, -lower, slope)",
        "top = _sigmoid_below(lower, upper, slope)",
    ),
    "alpha beyond its range": (
        "relax",
        "below_slope=put(default.below_slope, slopes[0], (low < 0)",
        "below_slope=put(default.below_slope, slopes[0] * 1.5, (low < 0)",
    ),
    "slopes given to settled neurons": ("relax", "slopes[0], (low < 0) & (high > 0))", "slopes[0], low < high)"),
    "a multiplier's sign": (
        "backward",
        "minimum(arithmetic.wide, as_numbers(short), (lower, upper))",
        "minimum(arithmetic.wide, as_numbers(-short), (lower, upper))",
    ),
    "a multiplier never taken off": ("backward", "rest[:, places] = a[:, places] - short", "pass"),
    "a step's multipliers below used above": (
        "steps",
        "(-1, step.above, step.above_multipliers)",
        "(-1, step.above, step.below_multipliers)",
    ),
    "a step's multipliers left out": (
        "steps",
        "multipliers=_multipliers(bounds, step, lent, number, place)",
        "multipliers={}",
    ),
    "a multiplier at the wrong end": (
        "backward",
        "minimum(arithmetic.wide, as_numbers(short), (lower, upper))",
        "minimum(arithmetic.wide, as_numbers(short), (upper, lower))",
    ),
    "a child's cut on the wrong side": (
        "tree",
        "below[rows, column] = np.minimum(below[rows, column], cut)",
        "below[rows, column] = np.minimum(below[rows, column], -cut)",
    ),
    "the second child's cut on the wrong side": (
        "tree",
        "above[rows, column] = np.maximum(above[rows, column], cut)",
        "above[rows, column] = np.maximum(above[rows, column], cut + 0.1)",
    ),
    "children exchanged": ("tree", "np.concatenate([child, child + 1])", "np.concatenate([child + 1, child])"),
    "the second child forgotten": (
        "tree",
        "twice = np.concatenate([rows, rows + len(rows)])",
        "both.wanted[len(rows) :] = False\n        twice = np.concatenate([rows, rows + len(rows)])",
    ),
    "leaves need not answer": ("tree", "if work.open:", "if False:"),
    "a bound of zero is enough": ("checker", "if found.bound > 0}", "if found.bound > -0.5}"),
    "a tree's bound may be negative": ("tree", "else value > 0\n", "else value > -0.5\n"),
    "renewed nodes forget their box": (
        "tree",
        "over(self.bounds.model, batch.lower[:, box], batch.upper[:, box])",
        "over(self.bounds.model, batch.upper[:, box] - 0.1, batch.upper[:, box])",
    ),
    "sharpening takes off the wrong sign": (
        "tree",
        "joined, change = a + more, beta[:, 0] * arithmetic.number(float(k))",
        "joined, change = a - more, -beta[:, 0] * arithmetic.number(float(k))",
    ),
    "sharpening forgets the margin's constant": (
        "tree",
        "found = arithmetic.floats(value + c + change - error",
        "found = arithmetic.floats(value + c + beta[:, 0] * 2 - error",
    ),
    "a cap forgets that relu is 0": ("caps", "np.maximum(inactive, active)", "active"),
    "a cap forgets that relu is z": ("caps", "np.maximum(inactive, active)", "inactive"),
    "a cap's plane of the neuron from below": (
        "caps",
        "np.full(len(unit), -1.0)",
        "np.full(len(unit), 1.0)",
    ),
    "a cap's plane without its constant": ("caps", "active = b - value + error", "active = error - value"),
    "a cap's least value not rounded": (
        "caps",
        "inactive = error * arithmetic.grow - value + arithmetic.gamma(4) * np.abs(value)",
        "inactive = -value",
    ),
    "a cap's largest value not rounded": (
        "caps",
        "active = b - value + error + arithmetic.gamma(4) * (np.abs(b) + np.abs(value))",
        "active = b - value",
    ),
    "a cap's slope with the wrong sign": ("caps", "more[0][row] = -(v @ s)", "more[0][row] = v @ s"),
    "a cap's constant with the wrong sign": ("caps", "constant[row] - change", "constant[row] + change"),
    "a cap's ReLU is forgotten": ("caps", "np.add.at(more[part][row], where, v[of])", "pass"),
    "caps given to another entry": (
        "caps",
        "np.searchsorted(self.sorted, [entry, entry + 1])",
        "np.searchsorted(self.sorted, [0, 1])",
    ),
    "a cap's sums are not charged": (
        "caps",
        "error[row] + arithmetic.gamma(len(mine) + 1) * (lost",
        "error[row] + 0 * (lost",
    ),
    "caps above sigmoids": (
        "caps",
        "if any(not isinstance(bounds.model.kind(u), Relu) for u in set(unit.tolist())):",
        "if False:",
    ),
    "a polytope may be left over": ("checker", "if missing:", "if len(missing) > 1:"),
    "the margin forgets the offset": (
        "steps",
        "-np.add.reduceat(mix * offset, starts)",
        "0 * np.add.reduceat(mix * offset, starts)",
    ),
    "the first row for every row": ("steps", "mix[row] = 1.0", "mix[0] = 1.0"),
    "a ball's radius shrinks": (
        "region",
        "lower = np.nextafter(center - radius, -np.inf)",
        "lower = np.nextafter(center - radius / 2, -np.inf)",
    ),
    "the ball's dual norm too small": (
        "region",
        "return a @ center - radius * dual, error",
        "return a @ center - radius * dual / 2, error",
    ),
    "the rest of a split form ignored": ("region", "joint, slip = apart + ball", "joint, slip = ball"),
    "label and rival exchanged": (
        "checker",
        "np.eye(outputs)[label] - np.eye(outputs)[rivals]",
        "np.eye(outputs)[rivals] - np.eye(outputs)[label]",
    ),
    "a rival forgotten": (
        "checker",
        "for r in range(outputs) if r != label",
        "for r in range(outputs - 1) if r != label",
    ),
    "a convolution's transpose off by one": (
        "affine",
        "slice(t * d, t * d + (o - 1) * s + 1, s)",
        "slice(t * d, t * d + (o - 1) * s + 1, s) if t < 1 else slice(0, (o - 1) * s + 1, s)",
    ),
    "a kernel as large as the image, moved by pads": ("affine", " and not any(self.pads):", ":"),
    "a block's outputs in reverse": ("affine", "np.flip(taps, tuple(outputs)).transpose", "taps.transpose"),
    "a block's cells from the first one on": ("affine", "block = -(-(b - r) // s)", "block = f"),
    "a subtraction's sign": ("affine", "lambda a: [sign * a for sign in signs]", "lambda a: [a for sign in signs]"),
    "max's first operand counted": ("affine", "lambda a: (None, a, a)", "lambda a: (a, a, a)"),
    "max read as its smaller operand": (
        "interval",
        "np.minimum(upper, np.maximum(c, d))",
        "np.minimum(upper, np.minimum(c, d))",
    ),
    "overflow is overlooked": ("rounding", "if not np.isfinite(array).all():", "if False:"),
    "NaN counts as a proof": ("checker", "if found.bound > 0}", "if not found.bound <= 0}"),
    "float32: sums are free": (
        "single",
        "(e + SMALL + relative * s for e, s in zip(errors, large, strict=True))\n",
        "(e + SMALL for e in errors)\n",
    ),
    "float32: errors do not spread": (
        "single",
        "e + SMALL + relative * s",
        "relative * s",
    ),
    "float32: nothing is needed": ("single", "return list(deviation(bounds))", "return list(0 * deviation(bounds))"),
    "float32: an unknown deviation is none": ("single", "return math.inf\n    lost", "return 0.0\n    lost"),
    "float32: steps that hold in the reals do": ("checker", "if found.bound > found.lost}", "if found.bound > 0}"),
    "float32: trees that hold in the reals do": ("tree", "self.single &= bool((value > short)[good].all())", "pass"),
    "float32: sharpening by the margin in the reals": (
        "tree",
        "np.nextafter(k - lost, -np.inf) if self.ask.strict else k",
        "k",
    ),
    "float32: sharpened trees hold if they do in the reals": (
        "tree",
        "self.single &= self.ask.strict or not len(entries)",
        "pass",
    ),
    "float32: one polytope is enough": (
        "checker",
        "if len(single) == len(claim.polytopes)",
        "if single",
    ),
    "float32: one case is enough": ("checker", "if all(job.level ==", "if any(job.level =="),
    "together: margins of another box": ("steps", "shown[forms[k][0]].append", "shown[0].append"),
    "together: bounds of another box": ("interval", "a[number : number + 1] if many", "a[:1] if many"),
    "together: float32 by another box": ("steps", "told.needs[b]", "told.needs[0]"),
    "a row that goes on forgets its spread": ("backward", "walk.spread = self.spread[keep]", "pass"),
    "a row that goes on forgets its error": (
        "backward",
        "self.constant[keep], self.error[keep])",
        "self.constant[keep], 0 * self.error[keep])",
    ),
    "a row that goes on takes another's constant": (
        "backward",
        "[keep], self.constant[keep]",
        "[keep], np.sort(self.constant)[::-1][: keep.sum()]",
    ),
    "a row that goes on changes its box": ("backward", "else self.box[keep]", "else self.box[: keep.sum()]"),
    "a row that stops is not told from one that goes on": ("backward", "rows[further]\n", "rows[: further.sum()]\n"),
    "together: the first box for all": (
        "steps",
        "yield None if one else box[part]",
        "yield None if one else 0 * box[part]",
    ),
    "together: windows of another box": (
        "patches",
        "cells[window] + (box * (math",
        "cells[window] + (0 * box * (math",
    ),
    "together: dense rows of another box": (
        "patches",
        "out[part] = dot(a[part], vector[box : box + 1])",
        "out[part] = dot(a[part], vector[:1])",
    ),
    "together: lines of another box": (
        "patches",
        "np.multiply(a[part], vector[box], out=out[part])",
        "np.multiply(a[part], vector[0], out=out[part])",
    ),
    "together: errors of a smaller box": ("patches", "most[self.box])", "0 * most[self.box])"),
    "a window's errors by their least": ("patches", "most = vector.max(axis=1)", "most = vector.min(axis=1)"),
    "together: one failure is no one's": ("checker", "job.failure = error\n\n", "job.level = 'real'\n\n"),
    "CROWN forgets the upper side's sign": (
        "steps",
        "_meet(lower, upper, box, where, both[::2], -both[1::2])",
        "_meet(lower, upper, box, where, both[::2], both[::2] + 0.1)",
    ),
    "quick: float32 rounds as float64": ("rounding", "return U32 / U * (1 + 2.0**-5) if self.quick else 1", "return 1"),
    "quick: slopes and intercepts round as in float64": (
        "relax",
        "arithmetic.slip(4) * large + arithmetic.slip(chain(middle.shape[1])) * sum(both)",
        "arithmetic.gamma(4) * large + arithmetic.gamma(chain(middle.shape[1])) * sum(both)",
    ),
    "quick: the end of a pass rounds as in float64": (
        "region",
        "arithmetic.slip(2 * chain(count) + 4)",
        "arithmetic.gamma(2 * chain(count) + 4)",
    ),
    "quick: rows of float64 become float32 for nothing": (
        "backward",
        "            self._charge_rounding(node, short)\n",
        "            pass\n",
    ),
    "quick: readers' sums round as in float64": (
        "backward",
        "charge(np.abs(rows), arithmetic.slip(1) * size)",
        "charge(np.abs(rows), arithmetic.gamma(1) * size)",
    ),
    "quick: a row's losses are float64's": (
        "backward",
        "look.charge(np.abs(a), arithmetic.wider * loss)",
        "look.charge(np.abs(a), loss)",
    ),
    "quick: intervals round as in float64": (
        "interval",
        "arithmetic.slip(2 * rule.terms + 8)",
        "arithmetic.gamma(2 * rule.terms + 8)",
    ),
    "quick: sizes are rounded to nearest": ("rounding", "(values * (1 + 4 * U32) + SMALL)", "values"),
    "quick: float32's sums of errors do not grow": ("rounding", "* self.grow", "* 1"),
    "quick: sums too long": ("interval", "return node.size <= LONGEST and all(", "return all("),
    "quick: weights that float32 does not have": ("interval", "((s >= SMALL) & (s < 1 / SMALL)).all()", "True"),
    "quick: failures count as proofs": (
        "checker",
        "job.failure is not None or not job.proof.is_plain",
        "not job.proof.is_plain",
    ),
    "refining forgets the upper side's sign": (
        "steps",
        "_meet(lower, upper, box, where, sides[0], -sides[1])",
        "_meet(lower, upper, box, where, sides[0], sides[0] + 0.1)",
    ),
}
# Overflow is seen twice, so that overlooking it in one place alone does no harm.
HARMLESS = ("overflow is overlooked",)
TOGETHER = {"NaN counts as a proof": ["overflow is overlooked"]}
# How names begin -> a word in the names of the laws that are likely to see them.
LIKELY = {"quick": "quick", "a row that": "rows_stop"}


@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in HARMLESS])
def test_a_law_sees_the_mutant(name: str) -> None:
    with mutated(*(MUTANTS[n] for n in (*TOGETHER.get(name, []), name))) as laws:
        assert broken(laws, next((word for begin, word in LIKELY.items() if name.startswith(begin)), "")) is not None
