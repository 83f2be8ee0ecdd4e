"""The checker reads every network as certify's own front end does: the same numbers, the same units in order."""

from __future__ import annotations

import csv
import hashlib
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from check_evaluate import evaluate, unit_sizes
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import append, chain, f, i64, image_net, mlp
from onnx_tables import CHAINS, TABLE, Case, network

from certify.check.content import Before
from certify.check.errors import Rejected
from certify.check.network import Relu, Scale
from certify.check.read_onnx import fingerprint, read_network
from certify.frontends.onnx_import import load_model
from certify.rules import is_affine

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT.parent / "shared" / "bench"
TOLERANCE = 1e-10  # both are float64
FLOAT_TOLERANCE = 2e-4  # float32 against float64 on deep networks


def assert_same(data: bytes, path: Path | None = None, **options: Any) -> Any:
    """Both readers: the same units in order, the same numbers on random points."""
    model = load_model(path if path is not None else data, check=False, **options)
    softmax = "dropped" if model.softmax_dropped else "kept"
    ours = read_network(data, model.before, softmax, path)
    nonlinear = [node for node in model.graph.nodes[1:] if not is_affine(node.op)]
    assert unit_sizes(ours) == [int(np.prod(node.shape)) for node in nonlinear]
    rng = np.random.default_rng(1)
    for scale in (0.0, 1.0, 3.0):
        x = scale * rng.uniform(-1, 1, model.graph.input_shape)
        theirs, found = model.graph.evaluate(x[None]), evaluate(ours, x)
        pairs = [
            (found[ours.nodes[u].inputs[0]], theirs[n.inputs[0]]) for u, n in zip(ours.units, nonlinear, strict=True)
        ]
        for mine, other in [*pairs, (found[-1], theirs[-1])]:  # what enters the units, neuron by neuron, and the output
            size = TOLERANCE * max(1.0, float(np.abs(other).max()))
            np.testing.assert_allclose(mine.reshape(-1), other.reshape(-1), rtol=TOLERANCE, atol=size)
    return ours


@pytest.mark.parametrize("case", TABLE, ids=[f"{i}-{c.op}-{c.opset}" for i, c in enumerate(TABLE)])
def test_op_is_read_alike(case: Case) -> None:
    assert_same(network(case).SerializeToString())


@pytest.mark.parametrize("name", CHAINS)
def test_chain_is_read_alike(name: str) -> None:
    assert_same(CHAINS[name]().SerializeToString())


def test_both_readers_know_the_same_ops_and_revisions() -> None:
    from certify.check.call import HANDLERS
    from certify.frontends.onnx_lower import HANDLERS as THEIRS

    assert {op: set(since) for op, (_, since, _) in HANDLERS.items()} == {
        op: set(e.versions) for op, e in THEIRS.items()
    }


def bench() -> list[Path]:
    if not (BENCH / "instances.csv").exists():
        return []
    with (BENCH / "instances.csv").open() as rows:
        names = sorted({row["onnx"] for row in csv.DictReader(rows)})
    return [*(BENCH / n for n in names), *sorted((BENCH / "tjeng").glob("*.onnx"))]


@pytest.mark.parametrize("path", [*sorted((ROOT / "models").glob("*.onnx")), *bench()], ids=lambda p: p.name)
def test_a_real_network_is_read_alike_and_as_onnxruntime_runs_it(path: Path) -> None:
    network = assert_same(path.read_bytes(), path)
    model = load_model(path)
    session = onnxruntime.InferenceSession(model.onnx_bytes, providers=["CPUExecutionProvider"])
    shape = [max(n, 1) for n in model.onnx_shape]
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.uniform(0, 1, shape).astype(model.input_dtype)
        (theirs,) = session.run(None, {model.input_name: x})
        found = evaluate(network, x.astype(np.float64))[-1]
        size = max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(found, theirs.reshape(-1), rtol=FLOAT_TOLERANCE, atol=FLOAT_TOLERANCE * size)


