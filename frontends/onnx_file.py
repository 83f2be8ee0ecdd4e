"""Reading ONNX files: .gz, external data, hashes; and making them self-contained for the runtime."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from certify.errors import ModelError

# What the oldest onnxruntime that we accept reads (1.20: IR 10, opset 21).
# Later IR versions add only what is refused here.
RUNTIME_IR = 10
RUNTIME_OPSET = 21
FIRST_OPSET = 7
SIZE_LIMIT = 2**31 - 1  # of one protobuf message


@dataclass(frozen=True, eq=False)
class Source:
    """A parsed ONNX file. name: the path, or "model". data: the file, uncompressed. sha256: of it and external data.

    outside: the files of its external data, relative to its folder.
    """

    proto: Any
    name: str
    data: bytes
    sha256: str
    outside: tuple[str, ...] = ()


def read_source(model: str | Path | bytes | Any) -> Source:
    """Parse a path, bytes (both possibly gzipped) or a ModelProto; external data is loaded into it."""
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        data = copy.SerializeToString(deterministic=True)
        return _finished(copy, "model", data, None)
    if isinstance(model, bytes):
        data = _uncompressed(model, "model")
        return _finished(_parse(data, "model"), "model", data, None)
    path = Path(model)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder; give the .onnx file in it") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    data = _uncompressed(raw, str(path))
    return _finished(_parse(data, str(path)), str(path), data, path.parent)


def _uncompressed(data: bytes, name: str) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ModelError(f"{name}: the gzip file is damaged or truncated ({error}); fetch it again") from error


def _parse(data: bytes, name: str) -> Any:
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{name}: not an ONNX file, or truncated ({len(data):,} bytes); export or fetch it again"
        ) from error
    # Protobuf reads many a text or a file cut between two fields without complaint.
    if not proto.ir_version or not proto.opset_import or not proto.graph.output:
        raise ModelError(f"{name}: not an ONNX file, or truncated ({len(data):,} bytes): it holds no network")
    return proto


def _finished(proto: Any, name: str, data: bytes, folder: Path | None) -> Source:
    """Load external data, hashing its files in order of their names."""
    outside = [t for t in _tensors(proto) if t.data_location == onnx.TensorProto.EXTERNAL]
    places = {id(t): {e.key: e.value for e in t.external_data}.get("location", "") for t in outside}
    locations = sorted(set(places.values()))
    if outside and folder is None:
        listed = ", ".join(locations)
        raise ModelError(f"{name}: its weights lie in other files ({listed}); give the path of the .onnx file")
    for tensor in outside:
        try:  # onnx refuses locations outside of the folder
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (onnx.checker.ValidationError, OSError, ValueError) as error:
            raise ModelError(
                f"{name}: weight {tensor.name!r} lies in {places[id(tensor)]!r} beside it, which cannot be read; "
                f"put both files into one folder ({error})"
            ) from error
        _check_size(tensor, name)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    digest = hashlib.sha256(data)
    for location in locations:
        assert folder is not None
        digest.update((folder / location).read_bytes())
    return Source(proto, name, data, digest.hexdigest(), tuple(locations))


def _tensors(proto: Any) -> Iterator[Any]:
    """Every stored tensor of the model and its functions (not of control flow, which is refused)."""
    yield from proto.graph.initializer
    nodes = (*proto.graph.node, *(node for f in proto.functions for node in f.node))
    for attributes in (*(node.attribute for node in nodes), *(f.attribute_proto for f in proto.functions)):
        for attribute in attributes:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_size(tensor: Any, name: str) -> None:
    items = 1
    for n in tensor.dims:
        items *= n
    width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if len(tensor.raw_data) != items * width:
        raise ModelError(
            f"{name}: weight {tensor.name!r} has {len(tensor.raw_data)} of {items * width} bytes: truncated"
        )


def serialize(proto: Any, name: str) -> bytes:
    """The model as bytes that the runtime loads; above 2 GB there is no such form."""
    if proto.ByteSize() > SIZE_LIMIT:
        raise ModelError(
            f"{name}: the network with its weights is larger than 2 GB, which ONNX cannot hold in one piece"
        )
    return bytes(proto.SerializeToString(deterministic=True))


def opset_of(proto: Any, name: str) -> int:
    """The version of the standard op set; other domains that are used are refused with the nodes that use them."""
    versions = {o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")}
    if len(versions) != 1:
        raise ModelError(f"{name}: it names {len(versions)} versions of the standard ONNX op set; export it again")
    version = int(versions.pop())
    newest = onnx.defs.onnx_opset_version()
    if version < FIRST_OPSET:
        raise ModelError(
            f"{name}: opset {version} is older than {FIRST_OPSET}; convert it with "
            "onnx.version_converter.convert_version(model, 13)"
        )
    if version > newest:
        raise ModelError(
            f"{name}: opset {version} is newer than this onnx knows ({newest}); update onnx, or export at {newest}"
        )
    return version


def prepare(source: Source) -> Any:
    """A copy of the model that the runtime loads and that says the same: functions inlined, versions lowered.

    A batch axis declared as 0 becomes a symbol. An opset is lowered only as far as no op changes its meaning.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    opset = opset_of(proto, source.name)
    proto = _inlined(proto, source.name)
    del proto.graph.value_info[:]
    del proto.training_info[:]
    proto.ir_version = min(proto.ir_version, RUNTIME_IR)
    if opset > RUNTIME_OPSET:
        needed = max((since_version(n, opset) or opset for n in proto.graph.node), default=RUNTIME_OPSET)
        for entry in proto.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = max(needed, RUNTIME_OPSET)
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) and dims[0].HasField("dim_value") and dims[0].dim_value <= 0:
            dims[0].dim_param = "batch"
    return proto


def _inlined(proto: Any, name: str) -> Any:
    """The model without functions. The calls get the default values of attributes, which onnx's inliner forgets."""
    if not proto.functions:
        return proto
    from onnx.inliner import inline_local_functions

    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    for domain, function, _ in functions:
        if domain in ("", "ai.onnx"):  # the standard leaves it to the runtime which of the two it takes
            raise ModelError(f"{name}: its function {function!r} bears the name of the standard domain; rename it")
    for node in (*proto.graph.node, *(n for f in proto.functions for n in f.node)):
        called = functions.get((node.domain, node.op_type, node.overload))
        if called is None:
            continue
        given = {a.name for a in node.attribute}
        if missing := set(called.attribute) - given:
            raise ModelError(f"{name}: node {node.name!r} does not give attribute {min(missing)!r} of {called.name!r}")
        node.attribute.extend(a for a in called.attribute_proto if a.name not in given)
    return inline_local_functions(proto)


def since_version(node: Any, opset: int) -> int | None:
    """The revision of the node's op that holds at this opset; None for ops that the standard does not have."""
    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else int(schema.since_version)
