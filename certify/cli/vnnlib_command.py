"""`certify vnnlib`: one property in VNN-COMP's form, with an answer before the limit whatever happens.

The limit counts from the start of the process. A watchdog thread writes `timeout` and ends the process shortly
before it, also while a stage computes. A thread of Python needs the interpreter's lock, though, which loading a large
library or model can hold for seconds: behind it stands faulthandler's, which does not, and can only end the process.
For that case the result file holds `unknown`, which is always true, from the first moment.
"""

from __future__ import annotations

import faulthandler
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certify.cli.codes import UNDECIDED
from certify.cli.proofs import proof_options, proof_settings
from certify.errors import SoundnessError, UsageError
from certify.options import ARITHMETICS, parse_seconds

if TYPE_CHECKING:
    from certify.graph import Graph
    from certify.property import Property
    from certify.verdict import Outcome

# The watchdog needs time to write and the system to end the process; of a short limit it may take a fifth. Halfway
# through it, the process is ended by force.
RESERVE_SECONDS = 0.5
RESERVE_SHARE = 0.2
# The stages are told to stop this much before the watchdog, so that they end by themselves.
STAGE_SECONDS = 1.0
STAGE_SHARE = 0.1
# Share of the time limit that the last attack on what bounds leave open may take; longer ones found nothing more.
LONG_ATTACK_SHARE = 0.25
# A process older than this did something else before (a notebook, a server), or its system does not tell the truth.
LONGEST_STARTUP = 60.0

EPILOG = """
\b
The result file's first line is unsat (the property holds), sat (a witness follows: ((X_0 v) ... (Y_0 v) ...)),
unknown or timeout; the same line goes to stdout. Witnesses are confirmed by onnxruntime, unsat by the independent
checker. Time counts from the start of the process. A hard search uses all cores; OMP_NUM_THREADS limits them.

\b
Examples:
  certify vnnlib acas.onnx prop_1.vnnlib --timeout 116
  certify vnnlib net.onnx.gz prop.vnnlib.gz --timeout 60 --result-file result.txt

\b
Exit codes:
    0  sat or unsat           3  soundness alarm or internal error
    2  usage                  4  unknown or timeout
    1  ended by force at the limit; the result file says unknown
"""


