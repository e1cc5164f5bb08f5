"""Check that a change of the code changes no answer: short runs of every mode and budget, with old and new code.

    python benchmarks/same_run.py [REV] [--only NAME,NAME]

Each run trains a few steps on toy images with `test_seed`, once by the working tree and once by the code of REV. Most
runs are interrupted once, as by Ctrl-C, and resumed. The script compares byte for byte: the charges in the ledger, the
facts of the card, every tensor of the release, 20 sampled images, and private figures if there are any. It prints one
line for each run: "ok NAME SECONDS", or "DIFFERS NAME: " and the first differences.

REV defaults to the commit in benchmarks/same_run.rev. Its answers are kept in $XDG_CACHE_HOME/dp-sinkhorn-same-run
(~/.cache without that variable) and used again on this machine. Each side takes about two minutes on one thread.
Exit status 1 if a run differs, 2 if the code of REV does not run.
"""

import argparse
import base64
import hashlib
import inspect
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# The commit whose answers the working tree must give. Only a commit that changes an answer on purpose, and says why,
# changes it.
REV_FILE = Path(__file__).with_suffix(".rev")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
DELTA, SAMPLED, SHOWN = 1e-4, 20, 4
Answer = dict[str, Any]


# The runs. Mode and rules depend on the noise per record: gaussian_noise_multiplier(ε, δ) / records.


class Toy(NamedTuple):
    """Toy images: noise, and a bright block at a place of each class. `shares` of the classes; one share: no labels."""

    records: int
    side: int = 8
    channels: int = 1
    shares: tuple[float, ...] = (0.4, 0.35, 0.25)


class Run(NamedTuple):
    """A run. `stop_after`: number of steps after which it is interrupted; 0: never."""

    epsilon: float
    toy: Toy
    settings: dict[str, Any]
    stop_after: int = 5


_USUAL, _EMBEDDING, _SMALL, _TINY = (10.0, Toy(4600)), (10.0, Toy(2000)), (10.0, Toy(1000)), (2.0, Toy(600))
_NET = {"num_steps": 8, "latent_dim": 4, "width": 16, "channels": 8, "test_seed": 7}
_TUNED, _TUNED_TWICE = ({"fine_tuning": {"num_steps": 6} | more} for more in ({}, {"embedding_steps": 6}))
_STATISTICS = _NET | {"min_dimensions": 4, "num_generated": 30} | _TUNED
_FEATURES = {"num_frequencies": 60}
_RECORD = _STATISTICS | {"num_reference": 48, "expected_batch_size": 300}
_FULL = _RECORD | _FEATURES | _TUNED_TWICE
_BATCH = _NET | {"sanitize": "batch", "num_generated": 16, "queries_per_step": 3, "sinkhorn_iterations": 10}
_GIVEN = {"noise_multiplier": 4.0}  # no calibration, which takes seconds
_OFF = {"moments_share": 0.0, "features_share": 0.0, "classifier_share": 0.0}
_RARE = Toy(2500, shares=(0.55, 0.4, 0.04, 0.01))
_HIDING = {"noise_multiplier": 8.0, "num_generated": 32}

