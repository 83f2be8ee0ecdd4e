"""A gate over a run: when its outcome is settled, and what it came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from certify.errors import UsageError
from certify.gate import Conditions, Ruling, Share, Tally, combined, possible, ruling, tally
from certify.gate_baseline import Baseline, Change, Comparison, compare, require_same
from certify.options import Radius, parse_ids
from certify.report.result import Report
from certify.runner import Enough, Job
from certify.store import Store
from certify.verdict import Verdict

NONE = Share(Fraction(0), "0")  # what a baseline asks for where nothing else is said


@dataclass(frozen=True, eq=False)
class Gate:
    """Conditions, and the run to compare with. all_samples: go on after the outcome is settled."""

    conditions: Conditions
    baseline: Baseline | None = None
    all_samples: bool = False


@dataclass(frozen=True)
class Finding:
    """One condition at one eps. ruling: of this condition alone; certified, attacked: the bracket's counts."""

    condition: str
    limit: Share
    eps: Radius
    count: int
    attacked: int
    n: int
    ruling: Ruling

    @property
    def sentence(self) -> str:
        """What was asked, what was found, and what follows."""
        word = {
            "min-certified": "certified",
            "max-falsified": "falsified or misclassified",
            "max-unknown": "unknown",
            "max-regressed": "regressed since the baseline",
        }[self.condition]
        text = f"{word} {_of(self.count, self.n)}"
        if self.condition == "min-certified" and self.ruling is not Ruling.MET:
            text += f", not falsified {_of(self.attacked, self.n)}"
        bound = "at least" if self.condition.startswith("min") else "at most"
        return f"eps {self.eps}: {text}; {bound} {self.limit} asked for: {self.ruling}"


@dataclass(frozen=True, eq=False)
class Decision:
    """What a gate came to.

    settled: nothing that the samples left may come to changes it. left: (sample, eps) pairs without a verdict.
    comparisons: eps -> what changed since the baseline.
    """

    gate: Gate
    ruling: Ruling
    findings: tuple[Finding, ...]
    comparisons: Mapping[Radius, Comparison]
    settled: bool
    left: int

    def changed(self, change: Change) -> dict[Radius, tuple[int, ...]]:
        """The samples that changed like this, at each eps that has any."""
        return {r: c.ids(change) for r, c in self.comparisons.items() if c.ids(change)}


def make_gate(conditions: Conditions, baseline: Baseline | None, job: Job, *, all_samples: bool = False) -> Gate | None:
    """The gate that a job can be asked about; None where nothing is asked for. Raises UsageError."""
    if baseline is None:
        if conditions.max_regressed is not None:
            raise UsageError("--max-regressed needs --baseline, the folder of the run to compare with")
        if not any(conditions.each()):
            return None
    else:
        require_same(baseline, job)
        conditions = replace(conditions, max_regressed=conditions.max_regressed or NONE)
    if not job.settings.check:
        raise UsageError("a gate rests on proofs that the checker accepts: leave --no-check out")
    return Gate(conditions, baseline, all_samples)


def enough(gate: Gate, radii: Sequence[Radius]) -> Enough | None:
    """True of a store from which the outcome follows, whatever becomes of the samples left; None: never asked."""
    if gate.all_samples:
        return None

    ids: list[int] = []  # read once: it is asked after every commit

    def settled(store: Store) -> bool:
        if not ids:
            ids.extend(i for i, _ in store.samples())
        if gate.baseline is None:
            tallies = _tallies({r: _by_verdict(store.counts(r)) for r in radii}, len(ids))
        else:
            tallies = _compared(gate.baseline, {r: store.verdicts(r) for r in radii}, ids)
        return len(combined(possible(gate.conditions, t) for t in tallies.values())) == 1

    return settled


def decide(gate: Gate, report: Report) -> Decision:
    """The gate's outcome for a run that has ended, by itself, by its budget or because it was enough.

    A report with a soundness alarm meets no gate.
    """
    verdicts: dict[Radius, dict[int, Verdict]] = {r: {} for r in report.radii}
    for result in report.results:
        verdicts[result.eps][result.id] = result.outcome.verdict
    ids = parse_ids(str(report.options["ids"]))
    if gate.baseline is None:
        tallies = _tallies({r: Counter(v.values()) for r, v in verdicts.items()}, report.n)
        comparisons: dict[Radius, Comparison] = {}
    else:
        tallies = _compared(gate.baseline, verdicts, ids)
        comparisons = {r: compare(gate.baseline.verdicts[r.key], verdicts[r]) for r in report.radii}
    rulings = combined(possible(gate.conditions, t) for t in tallies.values())
    findings = tuple(
        Finding(name, limit, radius, t.count(name), t.n - t.falsified, t.n, ruling(possible(alone, t)))
        for radius, t in tallies.items()
        for name, limit, alone in gate.conditions.each()
    )
    left = sum(t.left for t in tallies.values())
    whole = Ruling.NOT_MET if report.alarms else ruling(rulings)
    return Decision(gate, whole, findings, comparisons, len(rulings) == 1, left)


def document(decision: Decision) -> dict[str, Any]:
    """The decision as JSON values."""
    baseline = decision.gate.baseline
    return {
        "outcome": decision.ruling.value,
        "conditions": [
            {
                "name": f.condition,
                "eps": str(f.eps),
                "limit": float(f.limit.value),
                "count": f.count,
                "samples": f.n,
                "outcome": f.ruling.value,
            }
            for f in decision.findings
        ],
        "settled": decision.settled,
        "left": decision.left,
        "baseline": None if baseline is None else str(baseline.root),
        "changes": [
            {"eps": str(eps), "common": c.common} | {change.value: list(c.ids(change)) for change in Change}
            for eps, c in decision.comparisons.items()
        ],
    }


def _compared(
    baseline: Baseline, verdicts: Mapping[Radius, Mapping[int, Verdict]], ids: Sequence[int]
) -> dict[Radius, Tally]:
    found = {}
    for radius, plain in _tallies({r: Counter(v.values()) for r, v in verdicts.items()}, len(ids)).items():
        now, certified = verdicts[radius], baseline.certified(radius)
        found[radius] = replace(
            plain,
            regressed=sum(now.get(i) is Verdict.FALSIFIED for i in certified),
            at_risk=sum(i in certified and i not in now for i in ids),
        )
    return found


def _tallies(counts: Mapping[Radius, Mapping[Verdict, int]], n: int) -> dict[Radius, Tally]:
    """What is left at a larger eps may still prove a sample at a smaller one."""
    last = max((r for r, c in counts.items() if sum(c.values()) < n), default=None)
    return {r: tally(n, c, larger_left=last is not None and r < last) for r, c in counts.items()}


def _by_verdict(counts: Mapping[tuple[Verdict, bool], int]) -> Counter[Verdict]:
    found: Counter[Verdict] = Counter()
    for (verdict, _), number in counts.items():
        found[verdict] += number
    return found


def _of(count: int, n: int) -> str:
    return f"{count} of {n} ({count / n:.2%})"
