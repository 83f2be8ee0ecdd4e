"""`certify.run` and what the command line shares with it: read everything, refuse what cannot be right, then run.

Nothing is written before model, data and options have been read and fit together.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.arrays import is_torch, to_numpy
from certify.errors import DataError, NoSamples, SoundnessError, UsageError
from certify.executors.choose import Hands, check, parse_hands
from certify.fingerprint import fingerprint, options
from certify.options import NORMS, EpsLike, Radius, parse_eps, parse_range, parse_seconds
from certify.report.result import Report
from certify.run_folder import need_free_names
from certify.runner import Enough, Job, Order, Watch
from certify.runner import run as run_job
from certify.shards import Shard, check_siblings
from certify.store import Store

if TYPE_CHECKING:
    import torch

    from certify.frontends.data import Dataset
    from certify.model import Model
    from certify.settings import Settings

DATA_KEY = "certify.data"
RANGE_KEY = "certify.input_range"
DEFAULT_RANGE = (0.0, 1.0)
Arrays = tuple[Any, Any]


@dataclass(frozen=True)
class Preprocessing:
    """How raw inputs reach the network. mean, std: per channel, a layer before the network; None: none is added.

    layout: "nchw", "nhwc" or None to go by the network's shape. input_range: of raw inputs; None: what the model's
    metadata or the data say.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    input_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise UsageError("--mean and --std belong together: give both, or none for a network that takes raw inputs")
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"--std {self.std}: every standard deviation must be above 0")


@dataclass(frozen=True)
class Selection:
    """Which data: `spec` a name, a file or None for what the model's metadata name; then a part of it."""

    spec: str | None = None
    data_dir: str | None = None
    split: str = "test"
    download: bool = False
    samples: int | None = None
    start: int | None = None
    end: int | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Output:
    """Where results go, and what the run may use. out None: nothing is written.

    budget: seconds for the whole run, None: no limit. witnesses: put them into the report too; a run on disk has
    them in its files. workers, executor: as in certify.executors.choose.Hands. enough: ends the run once it is True of
    the store; None: every sample is decided. command: what the user gave on the command line, kept with the results.
    shard: the part of the samples that is decided.
    """

    out: Path | None = None
    resume: bool = False
    budget: float | None = None
    witnesses: bool = True
    workers: int = 1
    executor: str = "processes"
    enough: Enough | None = None
    order: Order | None = None
    command: Mapping[str, Any] = field(default_factory=dict)
    shard: Shard | None = None


def load_model(source: Any, preprocessing: Preprocessing, example: Any = None) -> Model:
    """The network of an ONNX path, a torch module (with an example batch) or a Model as it is. Raises ModelError."""
    from certify.model import Model

    p = preprocessing
    if isinstance(source, Model):
        if p.mean is not None or p.layout is not None:
            raise UsageError("mean, std and layout belong to loading: give them to certify.load_model")
        return source
    if isinstance(source, str | Path):
        from certify.frontends.onnx_import import load_model as load

        model = load(str(source), mean=p.mean, std=p.std, layout=p.layout, input_range=p.input_range or DEFAULT_RANGE)
        stated = _metadata_range(model)
        if p.input_range is None and stated not in (None, DEFAULT_RANGE):
            return load_model(source, replace(p, input_range=stated))  # the import check belongs on these inputs
        return model
    if example is None:
        raise UsageError("a torch module needs data=(x, y): its first sample tells the shape of the input")
    import torch

    from certify.frontends.torch_import import from_torch

    return from_torch(
        source, torch.as_tensor(example), mean=p.mean, std=p.std, input_range=p.input_range or DEFAULT_RANGE
    )


def load_data(selection: Selection, model: Model, given: Preprocessing) -> Dataset:
    """The selected samples, in the network's input shape and range. Raises DataError, NoSamples."""
    from certify.frontends import data

    input_range = given.input_range or _metadata_range(model)
    spec = selection.spec or model.metadata.get(DATA_KEY)
    if spec is None:
        raise UsageError(
            f"--data is missing, and {model.source} does not say what it was trained on ({DATA_KEY} in its metadata); "
            "give --data digits, mnist, cifar10, a .npz or .csv file, or an image folder"
        )
    s = selection
    dataset = data.load_data(spec, data_dir=s.data_dir, split=s.split, download=s.download, input_range=input_range)
    dataset = data.select(dataset, samples=s.samples, start=s.start, end=s.end, ids=s.ids)
    return data.fit_to_model(dataset, model.graph.input_shape)


