"""The verdict about one certificate: accepted, or Rejected with the place named."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from certify.check.content import NOT_SPLIT, Ball, Before, Cases, Certificate, Polytope, Proof
from certify.check.errors import NotExcluded, Rejected
from certify.check.file import read_certificate
from certify.check.interval import Bounds, Model, model_of, over, row
from certify.check.network import Network
from certify.check.read_onnx import fingerprint, read_network
from certify.check.region import Norm, ball_box, rounded_up
from certify.check.rounding import EXACT, QUICK, Float64, verify_floats
from certify.check.single import deviation, needs
from certify.check.steps import Claim, Shown, alike, execute, moves
from certify.check.tree import Ask, holds
from certify.check.vnnlib import covers, read_spec

BATCH = 32  # boxes that go through their steps together


@dataclass(frozen=True)
class Accepted:
    """The property holds. leaves: nodes of its trees that are not split; seconds: processor time of the check.

    level: "real" or "float32", the arithmetic of the networks for which it holds; exact: checked in fractions.
    """

    summary: str
    leaves: int
    seconds: float
    level: str
    exact: bool


@dataclass(frozen=True)
class Manner:
    """How to check. exact: in fractions; arithmetic: "real", or "float32" where nothing less will do; deadline: of
    time.monotonic().
    """

    exact: bool = False
    arithmetic: str = "real"
    deadline: float | None = None


@dataclass(eq=False)
class _Job:
    """A case of a certificate: its input set (rows of one box), what is claimed, its proof, and what came of it."""

    certificate: int
    place: str
    box: tuple[Float64, Float64]
    claim: Claim
    proof: Proof
    case: int
    level: str = ""
    failure: Rejected | None = None


def check(
    data: bytes,
    model: bytes,
    *,
    spec: bytes | None = None,
    exact: bool = False,
    arithmetic: str = "real",
    deadline: float | None = None,
    path: Path | None = None,
) -> Accepted:
    """The certificate `data` proves its property of the ONNX file `model`, or Rejected.

    spec: the VNN-LIB file that the property must cover. deadline: of time.monotonic(). path: of the model, for external
    data.
    """
    (found,) = check_many([data], model, Manner(exact, arithmetic, deadline), specs=[spec], path=path)
    if isinstance(found, Rejected):
        raise found
    return found


def check_many(
    datas: Sequence[bytes],
    model: bytes,
    manner: Manner = Manner(),
    *,
    specs: Sequence[bytes | None] | None = None,
    path: Path | None = None,
) -> list[Accepted | Rejected]:
    """`check` of many certificates of one model, in order: what they have in common is computed once.

    specs: for each the VNN-LIB file that its property must cover, or None.
    """
    started = time.process_time()
    found: list[Certificate | Rejected] = []
    jobs: dict[Model, list[_Job]] = {}
    with np.errstate(all="ignore"):  # what overflows is found as inf or NaN, and rejected
        floats = _of_this_machine()
        for number, (data, spec) in enumerate(zip(datas, specs or [None] * len(datas), strict=True)):
            try:
                if floats is not None:
                    raise floats
                if manner.arithmetic not in ("real", "float32"):
                    raise Rejected(f"arithmetic {manner.arithmetic!r}: neither 'real' nor 'float32'")
                certificate = read_certificate(data)
                _is_about(certificate, fingerprint(model, path))
                network = _network(model, certificate, path)
                if spec is not None:
                    _covers(certificate, spec, network)
                of = _model(network, manner.exact)
                jobs.setdefault(of, []).extend(_jobs(certificate, of, number))
                found.append(certificate)
            except _FAILURES as error:
                found.append(_rejected(error))
        for of, some in jobs.items():
            judge_all(of, some, manner)
    every = [job for some in jobs.values() for job in some]
    seconds = (time.process_time() - started) / max(len(datas), 1)
    return [
        c if isinstance(c, Rejected) else _verdict(c, [j for j in every if j.certificate == n], seconds, manner.exact)
        for n, c in enumerate(found)
    ]


def _of_this_machine() -> Rejected | None:
    """Why its floats cannot be trusted."""
    try:
        verify_floats()
    except Rejected as error:
        return error
    return None


_FAILURES = (Rejected, OverflowError, MemoryError, RecursionError)


def _rejected(error: BaseException) -> Rejected:
    return error if isinstance(error, Rejected) else Rejected(f"{type(error).__name__}: {error}")


def verify(certificate: Certificate, model: Model, manner: Manner = Manner()) -> str:
    """The level at which every case of the property is proved; Rejected where one is not."""
    jobs = _jobs(certificate, model, 0)
    judge_all(model, jobs, manner)
    found = _verdict(certificate, jobs, 0.0, manner.exact)
    if isinstance(found, Rejected):
        raise found
    return found.level


def _verdict(certificate: Certificate, jobs: Sequence[_Job], seconds: float, exact: bool) -> Accepted | Rejected:
    for job in jobs:
        if job.failure is not None:
            return job.failure
    if len(jobs) != len(certificate.cases) or not all(job.level in ("real", "float32") for job in jobs):
        return Rejected("cases: not all judged")
    level = "float32" if all(job.level == "float32" for job in jobs) else "real"
    leaves = sum(int((tree.unit == NOT_SPLIT).sum()) for proof in certificate.cases for tree in proof.trees)
    return Accepted(_summary(certificate), leaves, seconds, level, exact)


def judge_all(model: Model, jobs: Sequence[_Job], manner: Manner) -> None:
    """Every job's level or failure: plain proofs by quick passes, what these do not show and the others in float64."""
    if model.arithmetic.quick:
        plain = [job for job in jobs if job.proof.is_plain]
        _judge_each(model, plain, manner)
        jobs = [job for job in jobs if job.failure is not None or not job.proof.is_plain]
        for job in jobs:
            job.failure = None
    _judge_each(replace(model, arithmetic=model.arithmetic.wide), jobs, manner)


