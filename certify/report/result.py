"""What a run found, as frozen values: one SampleResult per (sample, eps), a bracket per eps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from certify.errors import UsageError
from certify.options import ARITHMETICS, EpsLike, Radius, parse_eps
from certify.report.accounting import Bracket, bracket
from certify.store import SampleResult
from certify.verdict import Outcome, Verdict, Witness

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Report:
    """The results of a run on n samples; `results` holds no entry for a sample that the budget left out.

    model, data: names as given; *_sha256: of the files. radii: ascending. alarms: contradictions between
    proofs and witnesses; a report with any is not to be trusted. seconds: wall time of this call. options: what was
    chosen, defaults filled in; `ids` as --ids reads them. command: what the user gave on the command line, if any.
    """

    model: str
    model_sha256: str
    data: str
    data_sha256: str
    norm: str
    radii: tuple[Radius, ...]
    input_range: tuple[float, float]
    n: int
    results: tuple[SampleResult, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    seconds: float = 0.0
    complete: bool = True
    out: Path | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    command: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def brackets(self) -> dict[Radius, Bracket]:
        """One bracket per eps, ascending."""
        counts: dict[Radius, Counter[tuple[Verdict, bool]]] = {radius: Counter() for radius in self.radii}
        for result in self.results:
            outcome = result.outcome
            counts[result.eps][outcome.verdict, outcome.stage == "clean"] += 1
        return {radius: bracket(radius, self.n, count) for radius, count in counts.items()}

    @property
    def bracket(self) -> Bracket:
        """The bracket of a run with one eps; UsageError if there are several."""
        if len(self.radii) != 1:
            raise UsageError(f"this report has {len(self.radii)} values of eps; use .brackets, one bracket for each")
        return self.brackets[self.radii[0]]

    def at(self, eps: EpsLike) -> Bracket:
        """The bracket at one eps of the run, such as "2/255"; UsageError if the run has no such eps."""
        (radius,) = parse_eps([eps])
        if radius not in self.brackets:
            raise UsageError(f"eps {eps}: this report has {', '.join(map(str, self.radii))}")
        return self.brackets[radius]

    def witnesses(self) -> dict[tuple[int, str], Witness]:
        """(sample id, eps) -> witness, eps as it was written; misclassified inputs are among them."""
        return {(r.id, r.eps.text): r.outcome.witness for r in self.results if r.outcome.witness is not None}

    def to_pandas(self) -> pandas.DataFrame:
        """One row per (sample, eps), the columns of results.csv."""
        import pandas

        return pandas.DataFrame([row(self, result) for result in self.results], columns=list(COLUMNS)).astype(COLUMNS)

    def assert_certified(self, rate: float, eps: EpsLike | None = None) -> None:
        """Raises AssertionError, the bracket in words, unless at least `rate` (0 to 1) of the samples are certified."""
        if not 0 <= rate <= 1:
            raise UsageError(f"assert_certified({rate}): give a rate between 0 and 1, such as 0.6")
        if self.alarms:
            raise AssertionError(f"soundness alarm, nothing of this run counts as certified: {self.alarms[0]}")
        found = self.bracket if eps is None else self.at(eps)
        if found.certified < rate * found.n or not found.n:
            raise AssertionError(
                f"certified {found.rate(found.certified):.2%} < {rate:.2%} at {self.norm} eps {found.eps}: "
                f"of {found.n} samples {found.certified} certified, {found.falsified} falsified, "
                f"{found.misclassified} misclassified, "
                f"{found.unknown} unknown, {found.errors} errors, {found.pending} not run; "
                f"no method can certify more than {found.rate(found.attacked):.2%} here"
            )


COLUMNS = {
    "id": "int64",
    "label": "int64",
    "predicted": "Int64",
    "norm": "str",
    "eps": "str",
    "eps_value": "float64",
    "verdict": "str",
    "stage": "str",
    "reason": "str",
    "lower": "float64",
    "upper": "float64",
    "seconds": "float64",
    "checking": "str",
    "arithmetic": "str",
    "witness": "str",
    "certificate": "str",
    "certificate_bytes": "int64",
}


def checking(outcome: Outcome) -> str:
    """What vouches for it: "checked" (the checker accepted a certificate), "replayed", "solver only" or "unchecked"."""
    if outcome.verdict is Verdict.FALSIFIED:
        return "replayed"
    if outcome.verdict is not Verdict.VERIFIED:
        return ""
    return "checked" if outcome.checked in ARITHMETICS else "solver only" if outcome.checked else "unchecked"


def row(report: Report, result: SampleResult) -> dict[str, object]:
    """One line of results.csv. lower, upper: the certified and the shown margin, -inf and inf where there is none."""
    outcome = result.outcome
    return {
        "id": result.id,
        "label": result.label,
        "predicted": result.predicted,
        "norm": report.norm,
        "eps": result.eps.text,
        "eps_value": float(result.eps),
        "verdict": outcome.verdict.value,
        "stage": outcome.stage,
        "reason": outcome.reason,
        "lower": outcome.lower,
        "upper": outcome.upper,
        "seconds": sum(outcome.seconds.values()),
        "checking": checking(outcome),
        "arithmetic": outcome.checked if outcome.checked in ARITHMETICS else "real",
        "witness": result.witness_file or "",
        "certificate": result.certificate_file or "",
        "certificate_bytes": outcome.certificate_bytes,
    }
