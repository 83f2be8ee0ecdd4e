"""Every op has every rule it needs, once; casts account for what they round."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact import exact
from op_cases import AFFINE_CASES, nasty

from certify import ops, rules
from certify.errors import ModelError
from certify.graph import Graph, Node
from certify.ops import AFFINE_OPS, NONLINEAR_OPS
from certify.ops.base import Weighted, gamma
from certify.rules import Op, RuleTable

EVERY_OP = [*AFFINE_OPS, *NONLINEAR_OPS]


def all_ops(kind=Op):
    """Every concrete op class of certify.ops, however deep; the surrogate that attacks descend on is never bounded."""
    return [
        k
        for s in kind.__subclasses__()
        for k in ([s] if s is not Weighted else []) + all_ops(s)
        if k.__module__.startswith("certify.ops.")
    ]


def test_the_lists_of_ops_are_complete():
    assert set(all_ops()) == {*EVERY_OP, ops.Input}


@pytest.mark.parametrize("table", [rules.evaluate, rules.interval, rules.cast], ids=lambda t: t.name)
def test_every_op_has_the_rules_of_every_op(table):
    assert table.covers(EVERY_OP) == []


@pytest.mark.parametrize(
    "table", [rules.linear, rules.transpose, rules.bias, rules.absolute, rules.terms], ids=lambda t: t.name
)
def test_affine_ops_have_the_affine_rules_and_only_they(table):
    assert table.covers(AFFINE_OPS) == []
    assert table.covers(NONLINEAR_OPS) == sorted(k.__name__ for k in NONLINEAR_OPS)


def test_nonlinear_ops_relax_and_only_they():
    assert rules.relax.covers(NONLINEAR_OPS) == []
    assert rules.relax.covers(AFFINE_OPS) == sorted(k.__name__ for k in AFFINE_OPS)


def test_every_affine_op_has_a_case_in_the_laws():
    assert {type(case.op) for case in AFFINE_CASES} == set(AFFINE_OPS)


def test_a_second_rule_for_one_type_raises():
    table: RuleTable[int] = RuleTable("area")
    table.register(ops.Relu)(lambda op: 1)
    with pytest.raises(ValueError, match="area: Relu already has a rule"):
        table.register(ops.Sigmoid, ops.Relu)(lambda op: 2)


def test_a_missing_rule_raises_and_is_not_inherited():
    @dataclass(frozen=True, eq=False)
    class Odd(ops.Relu):
        """A subclass whose mathematics nobody stated."""

    with pytest.raises(NotImplementedError, match="evaluate: no rule for op Odd"):
        rules.evaluate(Odd(), np.zeros(1))
    assert rules.evaluate.covers([Odd, ops.Relu]) == ["Odd"]
    assert Odd not in rules.evaluate


@pytest.mark.parametrize("to", ["float32-numpy", "float32-torch"])
@pytest.mark.parametrize("case", [c for c in AFFINE_CASES if isinstance(c.op, Weighted)], ids=lambda c: c.name)
def test_casting_keeps_the_true_constants_within_the_stated_errors(case, to):
    """|true - weight| <= weight_error |weight| and |true - bias| <= bias_error after float64 -> float32, exactly."""
    from dataclasses import replace

    for stated in (0.0, 1e-9, 1e-3):
        op = replace(case.op, weight_error=stated, bias_error=stated)
        sample = np.zeros(1, dtype=np.float32) if to.endswith("numpy") else torch.zeros(1)
        small = rules.cast(op, sample)
        assert str(small.weight.dtype).endswith("float32")
        # The true weight may be as far off as stated, on either side.
        for side in (-1, 1):
            true = exact(op.weight) * (1 + side * Fraction(stated))
            assert (
                np.abs(true - exact(small.weight)) <= Fraction(small.weight_error) * np.abs(exact(small.weight))
            ).all()
            shift = exact(op.bias) + side * Fraction(stated) if op.bias is not None else None
            error = exact(np.broadcast_to(np.asarray(small.bias_error), np.shape(small.bias)))
            if shift is not None:
                assert (np.abs(shift - exact(small.bias)) <= error).all()


def test_casting_exact_constants_states_no_error():
    op = ops.Linear(np.array([[0.5, -3.0]]), np.array([0.25]))
    small = rules.cast(op, np.zeros(1, dtype=np.float32))
    assert small.weight_error == 0.0
    assert small.bias_error == 0.0
    back = rules.cast(rules.cast(op, torch.zeros(1)), torch.zeros(1, dtype=torch.float64))
    assert back.weight_error == 0.0


@pytest.mark.parametrize("weight", [1e-60, 1e-42, 1e38, 1e60])
def test_weights_that_the_narrow_dtype_cannot_hold_are_refused(weight):
    """Where float32 would round to a subnormal, zero or infinity, a relative error says nothing."""
    with pytest.raises(ModelError, match="do not fit into float32; use float64"):
        rules.cast(ops.Linear(np.array([[weight * 1.1, 1.0]])), np.zeros(1, dtype=np.float32))


def test_too_long_sums_are_refused_instead_of_bounded_badly():
    with pytest.raises(ModelError, match="use float64"):
        gamma(200_000, "float32")
    assert gamma(3, "float64") >= 3 * 2.0**-53


def test_a_cast_graph_computes_the_same_within_its_errors():
    """The interval of the float32 graph over a point holds the exact value of the float64 graph."""
    rng = np.random.default_rng(40)
    first = ops.Linear(rng.standard_normal((4, 3)), rng.standard_normal(4))
    second = ops.Linear(rng.standard_normal((2, 4)), rng.standard_normal(2))
    graph = Graph(
        (
            Node("x", ops.Input(), (), (3,)),
            Node("a", first, (0,), (4,)),
            Node("b", ops.Relu(), (1,), (4,)),
            Node("c", second, (2,), (2,)),
        )
    )
    from exact import run

    from certify.bounding.interval import ibp

    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((1, 3)).astype(np.float32)
        low, high = ibp(graph.cast(x), x, x)[-1]
        truth = run(graph, x[0])
        assert (exact(low[0]) <= truth).all()
        assert (exact(high[0]) >= truth).all()
        assert (high - low < 1e-4).all()


def test_nasty_numbers_cover_what_they_promise():
    drawn = nasty(np.random.default_rng(0), (500,), "float32")
    assert (np.abs(drawn[drawn != 0]) < np.finfo(np.float32).tiny).any()
    assert (np.abs(drawn) > 1e8).any()
