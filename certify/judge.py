"""The one place where proofs become verdicts: written as a certificate, read back by the checker, accepted or not.

The checker (certify.check) reads the model's file, the property and the certificate by itself; what it does not accept
is not proved, whatever the search believes.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from certify.certificate.content import CaseProof
from certify.certificate.write import encode
from certify.check.checker import Accepted, Manner, check_many
from certify.check.errors import NotExcluded, Rejected
from certify.model import Model
from certify.property import Property

NO_PROOF = "what shows it leaves no certificate"


@dataclass(frozen=True, eq=False)
class Judgement:
    """accepted: does the certificate hold? reason: if not, why. level: "real" or "float32", at which it was checked.

    certificate: the file's bytes, empty where there is none. seconds: that checking took. open: case, tree and nodes
    that the checker found open, where a search may go on.
    """

    accepted: bool
    reason: str
    level: str = ""
    certificate: bytes = b""
    seconds: float = 0.0
    open: tuple[int, int, tuple[int, ...]] | None = None


@dataclass(frozen=True, eq=False)
class Asked:
    """A property and its proofs, one a case, None where there is none."""

    prop: Property
    proofs: Sequence[CaseProof | None]

    @property
    def is_lean(self) -> bool:
        """Can less be tried?"""
        return any(proof is not None and proof.lean for proof in self.proofs)

    def lean(self) -> Asked:
        """The same with the lean proofs, where there are any."""
        return Asked(self.prop, [CaseProof(p.lean) if p is not None and p.lean else p for p in self.proofs])


def judge(
    model: Model, asked: Sequence[Asked], *, arithmetic: str = "real", deadline: float = math.inf
) -> list[Judgement]:
    """Does the checker accept the proofs? Many at once cost less. deadline: on time.monotonic()'s clock.

    Lean proofs first, the whole ones of those that it rejects then.
    """
    manner = Manner(arithmetic=arithmetic, deadline=None if math.isinf(deadline) else deadline)
    found = _judged(model, [one.lean() for one in asked], manner)
    again = [n for n, one in enumerate(asked) if not found[n].accepted and one.is_lean]
    if again:
        for number, judgement in zip(again, _judged(model, [asked[n] for n in again], manner), strict=True):
            found[number] = replace(judgement, seconds=found[number].seconds + judgement.seconds)
    return found


def _judged(model: Model, asked: Sequence[Asked], manner: Manner) -> list[Judgement]:
    written = [_written(model, one) for one in asked]
    begin = time.perf_counter()
    path = Path(model.source)
    found = check_many(
        [data for data in written if data],
        model.file,
        manner,
        specs=[one.prop.spec for one, data in zip(asked, written, strict=True) if data],
        path=path if path.is_file() else None,
    )
    share = (time.perf_counter() - begin) / max(1, len(found))
    answers = iter(found)
    return [_judgement(data, next(answers), share) if data else Judgement(False, NO_PROOF) for data in written]


def _written(model: Model, asked: Asked) -> bytes:
    """The certificate; nothing where a case has no proof."""
    whole = [proof for proof in asked.proofs if proof is not None]
    if len(whole) < len(asked.prop.cases):
        return b""
    spec = asked.prop.spec
    return encode(model, asked.prop, whole, spec_sha256=None if spec is None else hashlib.sha256(spec).hexdigest())


def _judgement(data: bytes, answer: Accepted | Rejected, seconds: float) -> Judgement:
    if isinstance(answer, Accepted):
        return Judgement(True, "", answer.level, data, seconds)
    where = (answer.case, answer.tree, tuple(answer.nodes)) if isinstance(answer, NotExcluded) else None
    return Judgement(False, f"the checker rejects its certificate: {answer}", "", data, seconds, where)