class Answer:
    """The one answer of the process: the first to give it wins, main thread or watchdog."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._given = False

    def give(self, text: str) -> bool:
        """Write the result file whole, print its first line; False if an answer was given before."""
        with self._lock:
            return self._give(text)

    def give_and_exit(self, text: str) -> None:
        """As `give`, and end the process at once, unless an answer was given before."""
        with self._lock:
            first = not self._given
            try:
                self._give(text)
            finally:  # also where the file or the reader of stdout is gone
                if first:
                    os._exit(UNDECIDED)

    def withdraw(self) -> None:
        """There will be no answer: the input cannot be used. Leaves no file."""
        with self._lock:
            self._given = True
            if self._file is not None:
                self._file.unlink(missing_ok=True)

    def reserve(self) -> None:
        """Put `unknown` into the result file: shows that it can be written, and holds if the process is killed."""
        self._write("unknown")

    def _give(self, text: str) -> bool:
        if self._given:
            return False
        self._given = True
        self._write(text)
        click.echo(text.split("\n")[0])
        return True

    def _write(self, text: str) -> None:
        from certify.disk import write_atomically

        if self._file is not None:
            write_atomically(self._file, (text + "\n").encode())


@click.command(epilog=EPILOG, short_help="Decide one VNN-LIB property, VNN-COMP's way.")
@click.argument("model")
@click.argument("spec")
@click.option("--timeout", type=float, default=60.0, show_default=True, metavar="S", help="Seconds, start-up included.")
@click.option("--result-file", metavar="FILE", help="Where to write the verdict and the witness.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attacks.")
@proof_options
@click.option("--certificate", metavar="FILE", help="Where to write the certificate of unsat, for certify check.")
def vnnlib(
    model: str, spec: str, timeout: float, result_file: str | None, seed: int, certificate: str | None, **proofs: Any
) -> None:
    """Does the network MODEL satisfy the VNN-LIB property SPEC? Both may be .gz files."""
    started = time.monotonic() - process_age()
    from certify.disk import write_atomically

    parse_seconds(timeout, option="--timeout")
    reserve = min(RESERVE_SECONDS, RESERVE_SHARE * timeout)
    limit = started + timeout - reserve
    for option, file in (("--result-file", result_file), ("--certificate", certificate)):
        if file is not None and Path(file).is_dir():
            raise UsageError(f"{option} {file}: is a folder; give a file")
    answer = Answer(None if result_file is None else Path(result_file))
    answer.reserve()
    if certificate is not None:
        Path(certificate).unlink(missing_ok=True)  # an earlier run's would pass for this one's
    deadline = limit - min(STAGE_SECONDS, STAGE_SHARE * timeout)
    with _watched(answer, limit, limit + reserve / 2):
        try:
            wanted = proof_settings(proofs) | {"certificates": certificate is not None}
            outcome = decide_property(model, spec, seed, deadline, wanted)
            text = verdict_text(outcome, late=time.monotonic() >= deadline)
            if certificate is not None and outcome.certificate is not None and text == "unsat":
                write_atomically(Path(certificate), outcome.certificate)
        except BaseException:
            answer.withdraw()
            raise
        answer.give(text)
    if text.split("\n")[0] not in ("sat", "unsat"):
        if outcome.reason:
            click.echo(outcome.reason, err=True)
        raise click.exceptions.Exit(UNDECIDED)
    if text == "unsat" and outcome.checked not in ARITHMETICS:
        rests = "on a MIP solver's word only" if outcome.checked else "unchecked"
        click.echo(f"this unsat is {rests}: no certificate of it was accepted", err=True)


@contextmanager
def _watched(answer: Answer, limit: float, end: float) -> Iterator[None]:
    """The process, if still inside, answers `timeout` at `limit` and is ended by force at `end` (time.monotonic())."""
    watchdog = threading.Timer(max(0.0, limit - time.monotonic()), answer.give_and_exit, ["timeout"])
    watchdog.daemon = True
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(max(0.001, end - time.monotonic()), exit=True, file=nowhere)
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
            faulthandler.cancel_dump_traceback_later()


def decide_property(
    model: str, spec: str, seed: int, deadline: float, proofs: Mapping[str, Any] | None = None
) -> Outcome:
    """The pipeline's outcome for one property, a proof against a witness being a SoundnessError. proofs: Settings of
    them.
    """
    from certify.executors.choose import free_cores
    from certify.frontends.onnx_import import load_model
    from certify.frontends.vnn_spec import load_property
    from certify.pipeline import decide
    from certify.settings import Settings
    from certify.verdict import examine

    found: list[Property] = []

    def where_it_matters(graph: Graph) -> tuple[Any, Any]:
        found.append(load_property(spec, graph.input_shape, math.prod(graph.output_shape)))
        return hull(found[0])

    # The values of the outputs matter here, not only their order; the import is checked where the property looks.
    network = load_model(model, drop_softmax=False, input_range=where_it_matters)
    (prop,) = found
    left = max(0.001, deadline - time.monotonic())
    settings = Settings(timeout=left, seed=seed, long_attack=LONG_ATTACK_SHARE * left, **(proofs or {}))
    (outcome,) = decide(network, [prop], settings, deadline=deadline, cores=free_cores())
    outcome, alarm = examine(outcome)
    if alarm:
        raise SoundnessError(f"soundness alarm, a bug in certify: {alarm}")
    return outcome


def hull(prop: Property) -> tuple[Any, Any]:
    """(lower, upper) of the smallest box around the input sets of all cases."""
    from functools import reduce

    import numpy as np

    from certify.property import LpBall

    boxes = [case.inputs.box if isinstance(case.inputs, LpBall) else case.inputs for case in prop.cases]
    return reduce(np.minimum, [b.lower for b in boxes]), reduce(np.maximum, [b.upper for b in boxes])


def verdict_text(outcome: Outcome, *, late: bool) -> str:
    """VNN-COMP's words for an outcome, the witness with `sat`; late: what is unknown is so for want of time."""
    from certify.verdict import Verdict

    if outcome.verdict is Verdict.VERIFIED:
        return "unsat"
    if outcome.verdict is Verdict.FALSIFIED and outcome.witness is not None:
        from certify.frontends.vnn_spec import format_witness

        return f"sat\n{format_witness(outcome.witness.x, outcome.witness.y)}"
    return "timeout" if late else "unknown"


def process_age() -> float:
    """Seconds since this process was started, interpreter start-up included; 0 inside a longer-lived process."""
    stat = Path("/proc/self/stat")
    try:
        # Fields after the name in brackets, which may hold spaces; the 20th of them is the start in clock ticks.
        ticks = int(stat.read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        # Elsewhere the processor time so far is close: start-up is mostly computing.
        age = time.process_time()
    return age if 0 <= age <= LONGEST_STARTUP else 0.0
