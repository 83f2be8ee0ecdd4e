"""The command that asks the same of some samples again, and how they are named."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from certify.options import Radius, format_ids
from certify.report.result import Report

# What decides about a sample, apart from which samples and which eps.
_FLAGS = ("--trust-solver",)
_GIVEN = frozenset(
    {"--data", "--data-dir", "--split", "--norm", "--mean", "--std", "--layout", "--input-range"}
    | {"--method", "--timeout", "--seed", "--device", "--arithmetic"}
)

_CHOSEN = ("norm", "method", "timeout", "seed", "arithmetic", "mean", "std")


def again(report: Report, eps: Radius, ids: Sequence[int]) -> str:
    """What decides these samples anew at one eps, everything else as in the run: a shell command.

    Of a run in Python on arrays or a module it is the call, with `model`, `x` and `y` as they were given.
    """
    chosen = {name: report.options[name] for name in _CHOSEN if report.options.get(name) is not None}
    given = report.command
    if not given:
        if report.data == "arrays" or not report.model.endswith((".onnx", ".onnx.gz")):
            options = "".join(f", {name}={value!r}" for name, value in chosen.items())
            return f"certify.run(model, (x[ids], y[ids]), eps={eps.text!r}{options}) with ids = {list(ids)}"
        given = {"--data": report.data} | {f"--{name}": _text(value) for name, value in chosen.items()}
    words = ["certify", "run", report.model]
    for name, value in given.items():
        if name in _GIVEN:
            words += [name, str(value)]
        elif name in _FLAGS:
            words.append(name)
    return shlex.join([*words, "--eps", eps.text, "--ids", format_ids(ids)])


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def named(ids: Sequence[int], most: int = 50) -> str:
    """The first `most` of the ids, "3,17,20-25", and how many more there are."""
    text = format_ids(list(ids[:most]))
    return text if len(ids) <= most else f"{text} and {len(ids) - most} more"