def _judge_each(model: Model, jobs: Sequence[_Job], manner: Manner) -> None:
    """Those whose steps are alike go through them together."""
    alone: list[_Job] = []
    together: dict[tuple[Hashable, ...], list[_Job]] = {}
    for job in jobs:
        key = tuple(map(alike, moves(job.proof.steps)))
        if job.claim.norm is None and None not in key:
            together.setdefault(key, []).append(job)
        else:
            alone.append(job)
    batches = [[job] for job in alone]
    for same in together.values():
        batches += [same[k : k + BATCH] for k in range(0, len(same), BATCH)]
    for batch in batches:
        try:
            _judge(model, batch, manner)
        except _FAILURES as error:  # of one of them
            if len(batch) == 1:
                batch[0].failure = _rejected(error)
                continue
            for job in batch:
                try:
                    _judge(model, [job], manner)
                except _FAILURES as own:
                    job.failure = _rejected(own)


def _judge(model: Model, jobs: Sequence[_Job], manner: Manner) -> None:
    """The levels of some jobs; Rejected where something is wrong with the bounds of one."""
    boxes = (np.concatenate([job.box[side] for job in jobs]) for side in (0, 1))
    start = over(model, *boxes)
    claims = [job.claim for job in jobs]
    bounds, shown = execute(start, [job.proof.steps for job in jobs], claims, jobs[0].place)
    for number, (job, known) in enumerate(zip(jobs, shown, strict=True)):
        try:
            job.level = _conclude(bounds if len(jobs) == 1 else row(bounds, number), job, known, manner)
        except Rejected as error:
            job.failure = error


def _conclude(bounds: Bounds, job: _Job, shown: Sequence[Shown], manner: Manner) -> str:
    """The level at which the steps' margins and the trees exclude all polytopes of a case; Rejected if they do not."""
    strict, claim = manner.arithmetic == "float32", job.claim
    real = {found.polytope for found in shown if found.bound > 0}
    single = {found.polytope for found in shown if found.bound > found.lost}
    if strict or job.proof.trees:
        need = deviation(bounds)[0] if strict else needs(bounds)[0]
        ask = Ask(claim, need, strict, manner.deadline)
    for number, tree in enumerate(job.proof.trees):
        try:
            also = holds(bounds, tree, ask, f"{job.place}.trees[{number}]")
        except NotExcluded as error:
            error.case, error.tree = job.case, number
            raise
        real |= set(tree.polytopes)
        single |= set(tree.polytopes) if also else set()
    missing = sorted(set(range(len(claim.polytopes))) - (single if strict else real))
    if missing:
        raise Rejected(f"{job.place}: polytope {missing[0]} is not excluded ({len(missing)} of {len(claim.polytopes)})")
    return "float32" if len(single) == len(claim.polytopes) else "real"


