"""The quality table: the order of its rows, what it refuses to mix, and what it prints."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import quality
import quality_runs
import quality_table
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import resolve, settings_of
from dp_sinkhorn.training.run_folder import facts_of

ROOT = Path(__file__).parents[2]


def made_row(data="mnist", method="dp-sinkhorn", epsilon=10.0, seed=0, accuracy=0.9, sha="a", **more):
    score = {"accuracy": accuracy, "balanced_accuracy": accuracy - 0.1, "recall": [accuracy, None]}
    return {
        "data": data, "method": method, "target_epsilon": epsilon, "delta": 1e-5, "seed": seed, "num": 20000,
        "settings_sha256": sha, "epsilon": 9.98, "seconds": 100.0 + seed, "peak_memory_bytes": 2**30,
        "scores": dict.fromkeys(("logreg", "mlp", "cnn"), score), "class_names": ["no", "yes"],
        "test_counts": [7, 0], "processor": "AVX512", "frechet": 5.0 + seed, "frechet_floor": 1.25,
    } | more  # fmt: skip


def keep(results, *rows):
    with results.open("a") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with one tiny set of two classes. The noise of its runs is given, not calibrated."""
    monkeypatch.setattr("dp_sinkhorn.method.step_noise_multiplier", lambda epsilon, *_: 40.0 / epsilon)
    random = np.random.default_rng(0)
    parts = {"train": 60, "test": 20}
    arrays = {f"{part}_images": random.integers(0, 256, (n, 8, 8), dtype=np.uint8) for part, n in parts.items()}
    labels = {f"{part}_labels": np.arange(n) % 2 for part, n in parts.items()}
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays, **labels)
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run the script on the tiny set; return exit status, stdout and stderr."""
    monkeypatch.delenv("DP_SINKHORN_DATA", raising=False)
    monkeypatch.setattr(quality.signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    def call(*words):
        places = ("--results", str(folder / "results.jsonl"), "--work", str(folder / "work"))
        arguments = ["quality.py", str(folder), "--data", "pneumoniamnist", *places, *words]
        monkeypatch.setattr(quality.sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            quality.main()
        return stopped.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def pretended(monkeypatch):
    """Replace all jobs by instant ones: the names in order; those in `bad` fail."""
    names, bad = [], set()

    def make(job, results, work):
        names.append(job.name)
        if job.name in bad:
            raise quality_runs.RunError("the machine\nburns")
        row = made_row(job.data.name, job.method, job.epsilon, job.seed, sha=job.settings_sha256(), num=job.num_images)
        keep(results, row)
        return row

    monkeypatch.setattr(quality, "make_row", make)
    return names, bad


def test_all_of_a_seed_precedes_the_next_and_ours_precedes_the_peers(run, pretended):
    status, out, _ = run("--epsilon", "10,1", "--methods", "gaussian,dp-sinkhorn", "--seeds", "0,1", "--json")
    names, _ = pretended
    wanted = [
        *(f"pneumoniamnist-dp-sinkhorn-eps{epsilon}-seed0" for epsilon in (10, 1)),
        "pneumoniamnist-real-seed0",
        *(f"pneumoniamnist-gaussian-eps{epsilon}-seed0" for epsilon in (10, 1)),
        *(f"pneumoniamnist-{method}-eps{e}-seed1" for method in ("dp-sinkhorn", "gaussian") for e in (10, 1)),
    ]
    assert (status, names) == (0, wanted)
    rows = {(row["method"], row["target_epsilon"]): row["seeds"] for row in json.loads(out)}
    assert rows == {("real", None): 1} | {(m, e): 2 for m in ("dp-sinkhorn", "gaussian") for e in (10.0, 1.0)}


def test_the_data_set_whose_runs_differ_most_has_more_seeds(run, pretended, monkeypatch, capsys, folder):
    names, _ = pretended
    assert run("--epsilon", "10", "--methods", "gaussian")[0] == 0
    own = [f"pneumoniamnist-gaussian-eps10-seed{seed}" for seed in range(6)]
    assert names == [own[0], "pneumoniamnist-real-seed0", *own[1:]]
    # The same six and three of another data set are shown where no seed is named.
    keep(folder / "results.jsonl", *(made_row("mnist", "gaussian", 10.0, seed) for seed in range(6)))
    arguments = ["quality.py", "--show", "--results", str(folder / "results.jsonl"), "--json"]
    monkeypatch.setattr(quality.sys, "argv", arguments)
    with pytest.raises(SystemExit):
        quality.main()
    seeds = {(row["data"], row["method"]): row["seeds"] for row in json.loads(capsys.readouterr()[0])}
    assert (seeds["pneumoniamnist", "gaussian"], seeds["mnist", "gaussian"]) == (6, 3)


def test_balanced_draws_are_jobs_where_class_sizes_are_unequal(folder):
    data = [quality_runs.source(name, folder / "pneumoniamnist.npz") for name in ("mnist", "pneumoniamnist")]
    methods, seeds = ["dp-sinkhorn", "dp-sinkhorn-balanced"], {"mnist": [0], "pneumoniamnist": [0, 1]}
    names = [job.name for job in quality.jobs(data, methods, [10.0], seeds, [20, 60])]
    assert [name for name in names if "balanced" in name] == [
        "pneumoniamnist-dp-sinkhorn-balanced-eps10-seed0-num20",
        "pneumoniamnist-dp-sinkhorn-balanced-eps10-seed1-num20",
    ]


def test_finished_rows_stay_and_the_other_jobs_run_after_a_failure(run, pretended):
    names, bad = pretended
    bad.add("pneumoniamnist-gaussian-eps10-seed0")
    words = ("--epsilon", "10", "--methods", "dp-sinkhorn,gaussian", "--seeds", "0,1")
    status, out, errors = run(*words)
    assert status == 1
    assert "pneumoniamnist-gaussian-eps10-seed0 failed: the machine\\nburns\n" in errors
    assert len(names) == 5
    bad.clear()
    names.clear()
    status, out, _ = run(*words)
    assert (status, names) == (0, ["pneumoniamnist-gaussian-eps10-seed0"])
    names.clear()
    status, shown, _ = run(*words, "--show")
    assert (status, names, shown) == (0, [], out)


def test_rows_are_shown_without_a_data_folder(run, folder, monkeypatch, capsys):
    words = ("--data", "mnist,pneumoniamnist", "--epsilon", "1,10", "--methods", "dp-sinkhorn,gaussian")
    rows = [
        made_row(data, method, epsilon, seed)
        for data in ("pneumoniamnist", "mnist", "fashion_mnist")
        for method in ("gaussian", "dp-sinkhorn", "batch")
        for epsilon in (10.0, 1.0, 0.2)
        for seed in (0, 1)
    ]
    rows += [made_row("mnist", "real", None, 0), made_row("mnist", num=60000)]
    results = folder / "results.jsonl"
    keep(results, *rows)
    arguments = ["quality.py", "--show", "--results", str(results), *words, "--seeds", "0", "--num", "20000"]
    monkeypatch.setattr(quality.sys, "argv", [*arguments, "--json"])
    with pytest.raises(SystemExit) as stopped:
        quality.main()
    assert stopped.value.code == 0
    found = [(row["data"], row["method"], row["target_epsilon"]) for row in json.loads(capsys.readouterr()[0])]
    ours = [(data, "dp-sinkhorn", epsilon) for data in ("mnist", "pneumoniamnist") for epsilon in (1.0, 10.0)]
    peers = [(data, "gaussian", epsilon) for data, _, epsilon in ours]
    assert found == [*ours, ("mnist", "real", None), *peers]
    for damaged, message in (("{", "is damaged"), ('{"data": "mnist"}', "lacks method, num, seed")):
        results.write_text(f"{json.dumps(rows[0])}\n{damaged}\n")
        with pytest.raises(SystemExit) as stopped:
            quality.main()
        assert stopped.value.code == 2
        assert f"line 2 of {results} {message}" in capsys.readouterr()[1]
    monkeypatch.setattr(quality.sys, "argv", ["quality.py"])
    with pytest.raises(SystemExit) as stopped:
        quality.main()
    assert stopped.value.code == 2
    assert "no data folder" in capsys.readouterr()[1]


def test_a_row_with_other_settings_is_refused(run, pretended, folder):
    words = ("--epsilon", "10", "--methods", "gaussian", "--seeds", "0", "--num", "30", "--json")
    assert run(*words)[0] == 0
    results = folder / "results.jsonl"
    rows = quality_runs.read_rows(results)
    results.unlink()
    keep(results, *(row | {"settings_sha256": "older"} for row in rows))
    status, out, errors = run(*words)
    assert status == 1
    assert json.loads(out) == []
    assert "results.jsonl has pneumoniamnist-gaussian-eps10-seed0-num30 with other settings (older, now" in errors
    assert "give another --results" in errors


def test_only_our_method_and_real_images_have_rows_of_more_images(run, pretended):
    words = ("--epsilon", "10", "--methods", "dp-sinkhorn,gaussian", "--seeds", "0", "--json")
    status, out, _ = run(*words, "--num", "30,50,20000,60000")
    names, _ = pretended
    ours, real = "pneumoniamnist-dp-sinkhorn-eps10-seed0", "pneumoniamnist-real-seed0"
    # There are 60 records, so that any larger number is the same job.
    wanted = [f"{name}{more}" for name in (ours, real) for more in ("-num30", "-num50", "")]
    assert (status, names) == (0, [*wanted, "pneumoniamnist-gaussian-eps10-seed0-num30"])
    assert [row["num"] for row in json.loads(out)] == [30, 50, 60, 30, 50, 60, 30]
    names.clear()
    assert run(*words, "--num", "50,30")[0] == 0
    assert names == ["pneumoniamnist-gaussian-eps10-seed0-num50"]


def test_a_run_is_trained_once_for_any_number_of_images(folder, monkeypatch):
    data = quality_runs.source("pneumoniamnist", folder / "pneumoniamnist.npz")
    called, balanced = [], []

    def process(words, log):
        options = dict(pairwise(words))
        command, out = ("train" if "train" in words else "sample"), Path(options["--out"])
        called.append((command, out.parent.name, options.get("--num")))
        balanced.append("--balanced" in words)
        if command == "train":
            given = {"target_epsilon": 10.0, "target_delta": data.delta, "seed": options["--set"].removeprefix("seed=")}
            settings = settings_of(None, given)
            out.mkdir()
            (out / "config.toml").write_text(resolve(settings, facts_of(str(data.path), data.train)).to_toml())
            return {"epsilon": 9.5}, {"seconds": 7.0, "processor_seconds": 6.0, "peak_memory_bytes": 2**20}
        assert options["sample"] == folder / "work" / "pneumoniamnist-dp-sinkhorn-eps10-seed3" / "run"
        images, labels = data.train.subset(torch.arange(options["--num"])).arrays()
        np.savez(out, images=images, labels=labels, class_names=np.array(data.train.class_names))
        return {}, {"seconds": 1.0, "processor_seconds": 1.0, "peak_memory_bytes": 1}

    monkeypatch.setattr(quality_runs, "_process", process)
    monkeypatch.setattr(quality_runs, "_scores", lambda images, job: {"scored": len(images)})
    results = folder / "results.jsonl"
    rows = [
        quality_runs.make_row(quality_runs.Job(data, method, 10.0, 3, num), results, folder / "work")
        for method, num in (
            ("dp-sinkhorn", 20), ("dp-sinkhorn", 40), ("dp-sinkhorn", 40), ("dp-sinkhorn-balanced", 40),
        )
    ]  # fmt: skip
    name, other = (f"pneumoniamnist-{method}-eps10-seed3" for method in ("dp-sinkhorn", "dp-sinkhorn-balanced"))
    draws = [("sample", f"{name}-num20", 20), ("sample", f"{name}-num40", 40), ("sample", f"{other}-num40", 40)]
    assert called == [("train", name, None), *draws]
    assert balanced == [False, False, False, True]
    assert [(row["num"], row["scored"], row["seconds"]) for row in rows] == [
        (20, 20, 7.0),
        (40, 40, 7.0),
        (40, 40, 7.0),
        (40, 40, 7.0),
    ]
    assert "run" not in rows[0]
    assert quality_runs.read_rows(results) == rows
    assert quality_runs.row_of(quality_runs.Job(data, "dp-sinkhorn", 10.0, 3, 20), results) == rows[0]
    assert quality_runs.row_of(quality_runs.Job(data, "dp-sinkhorn", 10.0, 4, 20), results) is None
    assert rows[3]["settings_sha256"] != rows[2]["settings_sha256"]
    # A run with other settings is not used: it stays, and another run is trained.
    trained = folder / "work" / name / "trained.json"
    trained.write_text(json.dumps(json.loads(trained.read_text()) | {"settings_sha256": "older"}))
    called.clear()
    monkeypatch.setattr(quality_runs, "_process", lambda words, log: called.append(words) or ({"epsilon": 1}, {}))
    with pytest.raises(InputError):
        quality_runs.make_row(quality_runs.Job(data, "dp-sinkhorn", 10.0, 3, 10), results, folder / "work")
    assert called[0][called[0].index("--out") + 1] == folder / "work" / name / "run1"


def test_the_hash_of_a_row_covers_epsilon_and_number_but_no_seed(folder):
    data = quality_runs.source("pneumoniamnist", folder / "pneumoniamnist.npz")
    for method in ("dp-sinkhorn", "dp-merf", "gaussian"):
        job = quality_runs.Job(data, method, 10.0, 0, 30)
        assert job.settings_sha256() == quality_runs.Job(data, method, 10.0, 7, 30).settings_sha256()
        assert job.settings_sha256() != quality_runs.Job(data, method, 1.0, 0, 30).settings_sha256()
        assert job.settings_sha256() != quality_runs.Job(data, method, 10.0, 0, 20).settings_sha256()
    assert (data.delta, job.num_images) == (1e-4, 30)
    assert quality_runs.Job(data, "gaussian", 10.0, 0, 20000).num_images == 60


def test_a_process_reports_its_cost_and_its_last_line_if_it_fails(tmp_path, monkeypatch):
    wait = quality_runs.os.wait4

    def counted(*words):
        number, status, usage = wait(*words)
        return number, status, SimpleNamespace(ru_utime=1.25, ru_stime=0.5, ru_maxrss=usage.ru_maxrss)

    monkeypatch.setattr(quality_runs.os, "wait4", counted)
    program = "print('{\"epsilon\": 1.5}')"
    facts, spent = quality_runs._process((sys.executable, "-c", program), tmp_path / "train")
    assert facts == {"epsilon": 1.5}
    assert spent["processor_seconds"] == 1.75
    assert spent["peak_memory_bytes"] > 2**20
    failing = "import sys; print('no more', file=sys.stderr); sys.exit(3)"
    with pytest.raises(quality_runs.RunError, match=r"exit status 3: no more.*train\.err"):
        quality_runs._process((sys.executable, "-c", failing), tmp_path / "train")


def test_figures_are_medians_and_seeds_of_different_settings_are_refused():
    rows = [made_row(seed=seed, accuracy=accuracy) for seed, accuracy in enumerate((0.7, 0.95, 0.8))]
    (summary,) = quality_table.grouped(rows)
    assert summary["seeds"] == 3
    assert summary["accuracy"]["mlp"] == 0.8
    assert summary["balanced_accuracy"]["cnn"] == pytest.approx(0.7)
    assert (summary["seconds"], summary["frechet"]) == (101.0, 6.0)
    assert summary["cnn_recall"] == [0.8, None]
    (mixed,) = quality_table.grouped([made_row(processor_seconds=60.4), made_row(seed=1)])
    assert (mixed["seconds"], mixed["processor_seconds"]) == (100.5, None)
    assert [row["num"] for row in quality_table.grouped([*rows, made_row(num=60000, sha="c")])] == [20000, 60000]
    with pytest.raises(ValueError, match="different settings"):
        quality_table.grouped([*rows, made_row(seed=3, sha="b")])


def test_the_table_of_a_balanced_set_has_published_figures():
    real = made_row(
        method="real", epsilon=None, epsilon_spent=None, seconds=None, peak_memory_bytes=None, accuracy=0.987
    )
    timed = made_row(epsilon=0.2, accuracy=0.5, processor_seconds=60.4)
    more = [made_row(num=60000, accuracy=0.95, sha="b", seed=seed) for seed in (0, 1)]
    text = quality_table.markdown(quality_table.grouped([made_row(), real, timed, *more]))
    assert text.startswith("**MNIST**: 20,000 images, ")
    assert "| 10 | **dp-sinkhorn** (60,000) | 95.0 / 95.0 / 95.0 | 5.50 | | 100 | AVX512 | 1.00 GiB | 2 |" in text
    assert text.endswith("| 10 | **dp-sinkhorn** (60,000) | 95.0 / 95.0 / 95.0 (5) | 95.0 / 95.0 / 95.0 (6) |")
    assert "| 10 | **dp-sinkhorn** | 90.0 / 90.0 / 90.0 | 5.00 | | 100 | AVX512 | 1.00 GiB | 1 |" in text
    assert "| 0.2 | **dp-sinkhorn** | 50.0 / 50.0 / 50.0 | 5.00 | 60 | 100 | AVX512 | 1.00 GiB | 1 |" in text
    assert "| | real images | 98.7 / 98.7 / 98.7 | 5.00 | | | | | 1 |" in text
    assert "| 10 | DP-MERF, published | 79.4 / 78.3 / 82.1 | | | | | | |" in text
    assert "Fréchet floor 1.25" in text
    assert "61.9" not in text  # published at ε = 1, of which there is no row
    assert "recall" not in text


def test_the_table_of_an_imbalanced_set_has_balanced_accuracy_first():
    more = made_row("ham10000_32", num=60000, accuracy=0.95, sha="b")
    rows = [made_row("ham10000_32"), more, made_row("ham10000_32", method="batch", accuracy=0.5)]
    text = quality_table.markdown(quality_table.grouped(rows))
    assert "| 10 | **dp-sinkhorn** | 80.0 / 80.0 / 80.0 | 90.0 / 90.0 / 90.0 |" in text
    assert "| ε | CNN recall by class, % | no (7) | yes (0) |" in text
    assert text.endswith("| 10 | **dp-sinkhorn** | 90 | - |\n| 10 | **dp-sinkhorn** (60,000) | 95 | - |")


def test_scores_on_validation_images_name_their_seeds():
    score = {"accuracy": 0.97, "balanced_accuracy": 0.96, "recall": [1.0, 0.9]}
    better = dict.fromkeys(("logreg", "mlp", "cnn"), score)
    rows = [made_row("pneumoniamnist"), made_row("pneumoniamnist", seed=1, validation=better)]
    bare = made_row("pneumoniamnist", method="gaussian")
    text = quality_table.markdown(quality_table.grouped([*rows, bare]))
    head, _, ours, peer = text.split("\n\n")[1].splitlines()
    assert head.startswith(
        "| ε | method | balanced accuracy: LogReg / MLP / CNN | accuracy: LogReg / MLP / CNN | balanced"
    )
    assert "| balanced accuracy on validation images | Fréchet |" in head
    assert "| 90.0 / 90.0 / 90.0 | 96.0 / 96.0 / 96.0 (1 of 2 seeds) | 5.50 |" in ours
    assert "| 90.0 / 90.0 / 90.0 | | 5.00 |" in peer
    (summary,) = quality_table.grouped([row | {"validation": better} for row in rows])
    assert summary["validation"]["seeds"] == 2
    assert "validation" not in quality_table.markdown(quality_table.grouped([bare]))


def test_images_are_also_scored_on_validation_images(folder, monkeypatch):
    def scored(images, real, seed, names):
        score = SimpleNamespace(accuracy=len(real) / 100, balanced_accuracy=0.0, recall=[0.0])
        return dict.fromkeys(names, score)

    monkeypatch.setattr(quality_runs, "score_classifiers", scored)
    monkeypatch.setattr(quality_runs, "find_extractor", lambda _: (None, None))
    path = folder / "pneumoniamnist.npz"
    with np.load(path) as archive:
        more = dict(archive) | {"val_images": archive["test_images"][:6], "val_labels": archive["test_labels"][:6]}
    np.savez(folder / "more.npz", **more)

    def scores(name):
        data = quality_runs.source("pneumoniamnist", folder / name)
        return quality_runs._scores(data.train, quality_runs.Job(data, "real", None, 0, 20000))

    found = scores("more.npz")
    assert (found["scores"]["mlp"]["accuracy"], found["validation"]["mlp"]["accuracy"]) == (0.2, 0.06)
    assert "validation" not in scores("pneumoniamnist.npz")


def test_single_seeds_stand_below_in_one_column_each():
    ours = [made_row("ham10000_32", accuracy=accuracy, seed=seed) for seed, accuracy in ((2, 0.95), (0, 0.85))]
    peer = [made_row("ham10000_32", method="gaussian", seed=seed, frechet=None) for seed in (0, 1)]
    alone = made_row("ham10000_32", method="batch")
    text = quality_table.markdown(quality_table.grouped([*ours, *peer, alone]))
    head, _, *lines = text.split("\n\n")[-1].splitlines()
    assert head == "| ε | balanced accuracy (Fréchet) | seed 0 | seed 1 | seed 2 |"
    assert lines == [
        "| 10 | **dp-sinkhorn** | 75.0 / 75.0 / 75.0 (5) | | 85.0 / 85.0 / 85.0 (7) |",
        "| 10 | Gaussian per class | 80.0 / 80.0 / 80.0 | 80.0 / 80.0 / 80.0 | |",
    ]


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_documents_hold_the_tables_of_the_results(page):
    results = ROOT / "benchmarks" / "results.jsonl"
    names, methods = list(quality_table.TITLES), list(quality_runs.METHODS)
    rows = quality.kept_rows(results, names, methods, [10.0, 1.0, 0.2], quality._SEEDS, [20000, 60000])
    page = ROOT / page
    assert page.read_text() == quality_table.with_tables(page, quality_table.grouped(rows))


def test_the_summary_has_published_figures_and_real_images():
    real = made_row(method="real", epsilon=None, seconds=None, peak_memory_bytes=None, accuracy=0.987)
    rows = [made_row(num=60000, sha="b"), made_row(), made_row(epsilon=0.2), real, made_row("ham10000_32")]
    head, _, line = quality_table.summary(quality_table.grouped(sorted(rows, key=lambda row: row["num"]))).splitlines()
    assert head.startswith("| | ε | synthetic | published: the paper |")
    assert head.endswith("| real images | training, CPU s |")
    wanted = "90.0 / 90.0 / 90.0** | 82.8 / 82.7 / 83.2 | 90.8 / 94.8 / 98.1 | 98.7 / 98.7 / 98.7 | 100 (wall) |"
    assert line == f"| MNIST, 20,000 images | 10 | **{wanted}"


def test_the_summary_has_cpu_seconds_where_all_seeds_have_them():
    real = made_row(method="real", epsilon=None, seconds=None, peak_memory_bytes=None)
    rows = [made_row(processor_seconds=60.4), made_row(seed=1, processor_seconds=62.0)]
    *_, line = quality_table.summary(quality_table.grouped([*rows, real])).splitlines()
    assert line.endswith("| 61 |")
    *_, line = quality_table.summary(quality_table.grouped([*rows, made_row(seed=2), real])).splitlines()
    assert line.endswith("| 101 (wall) |")


def test_only_the_part_between_the_markers_is_replaced(tmp_path):
    page = tmp_path / "results.md"
    begin, end = quality_table.markers("quality")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    table = quality_table.grouped([made_row()])
    quality_table.write_tables(page, table)
    assert page.read_text() == f"before\n{begin}\n{quality_table.markdown(table)}\n{end}\nafter\n"
    assert [path.name for path in tmp_path.iterdir()] == ["results.md"]


@pytest.mark.parametrize("order", [(), (1, 0), (0, 0), (0, 0, 1)])
def test_a_page_without_the_markers_is_refused_before_anything_runs(run, pretended, tmp_path, order):
    page = tmp_path / "page.md"
    text = "\n".join(quality_table.markers("quality")[place] for place in order)
    page.write_text(text)
    with pytest.raises(InputError, match="has no part between"):
        quality_table.write_tables(page, [])
    status, out, errors = run("--write", str(page))
    assert (status, out, page.read_text()) == (2, "", text)
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert pretended[0] == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--data", "cifar"), "cifar"),
        (("--methods", "gan"), "gan"),
        (("--epsilon", "ten"), "ten"),
        (("--epsilon", "0"), "--epsilon 0"),
        (("--seeds", "1,1"), "1,1"),
        (("--num", "0"), "--num 0"),
        (("--data", "mnist"), "mnist does not exist"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(run, pretended, words, named):
    status, out, errors = run(*words)
    assert (status, out) == (2, "")
    assert named in errors
    assert errors.count("\n") == 1


def test_the_markers_are_in_the_results_page():
    quality_table.check_markers(Path(__file__).parents[2] / "docs" / "results.md")