class TestBefore:
    def test_normalisation_per_channel_and_layout(self) -> None:
        rng = np.random.default_rng(0)
        proto = image_net(("n", 2, 4, 3), 24).SerializeToString()
        network = assert_same(proto, mean=[0.1, 0.2, 0.3], std=[0.3, 0.2, 0.1], layout="nhwc")
        x = rng.random((3, 2, 4))
        mean, std = (np.float32(v).astype(float).reshape(3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]))
        flat = ((x - mean) / std).transpose(1, 2, 0).reshape(-1)
        np.testing.assert_allclose(evaluate(network, x)[-1], [flat @ np.arange(1, 25)], rtol=1e-12)

    def test_one_number(self) -> None:
        assert_same(mlp().SerializeToString(), mean=0.1307, std=0.3081)

    @pytest.mark.parametrize(
        "before",
        [Before(mean=(0.1, 0.2)), Before(std=0.0), Before(std=1e-60), Before(layout="nhwc"), Before(mean=1e60)],
    )
    def test_what_does_not_fit_is_rejected(self, before: Before) -> None:
        with pytest.raises(Rejected, match="model"):
            read_network(mlp().SerializeToString(), before, "kept")


class TestSoftmax:
    def net(self, *more: Any) -> bytes:
        nodes = [helper.make_node("Softmax", ["y"], ["s"], "soft"), *more]
        proto = append(mlp(), *nodes)
        return bytes(proto.SerializeToString())

    def test_a_final_one_is_dropped_if_the_certificate_says_so(self) -> None:
        assert_same(self.net())
        assert_same(self.net(helper.make_node("Identity", ["s"], ["z"])))

    def test_the_certificate_and_the_file_must_agree(self) -> None:
        with pytest.raises(Rejected, match="softmax"):
            read_network(self.net(), Before(), "kept")
        with pytest.raises(Rejected, match="softmax"):
            read_network(mlp().SerializeToString(), Before(), "dropped")

    def test_one_in_the_middle_is_rejected(self) -> None:
        with pytest.raises(Rejected, match=r"'late'.*Softmax"):
            read_network(self.net(helper.make_node("Relu", ["s"], ["z"], "late")), Before(), "dropped")


class TestErrors:
    """What had to be computed says how far it may be off, by fractions."""

    def test_batch_norm(self) -> None:
        rng = np.random.default_rng(3)
        constants = {k: np.abs(rng.standard_normal(5)).astype(np.float32) for k in "gbmv"}
        proto = chain([("BatchNormalization", ["x", *"gbmv"], {"epsilon": 1e-3})], constants, (1, 5))
        (scale,) = (n.op for n in read_network(proto.SerializeToString(), Before(), "kept").nodes if n.name == "n0")
        assert isinstance(scale, Scale)
        assert 0 < scale.weight_error < 1e-15
        assert scale.bias is not None
        epsilon = Fraction(float(np.float32(1e-3)))
        for i in range(5):
            g, b, m, v = (Fraction(float(constants[k][i])) for k in "gbmv")
            w, e = Fraction(scale.weight[i]), Fraction(scale.weight_error)
            low, high = w * (1 - e), w * (1 + e)
            assert low**2 * (v + epsilon) <= g**2 <= high**2 * (v + epsilon)
            assert high - low < Fraction(1, 10**14)
            t, d = Fraction(scale.bias[i]), Fraction(float(np.broadcast_to(scale.bias_error, (5,))[i]))
            # g / sqrt(v + eps) * m lies in [low m, high m], a little wider than the truth
            assert t - d <= b - low * m
            assert b - high * m <= t + d
            assert d < Fraction(1, 10**13)

    def test_a_ninth(self) -> None:
        network = read_network(
            chain([("AveragePool", ["x"], {"kernel_shape": [3, 3]})], {}, (1, 1, 4, 4)).SerializeToString(),
            Before(),
            "kept",
        )
        (scale,) = (n.op for n in network.nodes if isinstance(n.op, Scale))
        w, e = Fraction(float(scale.weight)), Fraction(scale.weight_error)
        assert 0 < abs(w - Fraction(1, 9)) <= e * w < Fraction(1, 10**15)

    @pytest.mark.parametrize(("slope", "exact"), [(0.125, True), (1.0, True), (0.01, False)])
    def test_one_less_slope(self, slope: float, exact: bool) -> None:
        proto = chain([("LeakyRelu", ["x"], {"alpha": slope})], {}, (1, 3))
        network = read_network(proto.SerializeToString(), Before(), "kept")
        (rest,) = (
            n.op for n in network.nodes if isinstance(n.op, Scale) and isinstance(network.nodes[n.inputs[0]].op, Relu)
        )
        true = 1 - Fraction(float(np.float32(slope)))
        assert abs(Fraction(float(rest.weight)) - true) <= Fraction(rest.weight_error) * abs(true)
        assert (rest.weight_error == 0) == (abs(Fraction(float(rest.weight)) - true) == 0) or not exact


