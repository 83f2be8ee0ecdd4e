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


def again(report: Report, eps: Radius, ids: Sequence[int]) -> str:
    """The shell command that decides these samples anew at one eps, everything else as in the run."""
    words = ["certify", "run", report.model]
    for name, value in report.command.items():
        if name in _GIVEN:
            words += [name, str(value)]
        elif name in _FLAGS:
            words.append(name)
    return shlex.join([*words, "--eps", eps.text, "--ids", format_ids(ids)])


def named(ids: Sequence[int], most: int = 50) -> str:
    """The first `most` of the ids, "3,17,20-25", and how many more there are."""
    text = format_ids(list(ids[:most]))
    return text if len(ids) <= most else f"{text} and {len(ids) - most} more"
