"""Trained modules as ONNX files that `certify run` needs no further option for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from certify.errors import ModelError
from certify.frontends.torch_export import onnx_bytes

if TYPE_CHECKING:
    import torch

# certify.data: a data set's name; certify.input_range: "0,1"; the others tell how the network came about.
METADATA_KEYS = ("data", "input_range", "recipe", "seed", "epsilon", "accuracy")


def export_onnx(
    module: torch.nn.Module,
    example: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Path:
    """Write the module as one ONNX file: dynamic batch, normalisation inside, no side files; all of it or nothing.

    example: an input batch (B, ...), only its shape matters. metadata: any of METADATA_KEYS; stored as
    metadata_props `certify.<key>`. mean, std: per channel; with them the file takes raw inputs. The model is compared
    with onnxruntime before it is written. Raises ModelError, ImportMismatch, OSError.
    """
    unknown = sorted(set(metadata) - set(METADATA_KEYS))
    if unknown:
        raise ModelError(f"unknown metadata {', '.join(unknown)}; known are {', '.join(METADATA_KEYS)}")
    target = Path(path)
    data = onnx_bytes(module, example, mean=mean, std=std, metadata=metadata)
    write_atomically(target, data)
    return target


def write_atomically(target: Path, data: bytes) -> None:
    """The file holds `data`, or is as it was before: a temporary file beside it takes its place at the end."""
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
