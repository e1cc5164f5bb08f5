"""Make one row of the quality table: train and draw images in separate processes, then score the images here."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.sources import load_synthetic, open_data
from dp_sinkhorn.evaluation.cache import default_folder
from dp_sinkhorn.evaluation.distances import measure
from dp_sinkhorn.evaluation.extractors import find_extractor
from dp_sinkhorn.evaluation.tstr import score_classifiers
from dp_sinkhorn.io.atomic import write_whole
from dp_sinkhorn.method import config_of, resolve, settings_of
from dp_sinkhorn.settings import RunConfig, parse_overrides
from dp_sinkhorn.training.run_folder import CONFIG, facts_of
from peers import batch

OURS, BATCH, REAL = "dp-sinkhorn", "batch", "real"
# The runs of our method, drawn with all classes equally often.
BALANCED = "dp-sinkhorn-balanced"
PEERS = {"dp-merf": "peers.dp_merf", "gaussian": "peers.gaussian"}
METHODS = (OURS, BALANCED, *PEERS, BATCH)
CLASSIFIERS = ("logreg", "mlp", "cnn")
USUAL_NUM = 20_000  # images; any other number is part of a row's name
FEATURES = 2000  # images in each sample of the Fréchet distance
_MANY_RECORDS = 10_000
# The keys that identify a row, and the hash that shows whether its settings are current.
_ROW = {"data", "method", "target_epsilon", "seed", "num", "settings_sha256"}
_COMMAND = (sys.executable, "-c", "from dp_sinkhorn.cli import main; main()")


class RunError(Exception):
    """A run failed, or its row on disk has other settings; the message is one line."""


@dataclass(frozen=True, eq=False)
class Source:
    """A data set: its name in the table, its path, and its splits.

    `validation` has images that no method sees, from the distribution of the training images; a test set may have
    another distribution. None: the data set has no such split.
    """

    name: str
    path: Path
    train: LabelledImages
    test: LabelledImages
    validation: LabelledImages | None = None

    @property
    def delta(self) -> float:
        """δ, well below 1 / (number of records); that number is public."""
        return 1e-5 if len(self.train) >= _MANY_RECORDS else 1e-4


@cache
def source(name: str, path: Path) -> Source:
    """Load all splits, once.

    Raises:
        InputError: A split cannot be read.
    """
    found = open_data(path)
    validation = found.load("validation") if "validation" in found.found.parts else None
    return Source(name, path, found.load("train"), found.load("test"), validation)


@dataclass(frozen=True)
class Job:
    """What determines one row. `epsilon` is None for real images."""

    data: Source
    method: str
    epsilon: float | None
    seed: int
    num: int

    @property
    def name(self) -> str:
        """Name of the row, and of the folder of its images."""
        usual = min(USUAL_NUM, len(self.data.train))
        return self._named(self.method) + ("" if self.num_images == usual else f"-num{self.num_images}")

    @property
    def run_name(self) -> str:
        """Name of the folder of the training, from which any number of images may be drawn."""
        return self._named(self.trained_by)

    @property
    def trained_by(self) -> str:
        """The method that trains the generator."""
        return OURS if self.method == BALANCED else self.method

    def _named(self, method: str) -> str:
        middle = "" if self.epsilon is None else f"-eps{self.epsilon:g}"
        return f"{self.data.name}-{method}{middle}-seed{self.seed}"

    @property
    def num_images(self) -> int:
        """Number of images to draw: at most the number of records."""
        return min(self.num, len(self.data.train))

    def settings_sha256(self) -> str:
        """Hash of everything that determines the row, except seed and code."""
        shared = f"{self.num_images} {FEATURES} {CLASSIFIERS} {self.epsilon} {self.data.delta} "
        shared += "balanced " if self.method == BALANCED else ""
        return hashlib.sha256((shared + _settings_of(self.data, self.trained_by, self.epsilon)).encode()).hexdigest()


@cache
def _settings_of(data: Source, method: str, epsilon: float | None) -> str:
    if method == REAL:
        return REAL
    if method in PEERS:
        settings: Any = import_module(PEERS[method]).Settings()
        return f"{method} {json.dumps(asdict(settings), sort_keys=True)}"
    recipe, overrides = _recipe(method, data)
    given = parse_overrides([f"{key}={value}" for key, value in overrides.items()])
    given |= {"target_epsilon": epsilon, "target_delta": data.delta}
    return _seedless_sha256(resolve(settings_of(recipe, given), facts_of(str(data.path), data.train)))


def _seedless_sha256(config: RunConfig) -> str:
    """Hash of the settings without the seed, and without the precision, which follows from the machine."""
    settings = config.settings.model_copy(update={"seed": 0})
    return config.model_copy(update={"settings": settings, "precision": "float32"}).sha256()


def _recipe(method: str, data: Source) -> tuple[str | None, Mapping[str, str]]:
    """Recipe and settings of a run that the command line trains."""
    if method == OURS:
        return None, {}
    return batch.RECIPE, batch.settings(data.train.pixels[0].numel())


def row_of(job: Job, results: Path) -> dict[str, Any] | None:
    """Return the finished row of a job, or None.

    Raises:
        RunError: The row has other settings, or a row is damaged.
    """
    wanted = {"data": job.data.name, "method": job.method, "target_epsilon": job.epsilon, "seed": job.seed}
    wanted |= {"num": job.num_images}
    row = next((row for row in read_rows(results) if row.items() >= wanted.items()), None)
    if row is not None and row["settings_sha256"] != (now := job.settings_sha256()):
        raise RunError(
            f"{results} has {job.name} with other settings ({row['settings_sha256'][:12]}, now {now[:12]}); give "
            "another --results, or remove that line"
        )
    return row


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Read all finished rows, one JSON object a line.

    Raises:
        RunError: The file cannot be read, or a line is damaged.
    """
    try:
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read {results}: {error}; give another --results") from None
    return [_read_row(line, f"line {number} of {results}") for number, line in enumerate(lines, 1)]


