"""Trained modules as ONNX files that `certify run` needs no further option for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from certify.disk import write_atomically
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
    with onnxruntime before it is written. Raises ModelError, ImportMismatch, DiskError.
    """
    unknown = sorted(set(metadata) - set(METADATA_KEYS))
    if unknown:
        raise ModelError(f"unknown metadata {', '.join(unknown)}; known are {', '.join(METADATA_KEYS)}")
    target = Path(path)
    data = onnx_bytes(module, example, mean=mean, std=std, metadata=metadata)
    write_atomically(target, data)
    return target
