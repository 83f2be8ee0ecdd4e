"""Parts of a search over boxes that go on elsewhere: lent as values, grown in any process, and joined to the search.

A loan takes nothing from the search: what is lent counts as open, with the bounds it had, until what came of it is
adopted. So a process that dies, or answers too late, costs its own time and nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from certify.bab.frontier import Boxes
from certify.bab.input_log import InputLog
from certify.bab.input_split import STEP_SECONDS, InputSearch
from certify.bab.result import Replay, no_replay
from certify.verdict import Witness


@dataclass(frozen=True, eq=False)
class Subboxes:
    """Disjoint open boxes of a search, their nodes numbered 0, 1, ...; width: of its next step, as the search's."""

    loan: int
    boxes: Boxes
    width: int

    def grow(self, ground: InputSearch, replay: Replay, deadline: float) -> Grown:
        """Go on until all is excluded, a witness is found, or the deadline (time.monotonic()) has come."""
        search = ground.part(self.boxes, replay)
        search.width = self.width
        search.steps = self.loan  # descents of other kinds than elsewhere
        while search.open and time.monotonic() < deadline:
            # Boxes of a pass that is cut short are split for nothing: an eighth more boxes, with loans of six steps.
            search.advance(deadline + STEP_SECONDS)
        return Grown.of(search, self.loan)


@dataclass(frozen=True, eq=False)
class Grown:
    """What came of a part: its log, what is still open, and the rest as in certify.bab.input_split.InputSearch."""

    loan: int
    log: InputLog
    open: Boxes
    closed: float
    stuck: float
    left: int
    subproblems: int
    witness: Witness | None

    @staticmethod
    def of(search: InputSearch, loan: int) -> Grown:
        """What a part came to; what it has lent is open."""
        for number in tuple(search.lent):
            search.restore(number)
        still = search.frontier.pop(search.waiting)
        search.frontier.push(still)
        rest = search.closed, search.stuck, search.left, search.subproblems, search.witness
        return Grown(loan, search.log, still, *rest)


def ground(search: InputSearch) -> InputSearch:
    """What all parts need: the search with nothing open, without its judge."""
    nothing = search.frontier.pop(0)
    return search.part(nothing, no_replay)


def donate(search: InputSearch, hands: int, count: int) -> list[Subboxes]:
    """Up to `count` open boxes for each of some hands: the lowest bounds, dealt in turn to them and to the search.

    What fails, for want of memory say, lends nothing.
    """
    if not search.waiting or not count:
        return []
    boxes, first = search.frontier.pop((hands + 1) * count), search.loans
    try:
        order = np.argsort(boxes.bound, kind="stable")
        parts = [boxes[order[hand :: hands + 1]] for hand in range(min(hands + 1, len(boxes)))]
        numbered = [replace(part, node=np.arange(len(part))) for part in parts]
    except BaseException:
        search.frontier.push(boxes)
        raise
    search.loans += len(parts)
    search.lent.update((first + k, part) for k, part in enumerate(parts))
    search.restore(first)
    return [Subboxes(first + k, numbered[k], search.width) for k in range(1, len(parts))]


def adopt(search: InputSearch, grown: Grown) -> bool:
    """Join what came of a loan to the search; False, and nothing done, where it was given up meanwhile."""
    boxes = search.lent.get(grown.loan)
    if boxes is None:
        return False
    number = search.log.adopt(grown.log, boxes.node)
    search.frontier.push(replace(grown.open, node=number[grown.open.node]))
    search.closed, search.stuck = min(search.closed, grown.closed), min(search.stuck, grown.stuck)
    search.left += grown.left
    search.subproblems += grown.subproblems
    search.witness = search.witness or grown.witness
    del search.lent[grown.loan]
    return True