class TestDoubts:
    """What float32 arithmetic node by node does not describe is said, for the checker's float32 level."""

    def doubts(self, *steps: Any, **constants: Any) -> tuple[str, ...]:
        return read_network(chain(list(steps), constants, (1, 4)).SerializeToString(), Before(), "kept").doubts

    def test_a_constant_that_the_runtime_computes(self) -> None:
        """(1e8 + 1) - 1e8 is 1, in float32 0."""
        big, one = np.float32(1e8), np.float32(1)
        steps = [("Add", ["big", "one"], {}), ("Sub", ["t0", "big"], {}), ("Mul", ["x", "t1"], {})]
        assert "'n0'" in self.doubts(*steps, big=big, one=one)[0]
        assert not self.doubts(steps[-1], t1=one)

    def test_float16(self) -> None:
        assert "float16" in self.doubts(("Cast", ["x"], {"to": TensorProto.FLOAT16}))[0]
        assert not self.doubts(("Cast", ["x"], {"to": TensorProto.DOUBLE}))
        network = read_network(mlp(dtype=np.float16).SerializeToString(), Before(), "kept")
        assert "float16" in network.doubts[0]

    def test_constants_of_a_sum_stay_apart(self) -> None:
        """x + 1e8 - 1e8 is x, but not in float32."""
        constants = {"b": np.float32([1e8] * 4), "c": np.float32([-1e8] * 4)}
        proto = chain([("Sum", ["x", "b", "c"], {})], constants, (1, 4))
        network = read_network(proto.SerializeToString(), Before(), "kept")
        shifts = [n.op.bias[0] for n in network.nodes if isinstance(n.op, Scale) and n.op.bias is not None]
        assert shifts == [1e8, -1e8]


def changed(node: int, attribute: str, value: Any) -> bytes:
    proto = mlp()
    proto.graph.node[node].attribute.append(helper.make_attribute(attribute, value))
    return bytes(proto.SerializeToString())


def nan_weight() -> bytes:
    proto = mlp()
    w = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    w[0, 0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(w, "w1"))
    return bytes(proto.SerializeToString())


def added(*nodes: Any, **options: Any) -> bytes:
    return bytes(append(mlp(**options), *nodes).SerializeToString())


def scattered(reduction: str) -> bytes:
    """0.1 with 0.1 put in its place, or added to it, which float32 rounds."""
    constants = {"d": np.float32([0.1] * 4), "i": np.array([[2]]), "u": np.float32([0.1])}
    steps = [("ScatterND", ["d", "i", "u"], {"reduction": reduction}), ("Mul", ["x", "t0"], {})]
    return bytes(chain(steps, constants, (1, 4)).SerializeToString())


def shifted(steps: list[Any], **constants: Any) -> bytes:
    """x and what these nodes make of constants, its numbers one by one, added."""
    last = f"t{len(steps) - 1}"
    more = [("Cast", [last], {"to": 1}), ("Reshape", [f"t{len(steps)}", "flat"], {})]
    more += [("Concat", [f"t{len(steps) + 1}", "one"], {"axis": 0}), ("Add", ["x", f"t{len(steps) + 2}"], {})]
    return bytes(chain(steps + more, {**constants, "flat": i64(-1), "one": f(1)}, (1, 1)).SerializeToString())


def seven() -> bytes:
    proto = mlp(shape=(7, 4))
    proto.graph.node.append(helper.make_node("Neg", ["b2"], ["z"]))
    proto.graph.output.insert(0, helper.make_tensor_value_info("z", TensorProto.FLOAT, [3]))
    return bytes(proto.SerializeToString())


def double() -> Any:
    return helper.make_node("Add", ["a", "a"], ["b"])


def slope() -> Any:
    """LeakyRelu with the attribute s of the function in which it stands."""
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    node.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="s", type=onnx.AttributeProto.FLOAT))
    return node


