"""A witness as pictures: the input, the witness, and what is between them, amplified; small PNGs inside the page."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from certify.report.folder import Floats, Shown

LARGEST = 128  # pixels a side; larger pictures are averaged down
SMALLEST = 6  # pixels a side; what is smaller is numbers, not a picture
MOST_CHANGES = 6
MILD = 0.75  # of the full contrast, for changes in three colours: the corners of the colour cube glare
# Less and more, in colours that colour-blind readers tell apart; nothing is drawn where nothing has changed.
LESS, MORE = (0, 114, 178), (213, 94, 0)


@dataclass(frozen=True)
class Pictures:
    """Addresses of PNGs; None: the clean input is not kept. amplified: the factor between change and its picture;
    reduced: pixels are averages; colours: three channels.
    """

    witness: str
    clean: str | None = None
    difference: str | None = None
    amplified: float = 1.0
    reduced: bool = False
    colours: bool = False


@dataclass(frozen=True)
class Change:
    """One coordinate of an input that is no picture."""

    coordinate: int
    clean: float
    witness: float


def pictures(shown: Shown, input_range: tuple[float, float]) -> Pictures | None:
    """None where the input is not a picture."""
    witness = _image(shown.x)
    if witness is None:
        return None
    low, high = input_range
    reduced = max(witness.shape[:2]) > LARGEST
    adversarial = _png(_bytes((_reduce(witness) - low) / (high - low)))
    clean = None if shown.clean is None else _image(shown.clean)
    if clean is None:
        return Pictures(adversarial, reduced=reduced, colours=witness.ndim == 3)
    change = _reduce(witness) - _reduce(clean)
    largest = float(np.abs(change).max(initial=0.0))
    factor = (high - low) / largest if largest > 0 else 1.0
    return Pictures(
        adversarial,
        _png(_bytes((_reduce(clean) - low) / (high - low))),
        _png(_signed(change / largest if largest > 0 else change)),
        factor,
        reduced,
        witness.ndim == 3,
    )


def changes(shown: Shown) -> list[Change]:
    """The coordinates that differ most from the clean input."""
    if shown.clean is None:
        return []
    x, clean = shown.x.ravel(), shown.clean.ravel()
    order = np.argsort(-np.abs(x - clean), kind="stable")[:MOST_CHANGES]
    return [Change(int(i), float(clean[i]), float(x[i])) for i in order if x[i] != clean[i]]


def _image(x: Floats) -> Floats | None:
    """(H, W) or (H, W, 3), where the shape says a picture: (1 or 3, H, W), (H, W, 1 or 3), (H, W), a flat square."""
    if x.ndim == 1:
        channels = next((c for c in (1, 3) if x.size % c == 0 and math.isqrt(x.size // c) ** 2 * c == x.size), 0)
        side = math.isqrt(x.size // channels) if channels else 0
        x = x.reshape(channels, side, side) if channels else x
    if x.ndim == 3 and x.shape[0] in (1, 3):
        x = np.moveaxis(x, 0, -1)
    if x.ndim == 3 and x.shape[-1] == 1:
        x = x[..., 0]
    good = x.ndim == 2 or (x.ndim == 3 and x.shape[-1] == 3)
    return x if good and min(x.shape[:2]) >= SMALLEST else None


def _reduce(image: Floats) -> Floats:
    """Averages of k x k pixels, so that no side is longer than LARGEST."""
    k = -(-max(image.shape[:2]) // LARGEST)
    if k == 1:
        return image
    height, width = (side // k * k for side in image.shape[:2])
    blocks = image[:height, :width].reshape(height // k, k, width // k, k, *image.shape[2:])
    return np.asarray(blocks.mean(axis=(1, 3)))


def _signed(change: Floats) -> NDArray[np.uint8]:
    """-1 to 1: one channel as the strength of two colours, three as grey that leans to a colour."""
    if change.ndim == 3:
        return _bytes((1 + MILD * change) / 2)
    colours = np.where(change[..., None] < 0, LESS, MORE)
    return np.concatenate([colours, _bytes(np.abs(change))[..., None]], axis=-1).astype(np.uint8)


def _bytes(unit: Floats) -> NDArray[np.uint8]:
    return np.asarray(np.rint(255 * np.clip(unit, 0, 1)), dtype=np.uint8)


def _png(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
