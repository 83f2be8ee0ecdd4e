"""What is known about one sample.

verified    no point of the input set is unsafe (at the stated arithmetic level)
falsified   a witness was replayed by onnxruntime and is unsafe
unknown     neither; the reason says why
error       the sample could not run at all; the reason says why
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Verdict(StrEnum):
    """The four outcomes of a sample."""

    VERIFIED = "verified"
    FALSIFIED = "falsified"
    UNKNOWN = "unknown"
    ERROR = "error"


@dataclass(frozen=True, eq=False)
class Witness:
    """An input inside the set, and what onnxruntime answered on it.

    x: the input as given to onnxruntime, in the model's dtype, without batch axis.
    y: the outputs that onnxruntime computed, flat.
    snapped: number of coordinates whose interval holds no number of the model's dtype and
        that were rounded to the nearest one (their distance to the set is under one ulp).
    """

    x: NDArray[np.generic]
    y: NDArray[np.generic]
    snapped: int = 0


@dataclass(frozen=True)
class Outcome:
    """A verdict with its grounds.

    stage: what decided ("clean", "attack", "IBP", "CROWN", "alpha-CROWN", ...), or the last stage tried.
    lower: best certified lower bound of the margin, in units of the outputs; -inf if none.
    upper: smallest margin that onnxruntime showed inside the set; +inf if none.
    checked: True only if an independent checker accepted a certificate.
    seconds: stage -> wall seconds (a batch's time is shared equally by its samples).
    """

    verdict: Verdict
    stage: str
    reason: str = ""
    lower: float = -np.inf
    upper: float = np.inf
    witness: Witness | None = None
    checked: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