def functional(
    name: str, domain: str, body: list[Any], defaults: Any = (), attributes: Any = (), **given: Any
) -> bytes:
    """x -> a function of the file, of one input and one output."""
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)]
    made = helper.make_function(domain, name, ["a"], ["b"], body, opsets[:1], attributes=attributes)
    made.attribute_proto.extend(defaults)
    node = helper.make_node(name, ["x"], ["y"], "call", domain=domain, **given)
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3])] for n in ("x", "y")]
    graph = helper.make_graph([node], "own", *ends)
    return bytes(helper.make_model(graph, opset_imports=opsets, functions=[made], ir_version=8).SerializeToString())


@pytest.mark.parametrize(("given", "expected"), [({}, 0.25), ({"s": 0.5}, 0.5)])
def test_a_function_has_the_default_values_of_its_attributes(given: dict[str, float], expected: float) -> None:
    """onnx's inliner forgets them, and so would compute with LeakyRelu's own 0.01."""
    data = functional("F", "own", [slope()], [helper.make_attribute("s", 0.25)], **given)
    network = assert_same(data)
    x = np.array([[-1.0, 2.0, -3.0]], dtype=np.float32)
    (theirs,) = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert theirs.tolist() == [[-expected, 2, -3 * expected]]
    assert evaluate(network, x.astype(np.float64))[-1].tolist() == theirs[0].tolist()
    assert load_model(data).graph(x.astype(np.float64)).tolist() == theirs.tolist()


def agrees(data: bytes) -> None:
    """Both readers and onnxruntime, on networks of one number."""
    network = assert_same(data)
    x = np.array([[0.375]], dtype=np.float32)
    (theirs,) = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(evaluate(network, x.astype(np.float64))[-1], theirs.ravel(), rtol=1e-7)


AS_COMPUTED: dict[str, bytes] = {
    "0.1 rounded to float32 is that number": shifted(
        [("Cast", ["a"], {"to": 1}), ("Equal", ["t0", "b"], {})], a=np.float64(0.1), b=np.float32(0.1)
    ),
    "2049 is 2048 in float16": shifted(
        [("Cast", ["a"], {"to": 10}), ("Cast", ["t0"], {"to": 7})], a=np.float32([2049, 0.1])
    ),
    "beyond float32 is infinite": shifted([("Cast", ["a"], {"to": 1}), ("IsInf", ["t0"], {})], a=np.float64(1e300)),
    "a sum that float32 holds": shifted([("Add", ["a", "b"], {}), ("Floor", ["t0"], {})], a=f(1), b=np.float32([0.0])),
    "backward from beyond the beginning": shifted(
        [("Slice", ["a", "b", "c", "d", "e"], {})], a=i64(7, 8, 9), b=i64(-5), c=i64(-6), d=i64(0), e=i64(-1)
    ),
    "joined of nothing and nothing": shifted(
        [("Concat", ["a", "b"], {"axis": 1}), ("Shape", ["t0"], {})], a=np.zeros((0, 2)), b=np.zeros((0, 3))
    ),
}


