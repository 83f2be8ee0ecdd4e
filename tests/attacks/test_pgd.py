"""Laws of the attack: every witness is inside and unsafe, known adversarials are found, replay has the last word."""

from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from certify.attacks.objective import Objective
from certify.attacks.pgd import AttackOptions, attack
from certify.attacks.replay import Replayer, inside
from certify.attacks.surrogate import leaky
from certify.errors import UsageError
from certify.graph import Graph, Node
from certify.model import Model
from certify.ops import Input, Linear, Relu
from certify.property import Box, Case, LpBall, Polytope, misclassification

SAMPLE = torch.zeros(1)


def mlp(*layers, tail=()):
    """A ReLU network of (weight, bias) pairs as our graph and as ONNX; `tail` are ops that only the ONNX has."""
    size = np.asarray(layers[0][0]).shape[1]
    nodes, onnx_nodes, tensors, now = [Node("x", Input(), (), (size,))], [], [], "x"
    for i, (weight, bias) in enumerate(layers):
        weight, bias = np.asarray(weight, dtype=np.float32), np.asarray(bias, dtype=np.float32)
        tensors += [numpy_helper.from_array(weight, f"w{i}"), numpy_helper.from_array(bias, f"b{i}")]
        onnx_nodes.append(helper.make_node("Gemm", [now, f"w{i}", f"b{i}"], [f"h{i}"], transB=1))
        nodes.append(Node(f"h{i}", Linear(weight, bias), (len(nodes) - 1,), bias.shape))
        now = f"h{i}"
        if i + 1 < len(layers):
            onnx_nodes.append(helper.make_node("Relu", [now], [f"r{i}"]))
            nodes.append(Node(f"r{i}", Relu(), (len(nodes) - 1,), bias.shape))
            now = f"r{i}"
    for i, op in enumerate(tail):
        onnx_nodes.append(helper.make_node(op, [now], [f"t{i}"]))
        now = f"t{i}"
    elem = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        onnx_nodes,
        "mlp",
        [helper.make_tensor_value_info("x", elem, ["n", size])],
        [helper.make_tensor_value_info(now, elem, ["n", len(layers[-1][1])])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    dtype = np.dtype(np.float32)
    return Model(Graph(tuple(nodes)), proto.SerializeToString(), "mlp.onnx", "", "x", dtype, (-1, size))


def random_mlp(seed, sizes):
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(sizes)
    return mlp(*((rng.normal(size=(m, n)) / np.sqrt(n), rng.normal(size=m) * 0.1) for n, m in pairs))


def run(model, cases, options, **kwargs):
    return attack(model.graph.cast(SAMPLE), Replayer(model), cases, options, **kwargs)


def polytope(coeff, offset, strict=None):
    offset = np.asarray(offset, dtype=np.float64)
    flags = np.zeros(len(offset), dtype=bool) if strict is None else np.asarray(strict)
    return Polytope(np.asarray(coeff, dtype=np.float64), offset, offset, flags)


def ball(center, eps, p, low=-10.0, high=10.0):
    center = np.asarray(center, dtype=np.float64)
    if p == 0:
        return Box.exact(np.maximum(center - eps, low), np.minimum(center + eps, high))
    return LpBall(center, eps, eps, p, Box.exact(np.full(center.shape, low), np.full(center.shape, high)))


# y = x0 + 2 x1 - 3 x2: over a ball around 0 the minimum is -eps |w|_q: 6 (linf), sqrt(14) (l2), 3 (l1).
LINEAR = mlp(([[1.0, 2.0, -3.0]], [0.0]))
REACH = {0: 6.0, 2: 14.0**0.5, 1: 3.0}


@pytest.mark.parametrize("p", [0, 1, 2])
@pytest.mark.parametrize("options", [AttackOptions(), AttackOptions(probe=False, restarts=3, steps=60, odi_steps=1)])
def test_the_exact_minimum_of_a_linear_network_is_found_and_not_passed(p, options):
    target = [polytope([[1.0]], [-REACH[p] * share]) for share in (0.995, 1.001)]
    cases = [Case(ball(np.zeros(3), 1.0, p), (t,)) for t in target]
    found, beyond = run(LINEAR, cases, options)
    assert found.witness is not None
    assert inside(found.witness.x, cases[0].inputs)
    assert found.best_margin <= 0
    assert beyond.witness is None
    assert 0 < beyond.best_margin < 0.01 * REACH[p]


def test_fgsm_is_one_signed_step_worked_by_hand():
    # Logits (x0 - x1, 0.9), label 0.
    model = mlp(([[1.0, -1.0], [0.0, 0.0]], [0.0, 0.9]))
    box = Box.exact(np.array([1.125, 0.0]), np.array([1.375, 0.25]))
    (result,) = run(model, [Case(box, misclassification(0, 2))], AttackOptions.fgsm())
    # Margin at the centre (1.25, 0.125): 1.125 - 0.9; one step against (1, -1) to (1.125, 0.25): 0.875 - 0.9.
    assert result.steps == 1
    assert result.witness is not None
    assert result.witness.x.tolist() == [1.125, 0.25]
    assert result.best_margin == pytest.approx(-0.025, abs=1e-6)


def test_fgsm_takes_no_second_step():
    # f = |x| - 0.5 = relu(x) + relu(-x) - 0.5: from the middle -0.25 the sign step goes to the far corner +0.5 ...
    model = mlp(([[1.0], [-1.0]], [0.0, 0.0]), ([[1.0, 1.0]], [-0.5]))
    case = Case(Box.exact(np.array([-1.0]), np.array([0.5])), (polytope([[1.0]], [-0.5]),))
    (fgsm,) = run(model, [case], AttackOptions.fgsm())
    assert fgsm.steps == 1
    assert fgsm.witness is None
    # ... and only its start was better: |-0.25| - 0.5 - (-0.5)
    assert fgsm.best_margin == 0.25


def test_mim_steps_add_up_to_eps_on_a_linear_network():
    options = AttackOptions.mim(4)
    case = Case(ball(np.zeros(3), 1.0, 0), (polytope([[1.0]], [-7.0]),))
    (result,) = run(LINEAR, [case], options)
    assert result.steps == 4
    assert result.best_margin == pytest.approx(1.0, abs=1e-5)  # -6 - (-7), the corner exactly
    (short,) = run(LINEAR, [case], dataclasses.replace(options, steps=2))
    assert short.best_margin == pytest.approx(4.0, abs=1e-5)  # half the way: -3 + 7


@pytest.mark.parametrize("targeted", ["untargeted", "multi"])
@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
@pytest.mark.parametrize("p", [0, 1, 2])
def test_witnesses_of_random_networks_are_inside_and_unsafe(p, loss, targeted):
    model = random_mlp(3, (6, 16, 16, 4))
    rng = np.random.default_rng(4)
    x = rng.uniform(0, 1, (12, 6))
    labels = Replayer(model).clean_predictions(x.astype(np.float32))
    eps = {0: 0.3, 2: 0.6, 1: 1.0}[p]
    cases = [Case(ball(a, eps, p, 0.0, 1.0), misclassification(int(k), 4)) for a, k in zip(x, labels, strict=True)]
    results = run(model, cases, AttackOptions(loss=loss, targeted=targeted))
    assert any(r.witness is not None for r in results)
    for case, result in zip(cases, results, strict=True):
        if result.witness is None:
            assert result.best_margin >= 0
            continue
        assert inside(result.witness.x, case.inputs)
        y = Replayer(model).run(result.witness.x[None])[0]
        assert any(p.contains(y) for p in case.unsafe)
        assert result.best_margin <= 0


def test_replay_has_the_last_word_over_the_graph():
    # The graph says y = -x (unsafe everywhere), the ONNX file says y = |x| >= 0.
    model = mlp(([[-1.0]], [0.0]), tail=("Abs",))
    case = Case(Box.exact(np.array([0.5]), np.array([1.0])), (polytope([[1.0]], [-0.25]),))
    (result,) = run(model, [case], AttackOptions())
    assert result.witness is None
    assert result.best_margin >= 0.75


def test_a_network_that_answers_nan_is_never_falsified():
    model = mlp(([[-1.0]], [0.0]), tail=("Log",))  # log of negative numbers
    case = Case(Box.exact(np.array([0.5]), np.array([1.0])), (polytope([[1.0]], [1e6]),))
    (result,) = run(model, [case], AttackOptions())
    assert result.witness is None
    assert result.best_margin == np.inf
    broken = mlp(([[np.nan]], [0.0]))
    (result,) = run(broken, [case], AttackOptions())
    assert result.witness is None


def test_the_same_seed_gives_the_same_result():
    model = random_mlp(5, (30, 40, 5))
    x = np.random.default_rng(6).uniform(0, 1, (4, 30))
    cases = [Case(ball(a, 0.05, 0, 0.0, 1.0), misclassification(0, 5)) for a in x]
    options = AttackOptions(restarts=3, odi_steps=2, targeted="multi", seed=9)
    first, second = run(model, cases, options), run(model, cases, options)
    assert [r.best_margin for r in first] == [r.best_margin for r in second]
    assert [r.steps for r in first] == [r.steps for r in second]
    for a, b in zip(first, second, strict=True):
        assert (a.witness is None) == (b.witness is None)
        assert a.witness is None or np.array_equal(a.witness.x, b.witness.x)


def test_a_tie_is_no_witness_where_the_row_is_strict():
    # Both logits are relu(x): tied everywhere.
    model = mlp(([[1.0]], [0.0]), ([[1.0], [1.0]], [0.0, 0.0]))
    box = Box.exact(np.array([0.0]), np.array([1.0]))
    strict, loose = run(
        model, [Case(box, misclassification(0, 2)), Case(box, misclassification(1, 2))], AttackOptions()
    )
    assert strict.witness is None
    assert strict.best_margin == 0
    assert loose.witness is not None


def test_conjunctions_are_met_in_all_rows():
    # Outputs are (x0, x1): unsafe is x0 <= -0.9 and x1 >= 0.9, or the impossible x0 <= -2 and x1 <= 5 and x1 >= -5.
    model = mlp((np.eye(2), np.zeros(2)))
    corner = polytope([[1.0, 0.0], [0.0, -1.0]], [-0.9, -0.9])
    never = polytope([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [-2.0, 5.0, 5.0])
    box = Box.exact(np.full(2, -1.0), np.ones(2))
    cases = [Case(box, (never, corner)), Case(box, (never,)), Case(box, ())]
    met, unmet, empty = run(model, cases, AttackOptions(targeted="multi"))
    assert met.witness is not None
    assert met.witness.x[0] <= -0.9
    assert met.witness.x[1] >= 0.9
    assert unmet.witness is None
    assert unmet.best_margin == 1.0
    assert empty.witness is None
    assert empty.best_margin == np.inf


def test_leaking_gradients_wake_sleeping_neurons():
    # f = 1 - relu(sum x - 2.5) on 30 coordinates around 0: flat at the centre, unsafe in one corner.
    size = 30
    model = mlp((np.ones((1, size)), [-2.5]), ([[-1.0]], [1.0]))
    case = Case(ball(np.zeros(size), 0.125, 0), (polytope([[1.0]], [0.0]),))
    flat, awake = (run(model, [case], AttackOptions(restarts=1, leaks=(leak,)))[0] for leak in (0.0, 0.01))
    assert flat.witness is None
    assert awake.witness is not None
    x = torch.randn(5, size)
    graph = model.graph.cast(SAMPLE)
    assert torch.equal(leaky(graph, 0.3)(x), graph(x))


def test_few_varying_coordinates_are_sampled():
    # A needle: unsafe only where a narrow bump of x0 is high, with no gradient elsewhere; 200 fixed coordinates.
    weight = np.zeros((3, 201))
    weight[:, 0] = 1.0
    model = mlp((weight, [-0.60, -0.61, -0.62]), ([[-100.0, 200.0, -100.0]], [0.5]))
    low, high = np.full(201, 0.5), np.full(201, 0.5)
    low[0], high[0] = 0.0, 1.0
    case = Case(Box.exact(low, high), (polytope([[1.0]], [0.0]),))
    (result,) = run(model, [case], AttackOptions())
    assert result.witness is not None
    assert 0.60 < result.witness.x[0] < 0.62


def test_sets_of_different_kinds_share_one_call():
    cases = [Case(ball(np.zeros(3), 1.0, p), (polytope([[1.0]], [-REACH[p] * 0.99]),)) for p in (0, 1, 2, 0)]
    assert all(r.witness is not None for r in run(LINEAR, cases, AttackOptions()))
    assert run(LINEAR, [], AttackOptions()) == []


def test_strong_stops_at_its_deadline_and_judges_what_it_has():
    case = Case(ball(np.zeros(3), 1.0, 0), (polytope([[1.0]], [-7.0]),))
    start = time.monotonic()
    (result,) = run(LINEAR, [case], AttackOptions.strong(), deadline=start + 0.3)
    assert time.monotonic() - start < 5
    assert result.best_margin == pytest.approx(1.0, abs=1e-5)


def test_margins_and_losses_worked_by_hand():
    cases = [
        Case(ball(np.zeros(1), 1.0, 0), misclassification(0, 3)),
        Case(ball(np.zeros(1), 1.0, 0), (polytope([[1.0, 0, 0], [0, 1.0, 0]], [1.0, -1.0]),)),
    ]
    objective = Objective.of(cases, SAMPLE)
    y, owner, any_target = torch.tensor([[3.0, 1.0, 2.0]] * 2), torch.tensor([0, 1]), torch.tensor([-1, -1])
    assert objective.label.tolist() == [0, -1]
    assert objective.margins(y, owner).amin(1).tolist() == [1.0, 2.0]  # min(3-1, 3-2); max(3-1, 1+1)
    assert objective.loss(y, owner, any_target, "margin").tolist() == [1.0, 2.0]
    assert objective.loss(y, owner, any_target, "hinge").tolist() == [1.0, 4.0]
    entropy = objective.loss(y, owner, any_target, "cross_entropy")
    assert entropy[0] == pytest.approx(float(torch.log_softmax(y[0], 0)[0]))
    assert entropy[1] == 2.0
    aimed = objective.loss(y, owner, torch.tensor([0, 0]), "cross_entropy")
    assert aimed[0] == pytest.approx(-float(torch.log_softmax(y[0], 0)[1]))


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"restarts": 0},
        {"step_sizes": ()},
        {"step_sizes": (0.0,)},
        {"decay": 2.0},
        {"momentum": float("nan")},
        {"leaks": ()},
        {"loss": "mse"},
        {"targeted": "all"},
    ],
)
def test_options_that_make_no_sense_are_refused(bad):
    with pytest.raises(UsageError, match="attack"):
        AttackOptions(**bad)
