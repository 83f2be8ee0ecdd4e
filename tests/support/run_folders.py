"""Run folders written through the store, without a network: for whatever reads runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from certify.options import parse_eps
from certify.store import Row, Store
from certify.verdict import Outcome, Verdict, Witness

SHA = "ab" * 32


def write_run(
    root: Path,
    *,
    n: int = 40,
    eps: str = "1/10,1/5",
    model: str = "nets/net.onnx",
    reason: str = "timeout",
    shape: tuple[int, ...] = (1, 8, 8),
    seed: int = 0,
    left: int = 0,
    period: int = 10,
) -> Path:
    """n samples of 5 classes: every 10th misclassified, then falsified (more at larger eps), unknown or verified.

    period: in place of 10. left: so many of the last samples have no result. Witnesses lie at l-infinity distance eps.
    """
    rng = np.random.default_rng(seed)
    radii = parse_eps(eps)
    labels = [k % 5 for k in range(n)]
    x = rng.uniform(0.3, 0.7, size=(n, *shape)).astype(np.float32)
    fingerprint = {"model": SHA, "norm": "linf", "eps": [r.key for r in radii], "input_range": [0.0, 1.0]}
    with Store.create(root, fingerprint, [(k + 100, y) for k, y in enumerate(labels)]) as store:
        store.keep_inputs(x)
        store.describe(
            {
                "model": {"source": model, "sha256": SHA},
                "data": {"source": "some.npz", "sha256": SHA},
                "norm": "linf",
                "eps": [r.text for r in radii],
                "input_range": [0.0, 1.0],
                "notes": [reason],
                "options": {"timeout": 2.0, "method": "auto", "workers": 1, "arithmetic": "real"},
                "command": {"MODEL": model, "--data": "some.npz", "--eps": eps},
                "started": "2026-01-02T03:04:05+00:00",
                "seconds": 12.5,
                "memory": {"process": 123_000_000, "child": 0},
                "versions": {"certify": "0"},
                "hardware": {"cpu": reason},
            }
        )
        clean: dict[int, int] = {}
        rows = []
        for k in range(n - left):
            clean[k] = labels[k] if k % period else (labels[k] + 1) % 5
            for rank, r in enumerate(radii):
                rows.append(Row(k, r, _outcome((k, k % period), rank, labels[k], x[k], float(r), reason)))
        store.record_clean(clean, [])
        store.record(rows)
    return root


def _outcome(place: tuple[int, int], rank: int, label: int, x: np.ndarray, eps: float, reason: str) -> Outcome:
    (k, phase), y = place, np.zeros(5)
    y[(label + 1) % 5], y[label] = 2.0, 1.0
    if phase == 0:
        return Outcome(Verdict.FALSIFIED, "clean", upper=-1.0, witness=Witness(x, y), seconds={"clean": 0.001})
    spent = {"attack": 0.01 * (k + 1), "CROWN": 0.02}
    if phase <= 1 + rank:
        witness = Witness(x + np.float32(eps), y)
        return Outcome(Verdict.FALSIFIED, "attack", upper=-1.0, witness=witness, seconds={"attack": 0.01 * (k + 1)})
    if phase == 4:
        return Outcome(Verdict.UNKNOWN, "alpha-CROWN", reason, -0.001 * (k + 1), 0.5, seconds=spent)
    return Outcome(Verdict.VERIFIED, "CROWN", "", 0.25, 0.5, checked="real", seconds=spent, certificate_bytes=1000)
