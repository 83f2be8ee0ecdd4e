"""A torch module as one self-contained ONNX model: dynamic batch, evaluation mode, normalisation inside.

The exporter is torch's own; what it writes is run by onnxruntime at two batch sizes and compared with the module.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.arrays import UNIT_ROUNDOFF
from certify.errors import ImportMismatch, ModelError

if TYPE_CHECKING:
    import onnx
    import torch

METADATA_PREFIX = "certify."
OPSET = 18
# Two float32 executions may add up in different orders; this is relative to the largest output.
RELATIVE_TOLERANCE = 1e-4


@contextmanager
def evaluation(module: torch.nn.Module) -> Iterator[None]:
    """The module in evaluation mode; every submodule's own mode is restored afterwards, also after an error."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def placement(module: torch.nn.Module, example: torch.Tensor) -> torch.Tensor:
    """`example` as a batch of at least two on the module's device and in its dtype, cut off from any gradient.

    Two, because a traced batch of one would let a constant per sample pass for a constant. Raises ModelError.
    """
    import torch

    if example.ndim < 2 or example.shape[0] < 1:
        raise ModelError(f"example input {tuple(example.shape)}: the first axis must be the batch, for example x[:1]")
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    like = tensors[0] if tensors else example
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        raise ModelError(f"the module lies on several devices {sorted(map(str, devices))}; move it to one")
    if str(like.dtype).removeprefix("torch.") not in UNIT_ROUNDOFF:
        raise ModelError(f"the module computes in {like.dtype}; convert it with .float() or .double()")
    batch = example.detach()[:1].to(device=like.device, dtype=like.dtype)
    return torch.cat([batch, batch]).contiguous()


def refusal(module: torch.nn.Module, batch: torch.Tensor, error: Exception) -> str:
    """Why the module cannot be traced: its own words where it cannot run at all, else the tracer's first line."""
    try:
        module(batch.clone())
    except Exception as own:  # whatever a forward may raise
        return f"it cannot take samples of shape {tuple(batch.shape[1:])}: {_first_line(own)}; is this its input shape?"
    return (
        f"{_first_line(error)}; the forward must take one tensor, work for every batch size (x.flatten(1), not "
        "x.view(1, -1)) and not branch on values"
    )


def _first_line(error: Exception) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", str(error).strip() or type(error).__name__).splitlines()[0]


def normalised(
    module: torch.nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, example: torch.Tensor
) -> torch.nn.Module:
    """x -> module((x - mean) / std), mean and std per channel or one number for all; the module itself without both."""
    import torch

    if mean is None and std is None:
        return module
    channels = int(example.shape[1])
    trailing = (1,) * (example.ndim - 2)

    def constant(values: Sequence[float] | None, default: float, name: str) -> torch.Tensor:
        row = [default] if values is None else [float(v) for v in values]
        if len(row) not in (1, channels):
            raise ModelError(f"{name} has {len(row)} numbers, the input has {channels} channels; give 1 or {channels}")
        if not np.isfinite(row).all() or (name == "std" and min(row) <= 0):
            raise ModelError(f"{name} {row} must be finite" + (" and positive" if name == "std" else ""))
        return torch.tensor(row, dtype=example.dtype, device=example.device).reshape(1, len(row), *trailing)

    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self.register_buffer("mean", constant(mean, 0.0, "mean"))
            self.register_buffer("std", constant(std, 1.0, "std"))

        def forward(self, x: torch.Tensor) -> Any:
            return self.module((x - self.get_buffer("mean")) / self.get_buffer("std"))

    return Normalised()


def onnx_bytes(
    module: torch.nn.Module,
    example: torch.Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The module in evaluation mode as a serialized ONNX model with input `input` and output `logits`.

    example: (B, ...), only its shape matters. mean, std: per channel, prepended as a layer, so that inputs are raw.
    metadata: written as metadata_props under `certify.<key>`. The module's mode, device and parameters stay
    as they are. Raises ModelError where torch cannot export it, ImportMismatch where onnxruntime disagrees.
    """
    import torch

    batch = placement(module, example)
    with evaluation(module), torch.no_grad():
        whole = normalised(module, mean, std, batch).eval()
        proto = _export(whole, batch)
        _clean(proto, {} if metadata is None else metadata)
        data: bytes = proto.SerializeToString(deterministic=True)
        _compare(whole, batch, data)
    return data


def _export(module: torch.nn.Module, batch: torch.Tensor) -> onnx.ModelProto:
    """torch's exporter with a dynamic batch axis."""
    import torch

    with warnings.catch_warnings(), quiet_torch():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                (batch,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["input"],
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:  # the exporter's own exceptions share no base
            raise ModelError(f"torch cannot export the module: {refusal(module, batch, error)}") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    if len(proto.graph.input) != 1 or len(proto.graph.output) != 1:
        raise ModelError(f"the module has {len(proto.graph.output)} outputs; wrap it so that it returns one tensor")
    return proto


@contextmanager
def quiet_torch() -> Iterator[None]:
    """No log of torch's: it tells of packages that nobody asked for, and of a failure on pages that `refusal` says."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _clean(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Drop traces of the machine (source paths in node metadata) and write ours."""
    graph = proto.graph
    parts = (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    inner = (n for function in proto.functions for n in (function, *function.node, *function.value_info))
    for part in (proto, graph, *parts, *inner):
        del part.metadata_props[:]
        part.doc_string = ""
    graph.name = "network"
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = METADATA_PREFIX + key, value


def _compare(module: torch.nn.Module, batch: torch.Tensor, data: bytes) -> None:
    """onnxruntime and the module answer alike, at batch 1 and 3: else ImportMismatch."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base
        raise ModelError(f"onnxruntime cannot run the exported model: {error}; try module.float()") from error
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3):
        x = torch.rand((count, *batch.shape[1:]), generator=generator).to(batch)
        expected = module(x).cpu().numpy()
        (found,) = session.run(None, {"input": x.cpu().numpy()})
        scale = 1.0 + float(np.abs(expected).max(initial=0.0))
        if found.shape != expected.shape or not np.abs(found - expected).max(initial=0.0) <= RELATIVE_TOLERANCE * scale:
            raise ImportMismatch(
                f"the exported ONNX model and the module differ at batch {count}: shapes {found.shape} and "
                f"{expected.shape}; the forward probably depends on the batch size or on random numbers"
            )
