"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_VARIABLE = "CERTIFY_SHARED"
SHARED_REASON = "no shared benchmark files"


def shared_root() -> Path | None:
    """The folder of large benchmark files: $CERTIFY_SHARED, or `shared` beside the checkout; None if absent."""
    named = os.environ.get(SHARED_VARIABLE)
    root = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return root if (root / "bench").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared benchmark folder; the test is skipped, and counted at the end, where there is none."""
    root = shared_root()
    if root is None:
        pytest.skip(f"{SHARED_REASON}: set {SHARED_VARIABLE} to their folder")
    return root


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skipped check is never a silent pass: say how many, and how to have them run."""
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if SHARED_REASON in str(r.longrepr)]
    if skipped:
        terminalreporter.section("not run", sep="-", yellow=True)
        terminalreporter.line(
            f"{len(skipped)} tests on real benchmark files did not run: {SHARED_REASON}; "
            f"set {SHARED_VARIABLE} to their folder."
        )
