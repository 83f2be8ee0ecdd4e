"""The header of a certificate that has something of everything, and changes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Change = Callable[[dict[str, Any]], Any]


def tree() -> dict[str, Any]:
    """Three nodes: neuron (1, 2) is split at 0; an entry a leaf, slopes for unit 0, one plane that sharpens."""
    return {
        "polytopes": [1],
        "unit": np.array([1, -2, -2], np.int32),
        "place": np.array([2, 0, 0], np.int32),
        "cut": np.array([0.0, 0.0, 0.0]),
        "child": np.array([1, 0, 0], np.int32),
        "renew": np.array([True, False, False]),
        "entry_node": np.array([0, 1, 2], np.int32),
        "entry_polytope": np.array([1, 1, 1], np.int32),
        "entry_mix": np.ones((3, 1), np.float32),
        "slots": {"at": {"0": np.array([3, 0], np.int32)}},
        "entry_slopes": {"0": {"lower": np.array([[0, 255]] * 3, np.uint8), "upper": None}},
        "multiplier_entry": np.array([1, 2], np.int32),
        "multiplier_unit": np.array([1, 1], np.int32),
        "multiplier_place": np.array([2, 2], np.int32),
        "multiplier": np.array([0.5, -0.5], np.float32),
        "planes": {k: np.array([v], np.int32) for k, v in {"unit": 0, "place": 3, "sign": -1}.items()},
        "sharpen_entry": np.array([0], np.int32),
        "sharpen_plane": np.array([0], np.int32),
        "sharpen_beta": np.array([2.0], np.float32),
    }


def header() -> dict[str, Any]:
    """A ball of 5 inputs and 3 classes, two units of 4 and 3 neurons, every kind of step."""
    slopes = {"0": {"at": np.array([1, 2], np.int32), "lower": np.array([[51, 255]], np.uint8)}}
    smooth = {"1": {"at": np.array([0], np.int32), "lower": np.array([[0.1]]), "upper": np.array([[0.25]])}}
    lent = {"0": {"at": np.array([3, 1], np.int32), "value": np.array([[1.0, 2], [3, -4]], np.float32)}}
    steps = [
        {"do": "crown", "units": None, "places": None, "adaptive": True},
        {"do": "crown", "units": [0, 1], "places": {"1": np.array([0, 2], np.int32)}, "adaptive": False},
        {"do": "slopes", "unit": 1, "places": np.array([2, 0], np.int32), "below": slopes, "above": smooth},
        {
            "do": "slopes",
            "unit": 1,
            "places": np.array([1, 2], np.int32),
            "below": {},
            "above": {},
            "below_multipliers": lent,
        },
        {"do": "close", "polytopes": [0], "rows": [0], "slopes": "parallel"},
        {"do": "close", "polytopes": [0, 1], "rows": [0, 0], "slopes": slopes},
    ]
    return {
        "format": "certify.certificate",
        "version": 2,
        "model": {"sha256": "ab" * 32, "mean": 0.5, "std": [0.25, 0.5], "layout": None, "softmax": "dropped"},
        "property": {
            "kind": "ball",
            "center": np.linspace(0, 1, 5),
            "norm": "linf",
            "eps": "2/255",
            "low": 0,
            "high": 1.0,
            "label": 1,
            "classes": 3,
        },
        "units": [4, 3],
        "cases": [{"steps": steps, "trees": [tree()]}],
    }


def boxes() -> dict[str, Any]:
    """The same, stated as one case of two polytopes, the second with two rows."""
    made = header()
    made["model"]["softmax"] = "kept"
    polytopes = [{"coeff": np.eye(3)[:r], "offset": np.zeros(r)} for r in (1, 2)]
    made["property"] = {
        "kind": "cases",
        "sha256": None,
        "cases": [{"lower": np.zeros(5), "upper": np.ones(5), "polytopes": polytopes}],
    }
    made["cases"][0]["trees"][0]["entry_mix"] = np.ones((3, 2), np.float32)
    return made


def put(*path: Any) -> Change:
    """path: keys down to a place, then the value to put there; ... deletes."""

    def change(made: dict[str, Any]) -> None:
        *keys, last, value = path
        for key in keys:
            made = made[key]
        if value is ...:
            del made[last]
        else:
            made[last] = value

    return change


def capped(**changed: Any) -> Change:
    """A tree with two caps that renews nothing, but for what is changed."""

    def change(made: dict[str, Any]) -> None:
        grown = made["cases"][0]["trees"][0]
        grown["renew"] = changed.pop("renew", None)
        grown["caps"] = {
            "entry": np.array([0, 2], np.int32),
            "unit": np.array([0, 0], np.int32),
            "place": np.array([1, 3], np.int32),
            "multiplier": np.array([0.5, 0], np.float32),
            "share": np.arange(10, dtype=np.uint8).reshape(2, 5),
        } | changed

    return change
