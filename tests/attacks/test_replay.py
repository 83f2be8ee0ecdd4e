"""Laws of the judge: what it calls a witness is inside for certain and unsafe in onnxruntime, and nothing else is."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from certify.attacks.replay import Replayer, inside, margin, round_inward
from certify.errors import ModelError
from certify.frontends.onnx_import import load_model
from certify.graph import Graph, Node
from certify.model import Model
from certify.ops import Input, Linear
from certify.property import Box, Case, LpBall, Polytope, input_ball, misclassification

F32 = np.dtype(np.float32)


def model_of(weight, *, batch=1, tail=None, dtype=np.float32, weight_in_graph=None):
    """y = W x as ONNX bytes (plus an optional last op), beside a graph that may claim another W."""
    weight = np.asarray(weight, dtype=dtype)
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h" if tail else "y"], transB=1)]
    if tail:
        nodes.append(helper.make_node(tail, ["h"], ["y"]))
    dims = ["n" if batch < 0 else batch]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", elem, [*dims, weight.shape[1]])],
        [helper.make_tensor_value_info("y", elem, [*dims, weight.shape[0]])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    shown = weight if weight_in_graph is None else np.asarray(weight_in_graph, dtype=dtype)
    ours = Graph(
        (
            Node("x", Input(), (), (weight.shape[1],)),
            Node("y", Linear(shown), (0,), (weight.shape[0],)),
        )
    )
    shape = (batch, weight.shape[1])
    return Model(ours, proto.SerializeToString(), "net.onnx", "", "x", np.dtype(dtype), shape)


def at_most(row, offset, strict=False):
    """{y : row . y <= offset}."""
    offsets = np.array([offset], dtype=np.float64)
    return Polytope(np.array([row], dtype=np.float64), offsets, offsets, np.array([strict]))


def exactly_inside(x, ball):
    total = sum(abs(Fraction(float(a)) - Fraction(float(c))) ** ball.p for a, c in zip(x, ball.center, strict=True))
    within = all(low <= float(a) <= high for a, low, high in zip(x, ball.box.lower, ball.box.upper, strict=True))
    return total <= Fraction(ball.inner_eps) ** ball.p and within


numbers = st.floats(-1e6, 1e6, allow_nan=False)
small = st.floats(-2, 2, allow_nan=False)


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6), st.sampled_from(["f2", "f4", "f8"]))
def test_rounded_points_lie_in_the_box_or_are_counted(triples, kind):
    dtype = np.dtype(kind)
    edges = np.sort(np.clip(np.array([t[:2] for t in triples]), -6e4, 6e4), axis=1)
    box = Box.exact(edges[:, 0], edges[:, 1])
    x, snapped = round_inward(np.array([t[2] for t in triples]), box, dtype)
    assert x.dtype == dtype
    wide = x.astype(np.float64)
    assert ((box.lower <= wide) & (wide <= box.upper) | snapped).all()
    assert inside(x, box) == (not snapped.any()) or inside(x, box)
    # A snapped coordinate's interval really holds no number of the dtype.
    for i in np.flatnonzero(snapped):
        near = box.lower[i].astype(dtype)
        around = [near, np.nextafter(near, dtype.type(-np.inf)), np.nextafter(near, dtype.type(np.inf))]
        assert not any(box.lower[i] <= float(a) <= box.upper[i] for a in around)
        assert abs(wide[i] - box.lower[i]) <= float(np.spacing(np.abs(x[i]).astype(dtype)))


def test_a_tenth_in_float32_is_rounded_inward_not_to_nearest():
    # float32(0.1) = 0.100000001490116 > 0.1: as an upper bound it would be outside.
    x, snapped = round_inward(np.array([0.5]), Box.exact(np.array([0.0]), np.array([0.1])), F32)
    assert x[0] == np.nextafter(np.float32(0.1), np.float32(0))
    assert not snapped.any()
    assert not inside(np.array([np.float32(0.1)]), Box.exact(np.array([0.0]), np.array([0.1])))


def test_degenerate_coordinates_are_snapped_and_counted():
    low = np.array([0.1, 0.5, 0.1])
    high = np.array([0.1, 0.5, np.nextafter(0.1, 1)])
    x, snapped = round_inward(np.zeros(3), Box.exact(low, high), F32)
    assert snapped.tolist() == [True, False, True]
    assert x.tolist() == [np.float32(0.1), np.float32(0.5), np.float32(0.1)]


def test_a_decimal_between_two_floats_turns_the_inner_interval_around_and_is_snapped():
    below, above = np.array([0.1]), np.nextafter(np.array([0.1]), 1)
    x, snapped = round_inward(np.zeros(1), Box(below, above, above, below), np.dtype(np.float64))
    assert snapped.all()
    assert x[0] in (below[0], above[0])


@given(
    st.lists(st.tuples(small, small), min_size=1, max_size=8),
    st.floats(0, 3),
    st.sampled_from([1, 2]),
    st.sampled_from(["f2", "f4", "f8"]),
)
def test_rounded_points_lie_in_the_ball_exactly(pairs, eps, p, kind):
    dtype = np.dtype(kind)
    point, center = np.array(pairs).T
    center = np.clip(center, -1, 1)
    ball = LpBall(center, eps, eps, p, Box.exact(np.full(len(point), -1.0), np.full(len(point), 1.0)))
    x, snapped = round_inward(point, ball, dtype)
    assert inside(x, ball) == exactly_inside(x, ball)
    if not snapped.any():
        assert exactly_inside(x, ball)
    else:
        assert np.array_equal(x, center.astype(dtype))


@given(st.integers(-3, 3), st.sampled_from([1, 2]))
def test_inside_is_decided_to_the_last_bit(ulps, p):
    # |(3, 4)|_2 = 5 and |(3, 4)|_1 = 7 exactly; one ulp of the radius decides.
    size = {1: 7.0, 2: 5.0}[p]
    eps = size + ulps * np.spacing(size)
    ball = LpBall(np.zeros(2), eps, eps, p, Box.exact(np.full(2, -9.0), np.full(2, 9.0)))
    assert inside(np.array([3.0, 4.0]), ball) == (ulps >= 0)


def test_inside_survives_underflow_nan_and_senseless_radii():
    wide = Box.exact(np.full(1, -1.0), np.full(1, 1.0))
    tiny = 2.0**-1000
    assert inside(np.array([tiny]), LpBall(np.zeros(1), tiny, tiny, 2, wide))
    assert not inside(np.array([np.nextafter(tiny, 1)]), LpBall(np.zeros(1), tiny, tiny, 2, wide))
    assert not inside(np.array([np.nan]), wide)
    for eps in (np.nan, np.inf, -1.0):
        assert not inside(np.zeros(1), LpBall(np.zeros(1), eps, eps, 2, wide))


@given(st.floats(0, 1), st.integers(0, 40))
def test_inner_linf_balls_stay_within_eps_exactly(center, k):
    eps = Fraction(k, 255)
    box = input_ball(np.array([center]), eps, "linf", 0.0, 1.0)
    for corner in (-9.0, 9.0):
        x, snapped = round_inward(np.array([corner]), box, F32)
        assert snapped.any() or abs(Fraction(float(x[0])) - Fraction(center)) <= eps


def test_judge_confirms_the_point_itself_and_refuses_outside_the_unsafe_set():
    replayer = Replayer(model_of([[1.0, 0.0], [0.0, 1.0]]))
    case = Case(Box.exact(np.zeros(2), np.ones(2)), (at_most([1.0, -1.0], -0.5),))
    witness = replayer.judge(np.array([0.25, 7.0]), case)
    assert witness is not None
    assert witness.x.tolist() == [0.25, 1.0]
    assert witness.x.dtype == F32
    assert witness.y.tolist() == [0.25, 1.0]
    assert witness.snapped == 0
    assert replayer.judge(np.array([0.75, 1.0]), case) is None
    assert replayer.replay(np.array([0.75, 1.0]), case).margin == 0.25


def test_ties_are_witnesses_unless_the_row_is_strict():
    replayer = Replayer(model_of([[1.0], [1.0]]))
    box = Box.exact(np.zeros(1), np.ones(1))
    # argmax answers the first of equals: class 0 loses no tie, class 1 does.
    assert replayer.judge(np.ones(1), Case(box, misclassification(0, 2))) is None
    assert replayer.judge(np.ones(1), Case(box, misclassification(1, 2))) is not None


def test_nan_and_infinite_outputs_are_never_witnesses():
    everything = Polytope(np.zeros((0, 1)), np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool))
    box = Box.exact(np.full(1, -1.0), np.full(1, 1.0))
    replayer = Replayer(model_of([[1.0]], tail="Log"))
    assert np.isnan(replayer.run(np.array([[-1.0]]))).all()
    for x in (-1.0, 0.0, np.nan):
        assert replayer.judge(np.array([x]), Case(box, (everything,))) is None
    assert replayer.judge(np.array([0.5]), Case(box, (everything,))) is not None
    assert replayer.clean_predictions(np.array([[-1.0], [0.5]])).tolist() == [-1, 0]


def test_no_unsafe_polytope_means_no_witness():
    case = Case(Box.exact(np.zeros(1), np.ones(1)), ())
    replay = Replayer(model_of([[1.0]])).replay(np.zeros(1), case)
    assert replay.witness is None
    assert replay.margin == np.inf


@pytest.mark.parametrize("batch", [1, -1])
def test_batches_equal_single_runs(batch):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 4))
    replayer = Replayer(model_of(weight, batch=batch))
    x = rng.normal(size=(600, 4)).astype(np.float32)
    y = replayer.run(x)
    assert y.dtype == np.float64
    assert y.shape == (600, 3)
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight.astype(np.float32).T, atol=1e-5)
    cases = [Case(Box.exact(np.full(4, -5.0), np.full(4, 5.0)), misclassification(0, 3))] * 20
    together = replayer.judge_batch(list(x[:20]), cases)
    alone = [replayer.judge(a, c) for a, c in zip(x, cases, strict=False)]
    assert [w is None for w in together] == [w is None for w in alone]
    assert any(w is None for w in together)
    assert any(w is not None for w in together)
    assert replayer.run(x[:0]).shape == (0, 3)


def test_a_dynamic_batch_axis_that_the_net_cannot_keep_is_run_one_by_one():
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["h"]),
        helper.make_node("Gemm", ["h", "w"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "shape"),
        numpy_helper.from_array(np.eye(2, dtype=np.float32), "w"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    plain = model_of(np.eye(2), batch=-1)
    model = Model(plain.graph, proto.SerializeToString(), "net.onnx", "", "x", F32, (-1, 2))
    x = np.arange(10.0).reshape(5, 2)
    assert Replayer(model).run(x).tolist() == x.tolist()


def test_replayers_can_be_sent_to_other_processes():
    replayer = Replayer(model_of([[2.0]]))
    replayer.run(np.ones((1, 1)))
    copy = pickle.loads(pickle.dumps(replayer))
    assert copy.run(np.ones((1, 1))).tolist() == [[2.0]]


def test_float64_models_are_fed_float64():
    replayer = Replayer(model_of([[1.0]], dtype=np.float64))
    witness = replayer.judge(np.array([0.1]), Case(Box.exact(np.zeros(1), np.ones(1)), (at_most([1.0], 0.1),)))
    assert witness is not None
    assert witness.x.dtype == np.float64
    assert float(witness.y[0]) == 0.1


def test_what_onnxruntime_fails_to_optimise_is_run_as_it_is():
    """Regression: its fusion of Relu and Clip knows no float64, and such a network could not be decided at all."""
    limits = [numpy_helper.from_array(np.float64(v), n) for n, v in (("low", -1), ("high", 1))]
    ends = [[helper.make_tensor_value_info(n, TensorProto.DOUBLE, [1, 2])] for n in "xy"]
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Clip", ["r", "low", "high"], ["y"])]
    proto = helper.make_model(
        helper.make_graph(nodes, "net", *ends, limits), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    assert Replayer(load_model(proto)).run(np.array([[-0.5, 2.0]])).tolist() == [[0.0, 1.0]]


def test_models_that_cannot_be_replayed_say_so():
    good = model_of([[1.0]])
    for shape, dtype in (((2, 1), F32), ((1, 1), np.dtype(np.int64))):
        with pytest.raises(ModelError, match="export"):
            Replayer(Model(good.graph, good.onnx_bytes, "net.onnx", "", "x", dtype, shape))
    broken = Model(good.graph, b"no model", "net.onnx", "", "x", F32, (1, 1))
    with pytest.raises(ModelError, match=r"net\.onnx: onnxruntime cannot load"):
        Replayer(broken).run(np.ones((1, 1)))


def test_margin_is_the_nearest_polytope_by_its_worst_row():
    both = Polytope(np.eye(2), np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.zeros(2, dtype=bool))
    case = Case(Box.exact(np.zeros(1), np.ones(1)), (both, at_most([1.0, 1.0], 0.0)))
    # first polytope: max(3 - 1, 3 - 2) = 2; second: 6 - 0 = 6
    assert margin(np.array([3.0, 3.0]), case) == 2.0
    assert margin(np.array([np.nan, 0.0]), case) == np.inf


def test_the_onnx_used_here_is_valid():
    onnx.checker.check_model(onnx.load_model_from_string(model_of(np.eye(2), batch=-1, tail="Relu").onnx_bytes))
