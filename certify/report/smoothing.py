"""What a smoothing run found. Its bracket is about the smoothed classifier and probable; no other count knows of it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.disk import write_atomically
from certify.options import Radius
from certify.report.accounting import CONFIDENCE, Bracket
from certify.report.files import hardware, versions
from certify.smoothing.curve import Curve
from certify.smoothing.limit import linf_limit
from certify.smoothing.radii import Smoothing
from certify.smoothing.run import CERTIFIED, FALSIFIED, MISCLASSIFIED, UNKNOWN, Run
from certify.smoothing.sequential import interval
from certify.smoothing.store import Row

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("id", "label", "predicted", "radius", "successes", "n", "lower", "seconds")


@dataclass(frozen=True, eq=False)
class Smoothed:
    """The rows of a run; seconds: wall time of this call."""

    run: Run
    rows: tuple[Row, ...]
    seconds: float

    @cached_property
    def curve(self) -> Curve:
        """Certified accuracy over the radius, in the run's norm."""
        return Curve.of([row.correct_radius for row in self.rows])

    @cached_property
    def brackets(self) -> dict[Radius, Bracket]:
        """One bracket per eps; attacked: samples whose smoothed class no attack changed."""
        found = {}
        for eps in self.run.question.radii:
            counts = Counter(row.verdicts[eps.key] for row in self.rows)
            found[eps] = Bracket(
                eps,
                len(self.run.data.y),
                misclassified=counts[MISCLASSIFIED],
                falsified=counts[FALSIFIED],
                certified=counts[CERTIFIED],
                unknown=counts[UNKNOWN],
                pending=len(self.run.data.y) - len(self.rows),
            )
        return found

    @property
    def draws(self) -> int:
        """Draws of all estimates, the median sample's."""
        ordered = sorted(row.n for row in self.rows)
        return ordered[len(ordered) // 2] if ordered else 0

    @property
    def probable(self) -> bool:
        return isinstance(self.run.noise, Smoothing)

    @property
    def promise(self) -> str:
        """What a certificate is worth."""
        if not self.probable:
            return "certificates about the smoothed classifier, on the data's grid; deterministic, none can fail"
        n, alpha = len(self.rows), self.run.question.budget.alpha
        return (
            f"certificates about the smoothed classifier; each fails with probability {alpha:g} at most, "
            f"any of the {n} with {min(1.0, n * alpha):g} at most"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Where an eps is out of reach, and what is in reach."""
        noise, q = self.run.noise, self.run.question
        found = [*self.run.model.notes, *self.run.data.notes]
        if not isinstance(noise, Smoothing):
            return tuple(found)
        if q.sequential and q.radii:
            found.append("draws end once eps is answered: radii, curve and average are lower than without --sequential")
        n, alpha = q.budget.n, q.budget.alpha
        most = noise.radius(interval(n, n, alpha)[0] if q.sequential else q.budget.best, q.norm)
        for eps in q.radii:
            if float(eps) > most:
                found.append(
                    f"{q.norm} eps {eps} is out of reach: {n} {'sequential ' * q.sequential}draws at alpha {alpha:g} "
                    f"certify at most {most:.6g} with this noise"
                )
            if q.norm == "linf" and float(eps) > (limit := linf_limit(q.budget.best, noise.deviation, noise.size)):
                found.append(f"no noise of this standard deviation certifies more than linf {limit:.6g} in their stead")
        return tuple(found)


def fingerprint(run: Run) -> dict[str, Any]:
    """What has to be the same for a run to be gone on with."""
    q = run.question
    noise = asdict(run.noise) if isinstance(run.noise, Smoothing) else {"kind": "splitting", **asdict(run.noise)}
    return {
        "model": run.model.sha256,
        "network": hashlib.sha256(run.model.onnx_bytes).hexdigest(),  # with the layers that were prepended
        "data": run.data.sha256,
        "ids": [int(i) for i in run.data.ids],
        "noise": noise,
        "eps": [r.key for r in q.radii],
        "norm": q.norm,
        "budget": asdict(q.budget),
        "sequential": q.sequential,
        "attack": q.attack,
        "seed": q.seed,
        "input_range": list(run.input_range),
        "device": run.device,
    }


def document(report: Smoothed) -> dict[str, Any]:
    """The run as JSON values."""
    return {**_identity(report), "results": [asdict(row) for row in report.rows]}


def write_files(report: Smoothed, out: Path) -> None:
    """results.csv, curve.csv, curve.svg, manifest.json into `out`; DiskError if the disk refuses."""
    norm = report.run.question.norm
    names = [r.key for r in report.run.question.radii]
    lines = [",".join([*COLUMNS, *(f"eps {name}" for name in names)])]
    for row in report.rows:
        values = asdict(row)
        lines.append(",".join([*(str(values[c]) for c in COLUMNS), *(row.verdicts[name] for name in names)]))
    write_atomically(out / "results.csv", ("\n".join(lines) + "\n").encode())
    write_atomically(out / "curve.csv", report.curve.csv().encode())
    title = f"Smoothed {Path(report.run.model.source).name}: certified accuracy of {len(report.rows)} samples"
    write_atomically(out / "curve.svg", report.curve.svg(title, norm).encode())
    manifest = _identity(report) | {"versions": versions(), "hardware": hardware(report.run.device)}
    write_atomically(out / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def sentences(report: Smoothed) -> Iterator[str]:
    """What is known, in a line each."""
    curve, norm = report.curve, report.run.question.norm
    for eps, b in report.brackets.items():
        yield (
            f"eps {eps}: smoothed robust accuracy of these {b.n} samples between {b.rate(b.certified):.2%} and "
            f"{b.rate(b.attacked):.2%} ({'probable' if report.probable else 'deterministic'})"
        )
        low, high = b.population(b.certified)
        yield f"eps {eps}: certified in the population {low:.2%} … {high:.2%}, {CONFIDENCE:.0%} Clopper-Pearson"
    yield f"smoothed accuracy {curve.at(0.0):.2%}, average certified {norm} radius {curve.average:.4g}"


def show(report: Smoothed, console: Console) -> None:
    """Print the bracket of the smoothed classifier, and what it is worth."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    run, noise = report.run, report.run.noise
    kind = f"{noise.kind} noise, sigma {noise.sigma:g}" if isinstance(noise, Smoothing) else f"{noise.period} splits"
    console.print(
        f"\n[bold]{escape(run.model.source)}[/] on {escape(run.data.name)}, {len(report.rows)} samples, {kind}"
    )
    for note in report.notes:
        console.print(f"  note: {note}", style="dim", markup=False)
    if report.brackets:
        title = f"Smoothed classifier, {run.question.norm} balls: {'probable' if report.probable else 'deterministic'}"
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for name in ("eps", "clean", "attacked ≤", "certified ≥", "gap"):
            table.add_column(name, justify="left" if name == "eps" else "right", no_wrap=True)
        for eps, b in report.brackets.items():
            table.add_row(str(eps), *(f"{b.rate(count):.2%}" for count in (b.clean, b.attacked, b.certified, b.gap)))
        console.print(table)
    for line in (*sentences(report), report.promise):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    seconds = sum(row.seconds for row in report.rows)
    console.print(
        f"  time: {report.seconds:.1f} s ({seconds:.1f} s in all), median draws {report.draws}",
        style="dim",
        markup=False,
    )


def _identity(report: Smoothed) -> dict[str, Any]:
    run = report.run
    return {
        "model": {"source": run.model.source, "sha256": run.model.sha256},
        "data": {"source": run.data.name, "sha256": run.data.sha256},
        "about": "the smoothed classifier",
        "failure_probability": run.question.budget.alpha if report.probable else 0.0,
        "noise": fingerprint(run)["noise"],
        "norm": run.question.norm,
        "budget": asdict(run.question.budget),
        "sequential": run.question.sequential,
        "seed": run.question.seed,
        "device": run.device,
        "samples": len(run.data.y),
        "average_certified_radius": report.curve.average,
        "smoothed_accuracy": report.curve.at(0.0),
        "median_draws": report.draws,
        "brackets": [
            {
                "eps": str(eps),
                "clean": b.clean,
                "attacked": b.attacked,
                "certified": b.certified,
                "misclassified": b.misclassified,
                "falsified": b.falsified,
                "unknown": b.unknown,
                "pending": b.pending,
            }
            for eps, b in report.brackets.items()
        ],
        "notes": list(report.notes),
        "seconds": report.seconds,
    }