def make_job(
    model: Model, data: Dataset, radii: tuple[Radius, ...], norm: str, given: Preprocessing, settings: Settings
) -> Job:
    """A job whose parts fit together; raises UsageError, DataError or NoSamples where they do not."""
    if norm not in NORMS:
        raise UsageError(f"norm {norm!r}: valid are {', '.join(NORMS)}")
    if not len(data.y):
        raise NoSamples(f"{data.name}: no samples are selected")
    low, high = given.input_range or data.input_range
    classes = int(np.prod(model.graph.output_shape))
    if classes < 2:
        raise UsageError(
            f"{model.source}: the network has {classes} output, a classifier needs at least 2; see certify vnnlib"
        )
    if tuple(data.x.shape[1:]) != model.graph.input_shape:
        raise DataError(
            f"{data.name}: samples of shape {tuple(data.x.shape[1:])}, the network takes {model.graph.input_shape}"
        )
    wrong = (data.y < 0) | (data.y >= classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        hint = "; are the labels counted from 1?" if data.y.min() >= 1 and data.y.max() == classes else ""
        raise DataError(
            f"{data.name}: sample {data.ids[first]} has label {data.y[first]}, "
            f"the network has classes 0 to {classes - 1}{hint}"
        )
    smallest, largest = float(data.x.min()), float(data.x.max())
    if not low <= smallest <= largest <= high:
        raise DataError(
            f"{data.name}: values from {smallest:g} to {largest:g} lie outside the input range {low:g} to {high:g}; "
            "rescale the data, or say what the range is with --input-range LOW,HIGH"
        )
    if settings.device not in ("auto", "cpu"):
        from certify.machine import pick_device

        pick_device(settings.device)
    return Job(model, data, radii, norm, (low, high), settings)


def execute(job: Job, given: Preprocessing, output: Output, watch: Watch | None = None) -> Report:
    """Run the job into a new or resumed store, and report; with a folder, its files are written. Raises DiskError."""
    parse_seconds(output.budget, option="--budget")
    start = time.monotonic()
    hands = Hands(output.workers, output.executor)
    check(hands, job.settings.device)
    whole = job.data
    if output.shard is not None:
        job = replace(job, data=output.shard.part(whole))
    chosen = options(job, given, output)
    asked = fingerprint(job, whole, chosen)
    samples = _samples(job.data)
    report = Report(
        model=job.model.source,
        model_sha256=job.model.sha256,
        data=job.data.name,
        data_sha256=job.data.sha256,
        norm=job.norm,
        radii=job.radii,
        input_range=job.input_range,
        n=len(samples),
        results=(),
        notes=notes(job, given),
        out=output.out,
        options=chosen,
        command=output.command,
    )
    if job.settings.certificates:
        need_free_names(job.model.outside)
    if output.out is None:
        store = Store.in_memory(asked, samples)
    elif output.resume:
        store = Store.resume(output.out, asked, samples)
    elif output.shard is None:
        store = Store.create(output.out, asked, samples)
    else:
        check_siblings(output.out, asked)
        store = Store.create(output.out, asked, samples, _samples(whole))
    with store:
        if job.settings.certificates:
            store.keep_model(job.model.file, Path(job.model.source).parent, job.model.outside)
        if output.out is not None:
            from certify.report.files import about, write_files

            before = {"started": datetime.now(UTC).isoformat(timespec="seconds")} | store.about()
            store.keep_inputs(job.data.x)
            store.describe(about(report, before))
        complete = run_job(
            job,
            store,
            budget=output.budget,
            watch=watch,
            hands=hands,
            enough=output.enough,
            order=output.order,
        )
        report = replace(
            report,
            results=tuple(store.results(job.radii, witnesses=output.witnesses)),
            alarms=tuple(store.alarms()),
            seconds=time.monotonic() - start,
            complete=complete,
        )
        if output.out is not None:
            told = about(report, before)
            store.describe(told)
            write_files(report, told)
    return report


def _samples(data: Dataset) -> list[tuple[int, int]]:
    return [(int(i), int(y)) for i, y in zip(data.ids, data.y, strict=True)]


def notes(job: Job, given: Preprocessing) -> tuple[str, ...]:
    """What a user should know about the set-up: what import and data say, and eps where the network sees it."""
    found = [*job.model.notes, *job.data.notes]
    recipe = job.model.metadata.get("certify.recipe")
    if recipe:
        found.append(f"the model says how it was made: {recipe}")
    found += [f"{k}: {v} (from the model's metadata)" for k, v in job.model.metadata.items() if "normali" in k.lower()]
    if given.std is not None:
        for radius in job.radii:
            scaled = ", ".join(f"{float(radius) / s:.6g}" for s in given.std)
            found.append(
                f"eps {radius} in raw inputs is {scaled} after the normalisation (std {', '.join(map(str, given.std))})"
            )
    low, high = job.input_range
    if job.norm == "linf" and job.radii[-1].value > Fraction(high) - Fraction(low):
        found.append(
            f"eps {job.radii[-1]} is larger than the whole input range {low:g} to {high:g}; "
            f"was {job.radii[-1]}/255 meant?"
        )
    return tuple(found)


def default_out(model: str, radii: Sequence[Radius], shard: Shard | None = None) -> Path:
    """runs/<model>-<eps>-<timestamp>, to the millisecond: jobs are started together. Without it for a shard: all of a
    run's find the same folder, whenever they start.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(model).name.removesuffix(".gz").removesuffix(".onnx")) or "model"
    eps = "_".join(r.text.replace("/", "of") for r in radii[:3]) + ("_etc" if len(radii) > 3 else "")
    if shard is not None:
        return Path("runs") / f"{name}-{eps}"
    now = datetime.now()
    return Path("runs") / f"{name}-{eps}-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"


def run(
    model: str | Path | Model | torch.nn.Module,
    data: str | Arrays | Dataset | None = None,
    eps: EpsLike | Sequence[EpsLike] = "2/255",
    norm: str = "linf",
    *,
    samples: int | None = None,
    method: str = "auto",
    timeout: float = 60.0,
    budget: float | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int | str | None = None,
    executor: str = "processes",
    check: bool = True,
    arithmetic: str = "real",
    certificates: bool = False,
    input_range: tuple[float, float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    out: str | Path | None = None,
    shard: str | None = None,
    resume: bool = False,
    enough: Enough | None = None,
) -> Report:
    """clean accuracy >= attacked upper bound >= true robust accuracy >= certified lower bound, for N samples.

    model: path of an ONNX file, a Model, or a torch module (then data must be arrays). data: (x, y) with x (N, ...)
    raw inputs and y (N,) labels, a name ("digits", "mnist", "cifar10"), a file, or None for what the model's metadata
    name. eps: radius in raw input units, exact: "2/255", 0.03, or a list; norm: "linf", "l2", "l1". samples: take the
    first so many. timeout: seconds per sample; budget: seconds in total, None for no limit. workers: so many decide
    samples side by side, "auto" for one per core or GPU; executor: "processes" of this machine, of which None is 1, or
    "ray", a cluster's actors, of which None is "auto"; a script that uses processes calls this under
    `if __name__ == "__main__":`. check: verified only where the independent checker accepts a certificate; arithmetic:
    "real", or "float32" for every float32 execution too; certificates: keep them in `out`. out: a new folder for
    results, None writes nothing; shard: "2/4", the second quarter of the samples, in a folder of its own in `out`.
    enough: asked after every commit, ends the run once it is True of the store. Raises UsageError (ModelError,
    DataError), NoSamples, SoundnessError.

        report = certify.run("models/digits_cnn.onnx", eps="2/255")
        report.bracket.certified, report.bracket.attacked
        report.assert_certified(0.6)
    """
    from certify.model import Model
    from certify.settings import Settings

    radii = parse_eps(eps)
    parse_seconds(timeout, option="timeout")
    hands = parse_hands(workers, executor, option="workers")
    part = None if shard is None else Shard.parse(shard)
    given = Preprocessing(
        None if mean is None else tuple(map(float, mean)),
        None if std is None else tuple(map(float, std)),
        None,
        input_range,
    )
    if resume and out is None:
        raise UsageError("resume=True needs out=, the folder of the run to go on with")
    # A module is traced with a sample of the data; a file or Model may state the range that the data live in.
    arrays = None if isinstance(model, str | Path | Model) else _given_arrays(data, input_range)
    network = load_model(model, given, None if arrays is None else arrays.x[:1])
    if arrays is None:
        arrays = _given_arrays(data, input_range or _metadata_range(network))
    if arrays is None:
        dataset = load_data(Selection(spec=None if data is None else str(data), samples=samples), network, given)
    else:
        from certify.frontends.data import fit_to_model, select

        dataset = fit_to_model(select(arrays, samples=samples), network.graph.input_shape)
    settings = Settings(
        method=method,
        timeout=timeout,
        seed=seed,
        device=device,
        check=check,
        arithmetic=arithmetic,
        certificates=certificates,
    )
    job = make_job(network, dataset, radii, norm, given, settings)
    folder = None if out is None else Path(out) if part is None else part.folder(Path(out))
    output = Output(folder, resume, budget, workers=hands.workers, executor=hands.executor, enough=enough, shard=part)
    report = execute(job, given, output)
    if report.alarms:
        kept = f"; the results are in {report.out}" if report.out else ""
        raise SoundnessError(f"{len(report.alarms)} soundness alarm(s), a bug in certify: {report.alarms[0]}{kept}")
    return report


def _given_arrays(data: str | Arrays | Dataset | None, input_range: tuple[float, float] | None) -> Dataset | None:
    """The data set of arrays, a Dataset as it is, None for a name."""
    if data is None or isinstance(data, str | Path):
        return None
    from certify.frontends.data import Dataset
    from certify.frontends.data import load_data as load

    if isinstance(data, Dataset):
        return data
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise DataError("data: give (x, y), a name such as 'digits', or a path")
    return load((_numpy(data[0]), _numpy(data[1])), input_range=input_range)


def _numpy(values: Any) -> np.ndarray[Any, Any]:
    return to_numpy(values) if is_torch(values) else np.asarray(values)


def _metadata_range(model: Model) -> tuple[float, float] | None:
    text = model.metadata.get(RANGE_KEY)
    return None if text is None else parse_range(text)
