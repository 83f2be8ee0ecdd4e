"""One HTML file about runs: nothing is loaded from anywhere, its data are inside as JSON, every text is escaped.

What comes from files (names of models, reasons, notes) is not trusted: jinja2 escapes it in the page, `<` is escaped in
the JSON, the script writes text and never markup, and the page's own policy allows only the script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.errors import DiskError
from certify.report.accounting import CONFIDENCE, Bracket
from certify.report.assurance import Assurance
from certify.report.folder import Folder, Shown, read_witness
from certify.report.html_charts import cactus_chart, eps_chart
from certify.report.html_data import (
    KINDS,
    Comparison,
    View,
    by_class,
    by_stage,
    cactus,
    comparison,
    confusion,
    document,
    kind,
    spent,
    views,
)
from certify.report.html_pictures import LARGEST, Change, Pictures, changes, pictures
from certify.store import SampleResult
from certify.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

GALLERY = 60  # witnesses in the page, over all its runs and radii
GALLERY_LEAST = 12  # of each of them
GALLERY_BYTES = 4_000_000
MOST_LOGITS = 10
MOST_CLASSES = 20  # a larger confusion table is shown as its largest entries
MOST_PAIRS = 20
MOST_ROWS = 6  # radii of a run in the list of runs
NAMES = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}


@dataclass(frozen=True)
class Card:
    """A witness in the gallery. logits: (class, value), the largest first, the label's and the target's among them."""

    result: SampleResult
    target: int
    distance: float | None
    pictures: Pictures | None
    changes: list[Change]
    logits: list[tuple[int, float]]
    replay: str


@dataclass(frozen=True)
class Page:
    """What the template shows of one run at one eps."""

    view: View
    gallery: list[Card]
    left_out: int


def render(folders: Sequence[Folder], *, live: str = "") -> str:
    """The page; the first folder is what the others are compared with. live: address that tells how a run goes on."""
    names = _names([folder.root for folder in folders])
    runs = [views(folder, name) for folder, name in zip(folders, names, strict=True)]
    most = max(GALLERY_LEAST, GALLERY // sum(map(len, runs)))
    budget = GALLERY_BYTES // sum(map(len, runs))
    pages = [[_page(view, most, budget) for view in run] for run in runs]
    data = document(runs)
    return (
        _environment()
        .get_template("report.html")
        .render(
            runs=pages,
            comparisons=list(_comparisons(runs)),
            data=embedded(data),
            live=live,
            kinds=KINDS,
            confidence=CONFIDENCE,
            largest=LARGEST,
            **_shared(),
        )
    )


def render_list(rows: Sequence[Mapping[str, Any]], root: str) -> str:
    """The page that lists runs: name, address, title, state, brackets; `certify serve`'s first one."""
    return _environment().get_template("runs.html").render(rows=rows, root=root, most=MOST_ROWS, **_shared())


def embedded(data: object) -> str:
    """JSON that no browser mistakes for markup inside a script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def headline(b: Bracket, assurance: Assurance, *, alarms: bool, running: bool) -> tuple[str, str]:
    """(state, what is known about the robust accuracy of these samples in a few words)."""
    doubtful = assurance.unchecked + assurance.solver
    if alarms:
        return "alarm", "Soundness alarm: not to be trusted"
    if b.decided == 0:
        known = "nothing decided"
    elif b.gap == 0:
        known = f"exactly {b.rate(b.certified):.2%} robust"
    else:
        known = f"between {b.rate(b.certified):.2%} and {b.rate(b.attacked):.2%} robust"
    if b.pending:
        return "running" if running else "stopped", f"{'Running' if running else 'Unfinished'}: {known} so far"
    known = f"{known[0].upper()}{known[1:]}"
    if doubtful:
        return "open", f"{known} (unchecked proofs: {doubtful:,})"
    return ("exact" if b.gap == 0 else "open"), known


def policy(*, live: bool) -> str:
    """What a page may do: run its own script, draw what is inside it, and, served live, ask the server it came from."""
    digest = base64.b64encode(hashlib.sha256(_asset("page.js").encode()).digest()).decode()
    asks = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        f"connect-src {asks}; base-uri 'none'; form-action 'none'"
    )


def _shared() -> dict[str, Any]:
    return {"style": _asset("page.css"), "script": _asset("page.js"), "policy": policy, "version": __version__}


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda n: f"{n:,}",
        "percent": lambda rate: f"{rate:.2%}",
        "short": lambda value: f"{value:.4g}",
        "size": _size,
        "seconds": _seconds,
        "norm": lambda name: NAMES.get(name, name),
        "command": _command,
        "pretty": _pretty,
        "basename": lambda name: Path(name).name or name,
    }
    environment.globals |= {
        "headline": headline,
        "by_stage": by_stage,
        "by_class": by_class,
        "spent": spent,
        "assurance": Assurance.of,
        "confusions": _confusions,
        "eps_chart": eps_chart,
        "cactus": _cactus,
        "window": _window,
    }
    return environment


def _names(roots: Sequence[Path]) -> list[str]:
    """The folders' names, or as much of their paths as tells them apart."""
    parts = [root.resolve().parts for root in roots]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    found = ["/".join(p[-depth:]).replace("//", "/") for p in parts]
    return [f"{name} ({k + 1})" if found.count(name) > 1 else name for k, name in enumerate(found)]