def _read_row(line: str, where: str) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line)
        missing = _ROW - row.keys()
    except (ValueError, AttributeError):
        raise RunError(f"{where} is damaged; remove it") from None
    if missing:
        raise RunError(f"{where} lacks {', '.join(sorted(missing))}; remove it")
    return row


def make_row(job: Job, results: Path, work: Path) -> dict[str, Any]:
    """Do the job and append its row to `results`; runs and images go into `work`.

    Raises:
        RunError: A process failed.
    """
    folder = work / job.name
    folder.mkdir(parents=True, exist_ok=True)
    if job.method == REAL:
        order = torch.randperm(len(job.data.train), generator=torch.Generator().manual_seed(job.seed))
        images, facts = job.data.train.subset(order[: job.num_images]), {"epsilon": None, "seconds": None, **_here()}
    else:
        facts = _produced(job, folder, work / job.run_name)
        images = load_synthetic(folder / "synthetic.npz")
    row = {
        "data": job.data.name,
        "method": job.method,
        "target_epsilon": job.epsilon,
        "delta": None if job.epsilon is None else job.data.delta,
        "seed": job.seed,
        "num": job.num_images,
        "settings_sha256": job.settings_sha256(),
        **facts,
        **_scores(images, job),
    }
    with results.open("a", encoding="utf-8") as file:  # several processes may append to it
        file.write(f"{json.dumps(row)}\n")
    return row


def _produced(job: Job, folder: Path, trained: Path) -> dict[str, Any]:
    """Train, write `synthetic.npz` into the folder, and return the facts of the training.

    A run of the command line is trained once, in the folder `trained`, for any number of images. An interrupted
    training starts again.
    """
    done, images = folder / "produced.json", folder / "synthetic.npz"
    if (facts := _finished(done, job.settings_sha256())) is not None:
        return facts
    if job.method in PEERS:
        drawn = ("--seed", job.seed, "--num", job.num_images, "--out", images)
        facts = _spent((sys.executable, "-m", PEERS[job.method], *_common(job), *drawn), folder / "train")
    else:
        facts = _trained(job, trained)
        draw = ("sample", trained / facts.pop("run"), "--num", job.num_images, "--seed", job.seed, "--out", images)
        balanced = ("--balanced",) if job.method == BALANCED else ()
        _process((*_COMMAND, *draw, *balanced, "--json"), folder / "sample")
    return _finish(done, facts, job.settings_sha256())