RUNS: dict[str, Run] = {
    # Mode `record`.
    "record": Run(*_USUAL, _FULL),
    "record-uninterrupted": Run(*_USUAL, _FULL | {"seed": 1}, 0),
    "record-all-records-a-step": Run(*_USUAL, _FULL | {"expected_batch_size": 4600, "average_decay": 0.5}),
    "record-without-moments": Run(*_USUAL, _FULL | _GIVEN | {"moments_share": 0.0}),
    "record-without-features": Run(*_USUAL, _FULL | _GIVEN | {"features_share": 0.0}),
    "record-without-classifier": Run(*_USUAL, _FULL | _GIVEN | {"classifier_share": 0.0}),
    "record-without-embedding": Run(*_USUAL, _RECORD | _GIVEN | {"embedding_share": 0.0}),
    "record-steps-only": Run(*_USUAL, _RECORD | _OFF | {"embedding_share": 0.0}),
    "record-potential": Run(*_USUAL, _RECORD | _OFF | {"embedding_share": 0.0, "potential_iterations": 5}),
    "record-declared-prior": Run(*_USUAL, _FULL | _GIVEN | {"class_prior": [0.5, 0.3, 0.2]}),
    "record-uniform-prior": Run(*_USUAL, _FULL | _GIVEN | {"class_prior": "uniform"}),
    "record-without-wavelets": Run(*_USUAL, _FULL | {"wavelet_weight": 0.0}),
    "record-constant-rate": Run(*_USUAL, _FULL | _GIVEN | {"schedule": "constant", "warmup": 0.3}),
    # Steps are charged in blocks of two: this run stops within one. It also writes private figures.
    "record-long": Run(*_USUAL, _FULL | _GIVEN | {"num_steps": 120, "private_metrics": True}, 51),
    "record-small-budget": Run(*_SMALL, _FULL | {"generator": "mlp"}),
    "record-small-budget-without-classifier": Run(*_SMALL, _FULL | _GIVEN | {"classifier_share": 0.0}),
    "record-tiny-budget": Run(*_TINY, _RECORD),
    # Classes that noise hides, with a tiny and a small budget; and a budget that the card calls hopeless.
    "record-rare-classes": Run(1.0, _RARE, _RECORD | _HIDING),
    "record-small-rare-classes": Run(1.5, _RARE, _FULL | _HIDING),
    "record-hopeless": Run(0.3, Toy(600), _RECORD),
    "record-one-class": Run(10.0, Toy(4600, shares=(1.0,)), _FULL),
    "record-colour": Run(10.0, Toy(4600, channels=3), _FULL),
    "record-12x12": Run(10.0, Toy(4600, side=12), _FULL | {"generator": "mlp", "precision": "float32"}),
    "record-dcgan": Run(*_USUAL, _FULL | {"generator": "dcgan"}),
    "record-resnet": Run(*_USUAL, _FULL | {"generator": "resnet"}),
    # More than one chunk of records: a chunk has at most 8,192.
    "record-many-records": Run(10.0, Toy(8500), _FULL | _GIVEN | {"expected_batch_size": 500}),
    "record-default-sizes": Run(10.0, Toy(8500, shares=(0.5, 0.5)), _NET | _GIVEN | _FEATURES | _TUNED_TWICE),
    # Mode `embedding`: one release of class embeddings in place of those of the steps.
    "embedding-by-default": Run(*_EMBEDDING, _STATISTICS | _FEATURES),
    "embedding": Run(*_USUAL, _STATISTICS | _FEATURES | _GIVEN | {"sanitize": "embedding"}),
    "embedding-uninterrupted": Run(*_EMBEDDING, _STATISTICS | _FEATURES | {"sanitize": "embedding", "seed": 1}, 0),
    "embedding-without-wavelets": Run(
        *_EMBEDDING, _STATISTICS | _FEATURES | {"sanitize": "embedding", "wavelet_weight": 0.0}
    ),
    "embedding-alone": Run(*_EMBEDDING, _STATISTICS | _FEATURES | _OFF | {"sanitize": "embedding"}),
    "embedding-tiny-budget": Run(*_TINY, _STATISTICS | _FEATURES | {"sanitize": "embedding"}),
    "embedding-rare-classes": Run(1.5, _RARE, _STATISTICS | _FEATURES | _HIDING | {"sanitize": "embedding"}),
    # Mode `batch`.
    "batch": Run(*_SMALL, _BATCH),
    "batch-uninterrupted": Run(*_SMALL, _BATCH | {"seed": 1}, 0),
    "batch-private-figures": Run(*_SMALL, _BATCH | {"private_metrics": True}),
    "batch-l1": Run(*_SMALL, _BATCH | {"l1_weight": 0.5, "debias_fraction": 0.0}),
    "batch-histogram": Run(*_SMALL, _BATCH | {"class_prior": "histogram"}),
    "batch-within-classes": Run(*_SMALL, _BATCH | {"label_weight": float("inf"), "class_prior": [0.5, 0.3, 0.2]}),
    "batch-one-class": Run(10.0, Toy(600, shares=(1.0,)), _BATCH | {"generator": "mlp"}),
    "batch-colour": Run(10.0, Toy(600, channels=3), _BATCH),
    "batch-dcgan": Run(10.0, Toy(600), _BATCH | {"generator": "dcgan"}),
    "batch-resnet": Run(10.0, Toy(600), _BATCH | {"generator": "resnet"}),
}