def _page(view: View, most: int, budget: int) -> Page:
    fallen = [r for r in view.results if kind(r) == "falsified" and r.id in view.shown]
    fallen.sort(key=lambda r: (_rounded(view.shown[r.id].distance), r.outcome.upper, r.id))
    gallery: list[Card] = []
    for result in fallen[:most]:
        try:
            shown = read_witness(view.folder.root, result)
        except DiskError:
            continue
        card = _card(view, result, shown)
        budget -= sum(len(p or "") for p in (_addresses(card.pictures)))
        if budget < 0:
            break
        gallery.append(card)
    return Page(view, gallery, view.bracket.falsified - len(gallery))


def _rounded(distance: float | None) -> float:
    """Distances that differ in the last bits of float32 are one, and the margin tells them apart."""
    return float("inf") if distance is None else float(f"{distance:.4g}")


def _addresses(found: Pictures | None) -> Iterable[str | None]:
    return () if found is None else (found.witness, found.clean, found.difference)


def _card(view: View, result: SampleResult, shown: Shown) -> Card:
    report = view.folder.report
    evidence = view.shown[result.id]
    drawn = pictures(shown, report.input_range)
    order = [int(k) for k in np.argsort(-shown.y, kind="stable")]
    kept = order[:MOST_LOGITS] + [k for k in order[MOST_LOGITS:] if k == result.label]
    return Card(
        result,
        evidence.target,
        evidence.distance,
        drawn,
        [] if drawn is not None else changes(shown),
        [(k, float(shown.y[k])) for k in kept],
        replay_command(view.folder, result),
    )


def replay_command(folder: Folder, result: SampleResult) -> str:
    """The shell command that runs the witness in onnxruntime once more: the label, then the outputs."""
    options = folder.report.options
    witness, model = str(folder.root / str(result.witness_file)), folder.report.model
    given = {name: options[name] for name in ("mean", "std", "layout") if options.get(name) is not None}
    if given:
        words = ", ".join([repr(model), *(f"{name}={value!r}" for name, value in given.items())])
        run = f"print(w['label'], Replayer(certify.load_model({words})).run(w['x'][None]))"
        imports = "import certify, numpy as np; from certify.attacks.replay import Replayer"
    else:
        imports = "import numpy as np, onnxruntime as o"
        run = (
            f"s = o.InferenceSession({model!r}); i = s.get_inputs()[0]; "
            "shape = [n if isinstance(n, int) and n > 0 else 1 for n in i.shape]; "
            "print(w['label'], s.run(None, {i.name: w['x'].reshape(shape)})[0])"
        )
    return shlex.join(["python", "-c", f"{imports}; w = np.load({witness!r}); {run}"])


def _comparisons(runs: Sequence[Sequence[View]]) -> Iterable[Comparison]:
    """Of every later run with the first, at the radii that both have."""
    for run in runs[1:]:
        for view in run:
            yield from (comparison(old, view) for old in runs[0] if old.radius == view.radius)


@dataclass(frozen=True)
class Confusion:
    """kind of the samples; classes: of the square table, ascending; pairs: ((label, target), samples), most first."""

    kind: str
    classes: tuple[int, ...]
    counts: Mapping[tuple[int, int], int]
    largest: int
    pairs: tuple[tuple[tuple[int, int], int], ...]

    @property
    def small(self) -> bool:
        """Does the square table fit a page?"""
        return len(self.classes) <= MOST_CLASSES


def _confusions(view: View) -> list[Confusion]:
    """Of the falsified and of the misclassified samples; what has none is left out."""
    found = []
    for of in ("falsified", "misclassified"):
        counts = confusion(view, of)
        if counts:
            classes = tuple(sorted({c for pair in counts for c in pair}))
            pairs = tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_PAIRS])
            found.append(Confusion(of, classes, counts, max(counts.values()), pairs))
    return found


def _cactus(view: View) -> str:
    return cactus_chart([(name, name, cactus(view, name)) for name in ("certified", "falsified")])


def _window(b: Bracket) -> tuple[float, float]:
    """The part of 0 to 1 that holds all intervals of the population, with room around them, in steps of 5%."""
    ends = [end for count in (b.clean, b.attacked, b.certified) for end in b.population(count)]
    low, high = min(ends), max(ends)
    return max(0.0, np.floor(20 * low - 0.4) / 20), min(1.0, np.ceil(20 * high + 0.4) / 20)


def _command(given: Mapping[str, Any]) -> str:
    """What was given on the command line, as a line for a shell."""
    words = ["certify", str(given.get("COMMAND", "run")), str(given["MODEL"])]
    for name, value in given.items():
        if name.startswith("--"):
            words += [name] if value is True else [name, str(value)]
    return shlex.join(words)


def _pretty(value: object) -> str:
    """A value of an option for people."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_pretty, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _seconds(value: float) -> str:
    if value < 60:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