def _trained(job: Job, folder: Path) -> dict[str, Any]:
    """Train a run of the command line; return its facts and, as "run", its name in the folder."""
    done, wanted = folder / "trained.json", _settings_of(job.data, job.trained_by, job.epsilon)
    if (facts := _finished(done, wanted)) is not None:
        return facts
    folder.mkdir(parents=True, exist_ok=True)
    run = _new_run(folder)
    recipe, settings = _recipe(job.trained_by, job.data)
    sets = [word for pair in {**settings, "seed": job.seed}.items() for word in ("--set", "=".join(map(str, pair)))]
    options = ("--out", run, *(("--recipe", recipe) if recipe else ()), *sets, "--json")
    facts = _spent((*_COMMAND, "train", *_common(job), *options), folder / "train")
    if _seedless_sha256(config_of(run / CONFIG)) != wanted:
        raise RunError(f"{run} was trained with other settings than planned; repeat the command")
    return _finish(done, {**facts, "run": run.name}, wanted)


def _common(job: Job) -> tuple[object, ...]:
    return (job.data.path, "--epsilon", job.epsilon, "--delta", job.data.delta)


def _finished(done: Path, settings_sha256: str) -> dict[str, Any] | None:
    """Return what `_finish` wrote for the same settings, or None; remove what it wrote for others."""
    if not done.exists():
        return None
    facts: dict[str, Any] = json.loads(done.read_text())
    if facts.pop("settings_sha256") == settings_sha256:
        return facts
    done.unlink()
    return None


def _finish(done: Path, facts: dict[str, Any], settings_sha256: str) -> dict[str, Any]:
    write_whole(done, json.dumps({**facts, "settings_sha256": settings_sha256}).encode(), shared=True)
    return facts


def _spent(words: tuple[object, ...], log: Path) -> dict[str, Any]:
    """Run a process that trains; return its ε, its cost, and machine and code."""
    printed, spent = _process(words, log)
    return {"epsilon": printed["epsilon"], **spent, **_here()}


def _here() -> dict[str, str | None]:
    """The processor's instruction set, on which times and the generator's precision depend, and the code's commit."""
    words = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*")
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        found = None
    commit = found.stdout.strip() if found is not None and found.returncode == 0 else None
    return {"processor": torch.backends.cpu.get_cpu_capability(), "commit": commit}


def _new_run(folder: Path) -> Path:
    """A run folder that does not exist yet: what an interrupted training left stays under its own name."""
    number = 0
    while (run := folder / f"run{number or ''}").exists():
        number += 1
    return run


def _process(words: tuple[object, ...], log: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Run a process to its end; return the JSON that it prints, and its cost.

    Wall seconds depend on what else runs on the machine, CPU seconds hardly.

    Raises:
        RunError: The exit status is not 0.
    """
    ours = str(Path(__file__).parent)
    paths = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONPATH": paths}
    out, errors = log.with_suffix(".out"), log.with_suffix(".err")
    start = time.monotonic()
    with out.open("w") as stdout, errors.open("w") as stderr:
        process = subprocess.Popen([str(word) for word in words], stdout=stdout, stderr=stderr, env=environment)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    if process.returncode != 0:
        lines = errors.read_text(errors="replace").strip().splitlines() or ["nothing on stderr"]
        raise RunError(f"exit status {process.returncode}: {lines[-1]} (see {errors})")
    facts: dict[str, Any] = json.loads(out.read_text())
    return facts, {
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def _scores(images: LabelledImages, job: Job) -> dict[str, Any]:
    """Score classifiers trained on `images` and tested on real ones, and measure the Fréchet distance and its floor."""
    found: dict[str, Any] = {
        "scores": _accuracies(images, job.data.test, job.seed),
        "class_names": job.data.test.class_names,
        "test_counts": torch.bincount(job.data.test.labels, minlength=job.data.test.num_classes).tolist(),
    }
    if job.data.validation is not None:
        found["validation"] = _accuracies(images, job.data.validation, job.seed)
    extractor, _ = find_extractor(None)
    frechet = None
    if extractor is not None:
        cached = default_folder()
        frechet = measure(extractor, images, job.data.test, FEATURES, job.seed, cached, lambda line: None).frechet
    return {
        **found,
        "frechet": None if frechet is None else frechet.value,
        "frechet_floor": None if frechet is None else frechet.floor,
        "frechet_images": None if frechet is None else frechet.num_synthetic,
        "extractor": None if frechet is None else frechet.extractor,
    }


def _accuracies(images: LabelledImages, real: LabelledImages, seed: int) -> dict[str, dict[str, Any]]:
    scores = score_classifiers(images, real, seed, names=CLASSIFIERS)
    kept = ("accuracy", "balanced_accuracy", "recall")
    return {name: {key: getattr(value, key) for key in kept} for name, value in scores.items()}
