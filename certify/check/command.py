"""`python -m certify.check CERT...`: a line a certificate, accepted or rejected with the reason."""

from __future__ import annotations

import argparse
import glob
import gzip
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context, resource_tracker
from pathlib import Path

from certify.check.checker import BATCH, Accepted, Manner, check_many
from certify.check.errors import Rejected

ACCEPTED, REJECTED, USAGE, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141  # the last two as shells say it
ARITHMETICS = ("real", "float32")
MODEL = "model.onnx"
TOGETHER = 1 << 22  # bytes of the files that are checked together

HELP = """\
Checks certificates: each says why no input of a set is misclassified (or reaches an unsafe output). Nothing in it is
believed; the model's file, the property and the certificate are read here anew, and every bound is computed again with
its rounding errors added outward.

CERT is a .npz file, a pattern, or a folder: then all .npz files in it, or in its folder `certificates`."""
EPILOG = """\
examples:
  python -m certify.check results/               what `certify run --out results --certificates` kept
  python -m certify.check c.npz --model net.onnx
  python -m certify.check c.npz --model net.onnx --spec prop.vnnlib.gz   that very file is what is proved
  python -m certify.check c.npz --exact          in fractions, for small networks

exit codes: 0 all are accepted, 1 at least one is rejected, 2 usage, 130 interrupted"""


class Usage(Exception):
    """What was asked for cannot be done; the message says what to do."""


@dataclass(frozen=True)
class Request:
    """What to check, and how. model None: model.onnx beside each certificate, or in the folder above."""

    paths: tuple[str, ...]
    model: str | None = None
    spec: str | None = None
    exact: bool = False
    arithmetic: str = "real"
    as_json: bool = False
    workers: int = 1


@dataclass(frozen=True)
class Outcome:
    """About one file. reason: why it is rejected; property: what is proved."""

    certificate: str
    model: str
    accepted: bool
    reason: str | None
    property: str | None
    arithmetic: str
    exact: bool
    leaves: int | None
    bytes: int | None
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m certify.check",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="CERT", help="certificates, patterns or folders")
    parser.add_argument("--model", help=f"the ONNX file; without it {MODEL} beside CERT or in the folder above")
    parser.add_argument("--spec", help="a VNN-LIB file that the certificate must cover (.gz too)")
    parser.add_argument("--exact", action="store_true", help="fractions in place of float64 with error bounds: slow")
    parser.add_argument(
        "--arithmetic",
        choices=ARITHMETICS,
        default="real",
        help="float32: it also holds for every float32 execution of the network (default: real)",
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="one JSON object a line")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    given = vars(parser.parse_args(arguments))
    try:
        return run(Request(paths=tuple(given.pop("paths")), **given))
    except Usage as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        return UNREAD


def run(request: Request) -> int:
    """Check, print, and return the exit code; Usage where there is nothing that could be checked."""
    if request.workers < 1:
        raise Usage(f"--workers {request.workers}: at least 1")
    files = certificates(request.paths)
    jobs = [(path, model_of(path, request.model)) for path in files]
    if request.spec is not None:
        content(request.spec)  # that a missing file is said once, before all else
    begin, accepted, single = time.perf_counter(), 0, 0
    for outcome in _outcomes(jobs, request):
        accepted += outcome.accepted
        single += outcome.accepted and outcome.arithmetic == "float32"
        line = json.dumps(asdict(outcome)) if request.as_json else _line(outcome)
        print("".join(c if c.isprintable() else "?" for c in line), flush=True)  # a file's text moves no cursor
    if not request.as_json:
        level = "real arithmetic" if request.arithmetic == "real" else "real arithmetic and every float32 execution"
        also = f" ({single} of them for every float32 execution, too)" if request.arithmetic == "real" else ""
        how = "fractions" if request.exact else "float64 with error bounds"
        print(f"{accepted} of {len(jobs)} accepted: {level}{also}, by {how}; {time.perf_counter() - begin:.1f} s")
    return ACCEPTED if accepted == len(jobs) else REJECTED


def _line(outcome: Outcome) -> str:
    if not outcome.accepted:
        return f"rejected  {outcome.certificate}  {outcome.reason}"
    size = f"{(outcome.bytes or 0) / 1000:.1f} kB"
    return (
        f"accepted  {outcome.certificate}  {outcome.property}; {outcome.leaves} leaves, {size}, {outcome.seconds:.2f} s"
    )