def keywords(settings: dict[str, Any]) -> dict[str, Any]:
    """The keywords of `DPSinkhorn` for flat settings, which revisions before scikit-learn's rules took one by one."""
    from inspect import signature

    from dp_sinkhorn import DPSinkhorn

    return {"settings": settings} if "settings" in signature(DPSinkhorn).parameters else dict(settings)


# The worker. It uses only what the oldest REV has, and writes its findings unchanged.


def toy_images(toy: Toy) -> tuple[Any, Any]:
    """Images and labels (None: one class), the same every time."""
    import numpy as np

    random = np.random.default_rng(5)
    labels = random.choice(len(toy.shares), size=toy.records, p=toy.shares)
    labels[: len(toy.shares)] = range(len(toy.shares))
    images = random.integers(0, 80, (toy.records, toy.side, toy.side, toy.channels), dtype=np.uint8)
    for label in range(len(toy.shares)):
        row, column = divmod(2 * label, toy.side - 3)
        images[labels == label, 2 * row : 2 * row + 3, column : column + 3, label % toy.channels] += 150
    return images.squeeze(3) if toy.channels == 1 else images, labels if len(toy.shares) > 1 else None


@contextmanager
def interrupted_after(steps: int) -> Iterator[None]:
    """Send Ctrl-C within the training step of that number; each step calls Adam once."""
    import torch

    real, calls = torch.optim.Adam.step, 0

    def counted(self: Any, *args: Any, **named: Any) -> Any:
        nonlocal calls
        moved = real(self, *args, **named)
        calls += 1
        if calls == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return moved

    torch.optim.Adam.step = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.optim.Adam.step = real  # type: ignore[method-assign]


def array(values: Any) -> dict[str, Any]:
    """Return an array or a tensor as JSON."""
    import torch

    tensor = torch.as_tensor(values).contiguous()
    content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "bytes": base64.b64encode(content).decode()}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a file; an empty list if it is missing."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_answer(run: Run, folder: Path) -> Answer:
    """Train, interrupt, go on, and read what lies in the run's folder then."""
    from safetensors.torch import load_file

    from dp_sinkhorn import DPSinkhorn

    images, labels = toy_images(run.toy)

    def fit(**how: bool) -> None:
        model = DPSinkhorn(epsilon=run.epsilon, delta=DELTA, **keywords(run.settings))
        model.fit(images, labels, run_folder=folder, **how)

    stopped = False
    try:
        with interrupted_after(run.stop_after):
            fit()
    except KeyboardInterrupt:
        stopped = True
        fit(resume=True)
    if stopped != (run.stop_after > 0):
        raise RuntimeError(f"interrupted: {stopped}, wanted after {run.stop_after} steps")
    sampled, sampled_labels = DPSinkhorn.load(folder).sample(SAMPLED, seed=3)
    return {
        "ledger": [line["entry"] for line in json_lines(folder / "ledger.jsonl")],
        "card": json.loads((folder / "release" / "card.json").read_text()),
        "tensors": {name: array(value) for name, value in load_file(folder / "release/weights.safetensors").items()},
        "images": array(sampled),
        "labels": array(sampled_labels),
        "figures": json_lines(folder / "private" / "metrics.jsonl"),
    }


def work(out: Path, source: Path, names: list[str]) -> None:
    """Write one file for each answer, and print its name when it is finished."""
    import torch

    import dp_sinkhorn

    if not Path(dp_sinkhorn.__file__).is_relative_to(source):
        raise RuntimeError(f"dp_sinkhorn comes from {dp_sinkhorn.__file__}, not from {source}")
    torch.set_num_threads(1)
    for name in names:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                answer = make_answer(RUNS[name], Path(folder) / "run")
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        answer["seconds"] = time.monotonic() - start
        (out / f"{name}.json").write_text(json.dumps(answer))
        print(name, flush=True)


# The canonical form. What the versions of the code name differently gets the new name. ALL renaming is here.