def _is_about(certificate: Certificate, digest: str) -> None:
    if digest != certificate.model_sha256:
        stated = certificate.model_sha256
        raise Rejected(f"model.sha256: the certificate is about another model, {stated}; this one is {digest}")


def _jobs(certificate: Certificate, model: Model, number: int) -> list[_Job]:
    """The input set and the unsafe polytopes of every case, with its proof."""
    network, stated = model.network, certificate.property
    sizes = tuple(network.nodes[u].size for u in model.units)
    if sizes != certificate.units:
        raise Rejected(f"units: the network's are {sizes[:8]}..., the certificate's {certificate.units[:8]}...")
    inputs, outputs = network.nodes[0].size, network.nodes[-1].size
    if isinstance(stated, Ball):
        if stated.center.size != inputs or stated.classes != outputs:
            raise Rejected(
                f"property: {stated.center.size} inputs, {stated.classes} classes; the model has {inputs}, {outputs}"
            )
        center = stated.center.ravel()
        box = ball_box(center, stated.eps, stated.low, stated.high)
        norm = None if stated.norm == "linf" else Norm(center, rounded_up(stated.eps), 2 if stated.norm == "l2" else 1)
        claim = Claim(_rivals(stated.label, outputs), norm)
        return [_Job(number, "cases[0]", box, claim, certificate.cases[0], 0)]
    found = []
    for k, (case, proof) in enumerate(zip(stated.cases, certificate.cases, strict=True)):
        if case.lower.size != inputs or any(p.coeff.shape[1] != outputs for p in case.polytopes):
            raise Rejected(f"property.cases[{k}]: the model has {inputs} inputs and {outputs} outputs")
        box = case.lower.ravel()[None], case.upper.ravel()[None]
        found.append(_Job(number, f"cases[{k}]", box, Claim(case.polytopes), proof, k))
    return found


@lru_cache(maxsize=16)
def _rivals(label: int, outputs: int) -> tuple[Polytope, ...]:
    """Where another class gets as much as the label's."""
    rivals = [r for r in range(outputs) if r != label]
    rows = np.eye(outputs)[label] - np.eye(outputs)[rivals]
    return tuple(Polytope(row[None], np.zeros(1)) for row in rows)


_KEPT: dict[tuple[str, Before, str, Path | None], Network] = {}


def _network(model: bytes, certificate: Certificate, path: Path | None) -> Network:
    """The network that the certificate is about, read once for all certificates of one model."""
    key = (certificate.model_sha256, certificate.before, certificate.softmax, path)
    if key not in _KEPT:
        if len(_KEPT) >= 4:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = read_network(model, certificate.before, certificate.softmax, path)
    return _KEPT[key]


@lru_cache(maxsize=4)
def _model(network: Network, exact: bool) -> Model:
    return model_of(network, EXACT if exact else QUICK)


def _covers(certificate: Certificate, spec: bytes, network: Network) -> None:
    if not isinstance(certificate.property, Cases):
        raise Rejected("property.kind: a VNN-LIB file is not about a ball")
    if certificate.before != Before():
        raise Rejected("model: a VNN-LIB file is about the ONNX file itself, with no mean, std or layout before it")
    covers(certificate.property, read_spec(spec, network.nodes[0].size, network.nodes[-1].size))


def _summary(certificate: Certificate) -> str:
    stated = certificate.property
    if isinstance(stated, Ball):
        return f"class {stated.label} in the {stated.norm} ball of radius {stated.eps}"
    return f"{len(stated.cases)} boxes, {sum(len(c.polytopes) for c in stated.cases)} unsafe polytopes"