def certificates(paths: Sequence[str]) -> list[Path]:
    """The files that the arguments name, each once."""
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = sorted(path.glob("*.npz")) or sorted((path / "certificates").glob("*.npz"))
            if not inside:
                raise Usage(f"{given}: no .npz file in this folder; `certify run --out DIR --certificates` keeps some")
        else:
            inside = [path] if path.is_file() else [Path(p) for p in sorted(glob.glob(given)) if Path(p).is_file()]
            if not inside:
                raise Usage(f"{given}: no such file")
        found.extend(inside)
    return list(dict.fromkeys(found))


def model_of(path: Path, given: str | None) -> Path:
    """The ONNX file that a certificate is checked against."""
    if given is not None:
        content(given)
        return Path(given)
    folder = path.resolve().parent
    for place in (folder / MODEL, folder.parent / MODEL):
        if place.is_file():
            return place
    raise Usage(f"{path}: no {MODEL} beside it or in the folder above; give the network with --model NET.onnx")


@lru_cache(maxsize=4)
def content(path: str) -> bytes:
    """A model's or property's file, unpacked if it is gzipped."""
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise Usage(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _outcomes(jobs: Sequence[tuple[Path, Path]], request: Request) -> Iterator[Outcome]:
    """In the order of the jobs. A job that dies is one that is rejected."""
    batches = _batches(jobs, -(-len(jobs) // request.workers))
    workers = min(request.workers, len(batches))
    if workers <= 1:
        for batch in batches:
            yield from outcomes_of(*batch, request)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the new processes: a core each
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_die_silently) as pool:
        with _no_interrupts():
            begun = [pool.submit(outcomes_of, *batch, request) for batch in batches]
        try:
            for (paths, model), future in zip(batches, begun, strict=True):
                try:
                    yield from future.result()
                except Exception as error:  # a dead process, or one out of memory
                    reason = f"its process died: {type(error).__name__} {error}"
                    yield from (_rejected(path, model, request, reason) for path in paths)
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """SIGINT waits in the processes that start meanwhile: while they load, it would print a traceback. It waits here,
    too, unless another thread takes it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it later would let signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_silently() -> None:
    """Ctrl-C goes to all processes; the first one speaks for them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _batches(jobs: Sequence[tuple[Path, Path]], most: int) -> list[tuple[list[Path], Path]]:
    """Neighbours with one model, so that they are checked together; large files alone."""
    found: list[tuple[list[Path], Path]] = []
    room = 0
    for path, model in jobs:
        size = path.stat().st_size if path.is_file() else 0
        if not found or found[-1][1] != model or len(found[-1][0]) >= min(BATCH, most) or size > room:
            found.append(([], model))
            room = TOGETHER
        found[-1][0].append(path)
        room -= size
    return found


def outcomes_of(paths: Sequence[Path], model: Path, request: Request) -> list[Outcome]:
    """Certificates of one model checked together; where that fails, one by one, so that it shows whose fault it is."""
    try:
        datas = [path.read_bytes() for path in paths]
        spec = None if request.spec is None else content(request.spec)
        manner = Manner(request.exact, request.arithmetic)
        results = check_many(datas, content(str(model)), manner, specs=[spec] * len(datas), path=model)
    except Exception as error:  # a bug here must not pass for a proof, and the other files are still to be judged
        if len(paths) > 1:
            return [outcome for path in paths for outcome in outcomes_of([path], model, request)]
        reason = f"internal error: {type(error).__name__}: {error}"
        if isinstance(error, OSError):
            reason = f"cannot be read: {error.strerror}"
        return [_rejected(paths[0], model, request, str(error) if isinstance(error, Usage) else reason)]
    return [
        _rejected(path, model, request, found.reason)
        if isinstance(found, Rejected)
        else _accepted(path, model, found, len(data))
        for path, data, found in zip(paths, datas, results, strict=True)
    ]


def _accepted(path: Path, model: Path, found: Accepted, size: int) -> Outcome:
    about = (found.summary, found.level, found.exact, found.leaves, size, found.seconds)
    return Outcome(str(path), str(model), True, None, *about)


def _rejected(path: Path, model: Path, request: Request, reason: str) -> Outcome:
    line = " ".join(reason.split())
    return Outcome(str(path), str(model), False, line, None, request.arithmetic, request.exact, None, None, 0.0)