CHARGES = {
    "first_moments": "principal_subspace.first_moments",
    "second_moment": "principal_subspace.second_moment",
    "classifier": "label_classifier",
}
STEPS = {"record": "transport_steps", "batch": "batch_steps"}  # by mode; the old charge is "step"
TENSORS = {
    "correction.": "class_moments.",
    "refinement.fields": "class_features.fields",
    "classifier.weight": "label_classifier.weight",
    "first.": "",  # of a release that draws from two generators
    "second.": "embedding_steps.",
}
# Facts of the card, and their other names: KEY, or STAGE.KEY.
FACTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("epsilon", "epsilon_rdp", "delta", "neighboring_relation", "accountant", "num_records"), ()),
    **dict.fromkeys(("num_steps", "queries_per_step", "sample_rate", "expected_batch_size", "noise_multiplier"), ()),
    **dict.fromkeys(("clip_norm", "sensitivity", "corrected_dimensions", "refinement_steps"), ()),
    **dict.fromkeys(("image_shape", "class_names", "generator", "private"), ()),
    "mode": ("sanitize",),
    "matching_steps": ("embedding_steps.fine_tuning_steps", "fine_tuning.steps"),
    "kept_share": ("mixture_weight",),
    "class_shares": ("shares",),
    "epsilon_alone": (),
}


def canonical_card(card: dict[str, Any]) -> dict[str, Any]:
    """Return the card's facts flat: from the headline, from what is nested there, or else from a stage."""
    stages = {stage["name"]: stage for stage in card.get("stages", ())}
    first = [stages[name] for name in (*STEPS.values(), "embedding_steps") if name in stages]
    places = [card, *(value for value in card.values() if isinstance(value, dict)), *first, *stages.values()]

    def fact(name: str) -> Any:
        for alias in (name, *FACTS[name]):
            stage, _, key = alias.rpartition(".")
            for place in [stages.get(stage, {})] if stage else places:
                if key in place:
                    return place[key]
        return None

    facts = {name: fact(name) or None for name in FACTS}
    if facts["mode"] == "embedding":
        facts["matching_steps"] = None  # in this mode these are the run's main steps, not additional ones
    charges = canonical_charges(card["charges"], facts["mode"])
    counted = any(charge["name"] == "class_counts" for charge in charges)
    how = next((place["how"] for place in places if "how" in place), None)
    facts["counted"] = counted if how is None else how == "noisy histogram"
    facts["classifier"] = "label_classifier" in stages or bool(card.get("classifier"))
    return facts | {"charges": charges, "warnings": sorted(card["warnings"])}


def canonical_charges(entries: list[dict[str, Any]], mode: str) -> list[dict[str, Any]]:
    """Add up the counts of equal releases, sorted by name; leave out entries that charge nothing."""
    counts: dict[tuple[str, float, float], int] = {}
    for entry in entries:
        if "noise_multiplier" in entry:
            name = STEPS[mode] if entry["name"] == "step" else CHARGES.get(entry["name"], entry["name"])
            key = (name, entry["noise_multiplier"], entry.get("sample_rate", 1.0))
            counts[key] = counts.get(key, 0) + entry.get("count", 1)
    keys = ("name", "noise_multiplier", "sample_rate", "count")
    return [dict(zip(keys, (*key, count), strict=True)) for key, count in sorted(counts.items())]


