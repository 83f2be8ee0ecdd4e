"""What a run was asked for, in words; and what its results depend on, so that results of two runs never mix."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.executors.choose import may_have_gpus
from certify.options import format_ids
from certify.version import __version__

if TYPE_CHECKING:
    from certify.api import Output, Preprocessing
    from certify.frontends.data import Dataset
    from certify.runner import Job

# What results do not depend on; the ids are part of the data's hash.
FREE = ("ids", "budget", "device", "workers", "executor", "certificates")


def options(job: Job, given: Preprocessing, output: Output) -> dict[str, Any]:
    """What the user chose, defaults filled in."""
    return {
        "eps": [r.text for r in job.radii],
        "norm": job.norm,
        "ids": format_ids([int(i) for i in job.data.ids]),
        "input_range": list(job.input_range),
        "mean": None if given.mean is None else list(given.mean),
        "std": None if given.std is None else list(given.std),
        "layout": given.layout,
        "method": job.settings.method,
        "timeout": job.settings.timeout,
        "budget": output.budget,
        "workers": output.workers,
        "executor": output.executor,
        "shard": None if output.shard is None else str(output.shard),
        "seed": job.settings.seed,
        "device": _device(job.settings.device),
        "check": job.settings.check,
        "arithmetic": job.settings.arithmetic,
        "trust_solver": job.settings.trust_solver,
        "certificates": job.settings.certificates,
    }


def _device(name: str) -> str:
    """What torch calls it."""
    if name == "cpu" or (name == "auto" and not may_have_gpus()):
        return "cpu"
    from certify.machine import pick_device

    return str(pick_device(name))


def fingerprint(job: Job, whole: Dataset, chosen: dict[str, Any]) -> dict[str, Any]:
    """Everything that results depend on; a resumed run must agree in all of it, and but for "shard" all shards.

    whole: the samples of all shards together. chosen: as `options` gives it.
    """
    selection = hashlib.sha256(format_ids([int(i) for i in whole.ids]).encode())
    selection.update(np.ascontiguousarray(whole.x).tobytes() + np.ascontiguousarray(whole.y).tobytes())
    return {name: value for name, value in chosen.items() if name not in FREE} | {
        "certify": __version__,
        "model": job.model.sha256,
        "network": hashlib.sha256(job.model.onnx_bytes).hexdigest(),  # with the layers that were prepended
        "data": selection.hexdigest(),
        "eps": [r.key for r in job.radii],
    }