@pytest.mark.parametrize("name", AS_COMPUTED)
def test_constants_are_those_that_onnxruntime_computes(name: str) -> None:
    agrees(AS_COMPUTED[name])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_constant_cast_like_an_activation_has_its_type(kind: Any) -> None:
    nodes = [helper.make_node("CastLike", ["c", "x"], ["d"], "like"), helper.make_node("Mul", ["x", "d"], ["y"])]
    ends = [[helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [1, 1])] for n in "xy"]
    graph = helper.make_graph(nodes, "like", *ends, [numpy_helper.from_array(np.float64(0.1), "c")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=8)
    read = read_network(proto.SerializeToString(), Before(), "kept")
    assert evaluate(read, np.ones(1))[-1].tolist() == [float(kind(0.1))]
    there = onnx.helper.make_node("Cast", ["x"], ["z"], to=TensorProto.DOUBLE)
    proto.graph.node.insert(0, there)  # what is like x or z is no longer known
    proto.graph.node[1].input[1] = proto.graph.node[2].input[0] = "z"
    if kind != np.float64:
        with pytest.raises(Rejected, match=r"'like'.*cast"):
            read_network(proto.SerializeToString(), Before(), "kept")


def test_putting_constants_elsewhere_is_exact() -> None:
    assert_same(scattered("none"))


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not an ONNX file"),
    "text": (b"a text", "not an ONNX file"),
    "truncated": (mlp().SerializeToString()[:-40], "model"),
    "unknown op": (added(helper.make_node("Erf", ["y"], ["z"], "e")), "'e'.*Erf"),
    "unknown domain": (added(helper.make_node("Relu", ["y"], ["z"], "e", domain="com.x")), "'e'.*com.x"),
    "old opset": (mlp(opset=6).SerializeToString(), "opset"),
    "new opset": (mlp(opset=1000).SerializeToString(), "opset"),
    "unknown attribute": (changed(1, "size", 3), "'relu'.*attribute"),
    "transposed twice": (changed(0, "transA", 1), "first"),
    "bilinear": (added(helper.make_node("Mul", ["y", "y"], ["z"], "m")), "'m'.*product"),
    "NaN": (nan_weight(), "first.*NaN"),
    "open axis": (mlp(shape=("n", "m")).SerializeToString(), "only the batch"),
    "fixed batch": (mlp(shape=(7, 4)).SerializeToString(), "fixed batch of 7"),
    "constant output": (added(helper.make_node("Constant", [], ["z"], value_float=1.0)), "0 inputs"),
    "misses an input": (added(helper.make_node("Relu", ["q"], ["z"], "r")), "inputs"),
    "written twice": (added(helper.make_node("Relu", ["r"], ["y"], "again")), "twice"),
    "training": (
        added(helper.make_node("Dropout", ["y"], ["z", "mask"], "d"), helper.make_node("Relu", ["mask"], ["a"])),
        "'d'",
    ),
    "power": (added(helper.make_node("Pow", ["y", "b2"], ["z"], "p")), "'p'.*exponent"),
    "stack": (added(helper.make_node("MatMul", ["y", "y"], ["z"], "p")), "'p'.*product"),
    "reshape": (added(helper.make_node("Reshape", ["y", "b2"], ["z"], "p")), "'p'.*integers"),
    "a sum that rounds": (scattered("add"), "'n0'.*adds up"),
    "integers divided": (
        chain(
            [("Div", ["a", "b"], {}), ("Reshape", ["x", "t0"], {})],
            {"a": np.array([-7, 4]), "b": np.array([2, 1])},
            (1, 4),
        ).SerializeToString(),
        "'n0'.*negative",
    ),
    "a constant twice": (
        chain(
            [("Constant", [], {"value_float": 1.0}), ("Mul", ["x", "t0"], {}), ("Constant", [], {"value_float": 2.0})],
            {"t0": np.float32(3.0)},
            (1, 4),
        ).SerializeToString(),
        "twice",
    ),
    "a flag of two": (
        chain([("MaxPool", ["x"], {"kernel_shape": [2, 2], "ceil_mode": 2})], {}, (1, 1, 4, 4)).SerializeToString(),
        "ceil_mode = 2",
    ),
    "an attribute of another type": (added(helper.make_node("LeakyRelu", ["y"], ["z"], alpha=1)), "another type"),
    "an input too many": (added(helper.make_node("Relu", ["y", "b2"], ["z"], "r")), "'r'.*2 inputs"),
    "a batch of seven, as the second output": (seven(), "fixed batch of 7"),
    "a power of integers": (shifted([("Pow", ["a", "b"], {})], a=i64(3), b=i64(39)), "'n0'.*not supported"),
    "a product that runtimes round": (shifted([("ReduceProd", ["a"], {})], a=i64(3**20, 3**20)), "'n0'.*large"),
    "a sum that runtimes round": (shifted([("ReduceSum", ["a"], {})], a=i64(2**60, 1)), "'n0'.*large"),
    "NaN that is chosen among": (shifted([("ReduceMin", ["a"], {})], a=np.float32([np.nan, 1])), "'n0'.*NaN"),
    "what float32 does not hold, rounded": (
        shifted([("Mul", ["a", "b"], {}), ("Ceil", ["t0"], {})], a=np.float32(0.1), b=np.float32(10)),
        "'n1'.*not supported",
    ),
    "what float32 does not hold, as an integer": (
        shifted([("Add", ["a", "b"], {}), ("Cast", ["t0"], {"to": 7})], a=np.float32(1e8), b=np.float32(1)),
        "'n1'.*cast",
    ),
    "out of an integer's range": (shifted([("Cast", ["a"], {"to": 2})], a=np.float32(300)), "'n0'.*fit"),
    "a slice backward of nothing": (
        shifted(
            [("Slice", ["a", "b", "c", "d", "d_"], {})], a=i64(1, 2), b=i64(9), c=i64(2**63 - 1), d=i64(0), d_=i64(-1)
        ),
        "'n0'.*backward",
    ),
    "more cut off than there is": (
        chain([("Pad", ["x", "p"], {})], {"p": i64(0, -5, 0, 9)}, (1, 4)).SerializeToString(),
        "'n0'.*cut off",
    ),
    "reflected twice": (
        chain([("Pad", ["x", "p"], {"mode": "reflect"})], {"p": i64(0, 4, 0, 0)}, (1, 4)).SerializeToString(),
        "'n0'.*reflect",
    ),
    "steps over more than a cell": (
        chain(
            [("Conv", ["x", "w"], {"auto_pad": "SAME_UPPER", "strides": [4]})], {"w": f(1, 1, 2)}, (1, 1, 8)
        ).SerializeToString(),
        "'n0'.*SAME_UPPER",
    ),
    "a function that is called as an op": (functional("Relu", "", [double()]), "function in the standard"),
    "a function without its attribute": (functional("F", "own", [slope()], attributes=["s"]), "'s'.*not given"),
    "empty slice": (
        added(helper.make_node("Slice", ["y"], ["z"], "p", starts=[2], ends=[1], axes=[1]), opset=7),
        "'p'.*nothing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_rejected(name: str) -> None:
    data, words = REFUSED[name]
    with pytest.raises(Rejected, match=words):
        read_network(data, Before(), "kept")


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, size_threshold=0, location="w.bin")
    data = path.read_bytes()
    assert_same(data, path)
    assert fingerprint(data, path) == load_model(path, check=False).sha256 != hashlib.sha256(data).hexdigest()
    for read in (lambda: read_network(data, Before(), "kept"), lambda: fingerprint(data)):
        with pytest.raises(Rejected, match="other files"):
            read()
    stale = fingerprint(data, path)
    (tmp_path / "w.bin").write_bytes(b"\1" + (tmp_path / "w.bin").read_bytes()[1:])
    assert fingerprint(data, path) == load_model(path, check=False).sha256 != stale
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(Rejected, match="model"):
        read_network(data, Before(), "kept", path)


def test_external_data_of_a_functions_default_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies beside the model and counts in its fingerprint; onnx would look for it where the process runs."""
    stored = TensorProto(name="two", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    stored.external_data.add(key="location", value="w.bin")
    constant = helper.make_node("Constant", [], ["two"])
    constant.attribute.append(onnx.AttributeProto(name="value", ref_attr_name="t", type=onnx.AttributeProto.TENSOR))
    body = [constant, helper.make_node("Mul", ["a", "two"], ["b"])]
    data = functional("F", "own", body, [onnx.AttributeProto(name="t", t=stored, type=onnx.AttributeProto.TENSOR)])
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / "m.onnx"
    path.write_bytes(data)
    (path.parent / "w.bin").write_bytes(np.float32([2]).tobytes())
    (tmp_path / "w.bin").write_bytes(np.float32([3]).tobytes())
    monkeypatch.chdir(tmp_path)
    network = assert_same(data, path)
    assert evaluate(network, np.ones(3))[-1].tolist() == [2, 2, 2]
    assert fingerprint(data, path) == load_model(path, check=False).sha256 != hashlib.sha256(data).hexdigest()


def test_the_fingerprint_of_one_file_is_its_hash() -> None:
    data = mlp().SerializeToString()
    assert fingerprint(data) == hashlib.sha256(data).hexdigest() == load_model(data, check=False).sha256


def test_functions_are_inlined() -> None:
    """A function of the file, y = relu(2 x), used twice."""
    two = helper.make_node("Constant", [], ["two"], value_float=2.0)
    body = [two, helper.make_node("Mul", ["a", "two"], ["m"]), helper.make_node("Relu", ["m"], ["b"])]
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 13)])
    nodes = [helper.make_node("Twice", [a], [b], domain="own") for a, b in (("x", "h"), ("h", "y"))]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3])] for n in ("x", "y")]
    graph = helper.make_graph(nodes, "own", ends[0], ends[1])
    proto = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    network = assert_same(proto.SerializeToString())
    assert evaluate(network, np.array([-1.0, 0.5, 3.0]))[-1].tolist() == [0, 2, 12]


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_raise_nothing_but_rejected(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(mlp().SerializeToString())
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] = rng.integers(256)
    with suppress(Rejected):
        read_network(bytes(data[: rng.integers(len(data) // 2, len(data) + 1)]), Before(), "kept")