def canonical_tensors(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors by their new names."""

    def renamed(name: str) -> str:
        old = next((old for old in TENSORS if name.startswith(old)), "")
        return TENSORS.get(old, "") + name.removeprefix(old)

    return {renamed(name): tensor for name, tensor in tensors.items()}


def canonical(answer: Answer) -> Answer:
    """Return the part of an answer that is compared."""
    card = canonical_card(answer["card"])
    return {
        "charges": canonical_charges(answer["ledger"], card["mode"]),
        "card": card,
        "tensors": canonical_tensors(answer["tensors"]),
        **{name: answer[name] for name in ("images", "labels", "figures")},
    }


# Comparing.


def differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Yield each difference as one sentence."""
    if isinstance(old, dict) and isinstance(new, dict):
        if {**old, "bytes": 0} == {**new, "bytes": 0} and "bytes" in old and old != new:
            before, after = base64.b64decode(old["bytes"]), base64.b64decode(new["bytes"])
            yield f"{place}: {sum(a != b for a, b in zip(before, after, strict=True))} of {len(before)} bytes"
            return
        for name in sorted(old.keys() | new.keys()):
            yield from differences(old.get(name), new.get(name), f"{place}.{name}".removeprefix("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{place}[{index}]")
    elif old != new:
        yield f"{place}: {str(old)[:60]} became {str(new)[:60]}"


def compare(name: str, old: Answer, new: Answer) -> bool:
    """Print the line of a run; return whether the answers are the same."""
    if "error" in new:
        print(new["traceback"], file=sys.stderr)
        found = [new["error"]]
    else:
        found = list(islice(differences(canonical(old), canonical(new)), SHOWN))
    print(f"DIFFERS {name}: {'; '.join(found)}" if found else f"ok {name} {new.get('seconds', 0.0):.1f}", flush=True)
    return not found


# Running both sides.


def answers(source: Path, out: Path, names: list[str]) -> Iterator[tuple[str, Answer]]:
    """Run a worker on the code in `source` and yield each answer as it comes.

    Raises:
        RuntimeError: The worker failed.
    """
    environment = os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": str(source), "OMP_WAIT_POLICY": "passive"}
    # -P: Python must not take another script of this folder for a module.
    command = [sys.executable, "-P", "-W", "ignore", __file__, "--worker", str(out), "--only", ",".join(names)]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "stderr").open("w+") as errors:
        # A session of its own: Ctrl-C reaches only this process, which ends the worker.
        how: dict[str, Any] = {"stderr": errors, "text": True, "start_new_session": True}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, **how)
        try:
            for line in process.stdout or ():
                if (name := line.strip()) in names:
                    yield name, json.loads((out / f"{name}.json").read_text())
            if process.wait():
                errors.seek(0)
                raise RuntimeError(errors.read().strip() or f"the worker ended with status {process.returncode}")
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def cache_key() -> str:
    """Hash of everything that an answer depends on, except the code under test."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        processor = platform.processor() + platform.machine()
    parts = [*map(inspect.getsource, (keywords, toy_images, make_answer)), processor, platform.python_version()]
    return hashlib.sha256(repr((RUNS, parts, version("torch"), version("numpy"))).encode()).hexdigest()[:16]


def git(*words: str) -> bytes:
    """Run git in this repository; return what it prints."""
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True).stdout  # noqa: S607


def answers_of_rev(sha: str) -> dict[str, Answer]:
    """Return REV's answers, from the cache if they are there.

    Raises:
        RuntimeError: The code of REV fails in a run.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dp-sinkhorn-same-run" / sha
    kept = cache / f"{cache_key()}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    print(f"making the answers of {sha[:7]}, once; some minutes", file=sys.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        with tarfile.open(fileobj=BytesIO(git("archive", sha, "src"))) as archive:
            archive.extractall(folder, filter="data")
        found = dict(answers(Path(folder) / "src", Path(folder), list(RUNS)))
        for name, answer in found.items():
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']}")
        partial = Path(folder) / "all"
        partial.write_text(json.dumps(found))
        partial.replace(kept)
    return found


def main() -> int:
    """Compare both sides; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "rev", nargs="?", default=None, help="the commit to compare with (default: that in same_run.rev)"
    )
    parser.add_argument("--only", default=",".join(RUNS), help="names of runs, separated by commas")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    names = chosen.only.split(",")
    if unknown := [name for name in names if name not in RUNS]:
        parser.error(f"unknown runs: {', '.join(unknown)}; choose from {', '.join(RUNS)}")
    if chosen.worker:
        work(chosen.worker, Path(os.environ["PYTHONPATH"]), names)
        return 0
    rev = chosen.rev or REV_FILE.read_text().strip()
    try:
        sha = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}").decode().strip()
    except subprocess.CalledProcessError:
        print(f"{rev!r} is no commit of this repository; give another, or fetch it", file=sys.stderr)
        return 2
    try:
        old = answers_of_rev(sha)
    except RuntimeError as error:
        print(f"the code of {rev} fails: {error}", file=sys.stderr)
        return 2
    same = []
    with tempfile.TemporaryDirectory() as out:
        try:
            same = [compare(name, old[name], new) for name, new in answers(ROOT / "src", Path(out), names)]
        except RuntimeError as error:
            print(f"the runs of the working tree failed: {error}", file=sys.stderr)
    return 0 if len(same) == len(names) and all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
