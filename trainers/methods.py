"""Methods by name: their objective, and what network they need around an architecture."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certify.errors import UsageError
from certify.trainers.adversarial import FastTraining, FreeTraining, PgdTraining
from certify.trainers.certified import CrownIbp, Ibp
from certify.trainers.ensemble import Adp, ensemble
from certify.trainers.expressive import CcIbp, ExpIbp, MtlIbp
from certify.trainers.mahalanobis import CenterLoss, Mmc, MmLda, centres, with_centres
from certify.trainers.mart import Mart
from certify.trainers.noise import GaussianNoise, Macer, NoiseTrades, SmoothAdv
from certify.trainers.objective import Objective
from certify.trainers.reverse import ReverseCrossEntropy
from certify.trainers.sabr import Sabr
from certify.trainers.standard import Standard
from certify.trainers.taps import Taps
from certify.trainers.trades import Trades

if TYPE_CHECKING:
    import torch

Make = Callable[[int], "torch.nn.Module"]  # number of outputs -> a fresh network


def _plain(objective: Any, make: Make, classes: int) -> torch.nn.Module:
    return make(classes)


def _centred(objective: Any, make: Make, classes: int) -> torch.nn.Module:
    return with_centres(make(objective.features), centres(classes, objective.features, objective.length))


def _headed(objective: Any, make: Make, classes: int) -> torch.nn.Module:
    import torch

    return torch.nn.Sequential(make(objective.features), torch.nn.Linear(objective.features, classes))


def _several(objective: Any, make: Make, classes: int) -> torch.nn.Module:
    return ensemble([make(classes) for _ in range(objective.members)])


@dataclass(frozen=True)
class Method:
    """summary: one line. kind: the objective's dataclass, whose fields are its options. wrap: the network it trains."""

    summary: str
    kind: Callable[..., Objective]
    wrap: Callable[[Any, Make, int], torch.nn.Module] = _plain


METHODS: Mapping[str, Method] = {
    "standard": Method("cross-entropy", Standard),
    "pgd": Method("adversarial training (Madry et al. 2018)", PgdTraining),
    "fast": Method("one random step (Wong et al. 2020)", FastTraining),
    "free": Method("replayed batches (Shafahi et al. 2019)", FreeTraining),
    "trades": Method("clean loss and KL within the ball (Zhang et al. 2019)", Trades),
    "mart": Method("KL weighted by the clean sample's doubt (Wang et al. 2020)", Mart),
    "mmc": Method("Max-Mahalanobis centres (Pang et al. 2020), with PGD", Mmc, _centred),
    "mmlda": Method("Max-Mahalanobis LDA (Pang et al. 2018)", MmLda, _centred),
    "center": Method("center loss (Wen et al. 2016)", CenterLoss, _headed),
    "rce": Method("reverse cross-entropy (Pang et al. 2018)", ReverseCrossEntropy),
    "adp": Method("diverse ensemble (Pang et al. 2019)", Adp, _several),
    "ibp": Method("interval bounds (Gowal et al. 2018; Shi et al. 2021)", Ibp),
    "crown-ibp": Method("one CROWN pass over intervals (Zhang et al. 2020)", CrownIbp),
    "sabr": Method("intervals over small boxes (Mueller et al. 2023)", Sabr),
    "taps": Method("intervals, then attacks in their box (Mao et al. 2023)", Taps),
    "mtl-ibp": Method("mixed losses of attack and IBP (De Palma et al. 2024)", MtlIbp),
    "cc-ibp": Method("mixed margins of attack and IBP (De Palma et al. 2024)", CcIbp),
    "exp-ibp": Method("geometric mean of attack's and IBP's loss (De Palma et al. 2024)", ExpIbp),
    "gaussian": Method("Gaussian noise, for smoothing (Cohen et al. 2019)", GaussianNoise),
    "smoothadv": Method("attacks on the smoothed classifier (Salman et al. 2019)", SmoothAdv),
    "macer": Method("maximised certified radius (Zhai et al. 2020)", Macer),
    "trades-noise": Method("TRADES with Gaussian noise (Blum et al. 2020)", NoiseTrades),
}


# Options that may be negative, and those that are at most 1.
SIGNED, SHARES = ("low", "high"), ("mix", "small")


def find_method(name: str) -> Method:
    """The method of that name; UsageError, naming all, where there is none."""
    if name not in METHODS:
        raise UsageError(f"method {name!r} is not known; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def takes(name: str, option: str) -> bool:
    """Has the method's objective this option?"""
    return option in {field.name for field in dataclasses.fields(find_method(name).kind)}  # type: ignore[arg-type]


def make_objective(name: str, options: Mapping[str, Any]) -> Objective:
    """The objective with these options. Raises UsageError for what it does not know or what has the wrong type."""
    objective: Objective = filled(find_method(name).kind, options, f"method {name}")
    for field in dataclasses.fields(objective):  # type: ignore[arg-type]
        value, what = getattr(objective, field.name), f"method {name}: {field.name}"
        if type(value) is int and value < 1:
            raise UsageError(f"{what} is {value}; give 1 or more")
        if type(value) is float and field.name not in SIGNED and not 0 <= value < math.inf:
            raise UsageError(f"{what} is {value}; give a number of 0 or more")
        if field.name in SHARES and value > 1:
            raise UsageError(f"{what} is {value}; give a share between 0 and 1")
    return objective


def filled(kind: Callable[..., Any], options: Mapping[str, Any], what: str) -> Any:
    """A dataclass from plain values, as a TOML file holds them: names and types checked. Raises UsageError."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise UsageError(f"{what}: unknown option {', '.join(unknown)}; there are {', '.join(fields) or 'none'}")
    nothing = dataclasses.MISSING
    missing = [
        n for n, f in fields.items() if n not in options and f.default is nothing and f.default_factory is nothing
    ]
    if missing:
        raise UsageError(f"{what}: {', '.join(missing)} must be given")
    return kind(**{name: _fitting(value, hints[name], f"{what}: {name}") for name, value in options.items()})


def _fitting(value: Any, hint: Any, what: str) -> Any:
    """The value as the field's type; int stands for float, a list for a tuple."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(kind)
            if inner[-1] is Ellipsis or len(inner) == len(value):
                return tuple(_fitting(v, inner[0], what) for v in value)
        elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        elif isinstance(kind, type) and type(value) is kind:
            return value
    wanted = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
    raise UsageError(f"{what} is {value!r}; it must be of type {wanted}")
