"""For test suites: the fixture `certify`, and the marker `certify` with defaults for it.

    @pytest.mark.certify(eps="2/255", timeout=10)
    def test_robust(certify):
        certify.assert_certified("net.onnx", "tests/data.npz", at_least=0.6)

A suite that does not use them pays for importing this file: no numpy, no torch. Tests with the fixture bear the marker,
so that `-m "not certify"` leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from certify.gate_decision import Decision
    from certify.options import EpsLike
    from certify.report.result import Report

MARKER = "certify"


class Certifier:
    """What the fixture gives: assertions about networks. defaults: of options, from markers."""

    def __init__(self, defaults: Mapping[str, Any], folder: Callable[[], Path]) -> None:
        self._defaults = dict(defaults)
        self._folder = folder

    def assert_certified(
        self,
        model: Any,
        data: Any = None,
        *,
        eps: EpsLike | None = None,
        at_least: float | str | None = None,
        **options: Any,
    ) -> Report:
        """At least the share `at_least` of the samples is proved robust at `eps`, or AssertionError says which are not.

        model, data, options: as for certify.run; what is not given comes from the marker. Stops once it is settled.
        The run's folder, with all witnesses, is kept like pytest's other temporary folders.
        """
        __tracebackhide__ = True
        from difflib import get_close_matches

        from certify.api import run
        from certify.errors import UsageError
        from certify.gate import Conditions, Ruling, parse_share
        from certify.gate_decision import Gate, decide, enough
        from certify.options import parse_eps

        asked = self._defaults | options
        asked |= {name: v for name, v in (("eps", eps), ("at_least", at_least)) if v is not None}
        for name in ("eps", "at_least"):
            if name not in asked:
                raise UsageError(f"assert_certified: {name} is missing, in the call and in the marker certify(...)")
        for name in sorted(asked.keys() - {"at_least"} - _names(run)):
            close = get_close_matches(name, _names(run), n=1, cutoff=0.3)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"assert_certified: {name}: certify.run has no such option{hint}")
        if not asked.get("check", True):
            raise UsageError("assert_certified rests on proofs that the checker accepts: leave check=False out")
        gate = Gate(Conditions(min_certified=parse_share(asked.pop("at_least"), option="at_least")))
        radii = parse_eps(asked["eps"])
        if "out" not in asked:
            asked["out"] = self._folder() / "run"
        report = run(model, data, **asked, enough=enough(gate, radii))
        decision = decide(gate, report)
        if decision.ruling is not Ruling.MET:
            raise AssertionError(_message(report, decision))
        return report


@pytest.fixture
def certify(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Certifier:
    """Assertions about the robustness of networks, such as certify.assert_certified(model, data, eps=, at_least=)."""
    defaults: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers(MARKER))):  # the closest last
        if mark.args:
            raise pytest.UsageError(f"the marker certify takes named options, such as eps='2/255', not {mark.args}")
        defaults |= mark.kwargs
    return Certifier(defaults, lambda: tmp_path_factory.mktemp("certify"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "certify(eps=..., at_least=..., **options): defaults of certify.assert_certified, its options certify.run's",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The marker for whoever uses the fixture."""
    for item in items:
        if MARKER in getattr(item, "fixturenames", ()) and item.get_closest_marker(MARKER) is None:
            item.add_marker(MARKER)


def _names(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(signature(function).parameters) - {"model", "data", "enough"}


def _message(report: Report, decision: Decision) -> str:
    """What is not met, the samples by verdict, and how to see each of them again."""
    from certify.gate import Ruling
    from certify.report.again import again, named
    from certify.verdict import Verdict

    lines = [f.sentence for f in decision.findings if f.ruling is not Ruling.MET]
    for eps in report.radii:
        open_ids = []
        for verdict in (Verdict.FALSIFIED, Verdict.UNKNOWN, Verdict.ERROR):
            ids = [r.id for r in report.results if r.eps == eps and r.outcome.verdict is verdict]
            if ids:
                lines.append(f"{verdict} at eps {eps}: {named(ids)}")
            open_ids += ids
        if open_ids:
            lines.append(f"again: {again(report, eps, open_ids)}")
    if decision.left:
        lines.append(f"not run, the outcome being settled: {decision.left}")
    if any(r.witness_file for r in report.results):
        lines.append(f"witnesses (x, y, label; by sample and eps): {report.out}/witnesses/*.npz")
    return "\n".join(lines)
