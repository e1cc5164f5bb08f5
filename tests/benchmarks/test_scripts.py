"""Every script of `benchmarks/` runs on its smallest size and prints its figures."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import accountant
import quality
import same_run
import sampler
import sampling
import startup
import step
from dp_sinkhorn.data.sources import load_synthetic
from dp_sinkhorn.method import resolve, settings_of
from dp_sinkhorn.settings import parse_overrides
from dp_sinkhorn.training.run_folder import facts_of
from peers import batch
from support.small_release import RECORD as RECORD_RUN
from support.small_release import make_run
from support.toy import toy

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("DP_SINKHORN_DATA", raising=False)


@pytest.fixture
def data(tmp_path):
    """A file of toy records."""
    images, labels = toy(60).arrays()
    np.savez(tmp_path / "toy.npz", train_images=images, train_labels=labels)
    return tmp_path / "toy.npz"


@pytest.fixture
def printed(monkeypatch, capsys):
    """What a script's `main` prints."""

    def call(main, *words):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, words)])
        main()
        return capsys.readouterr().out

    return call


def test_accountant(printed):
    head, line = printed(accountant.main, "--settings", 1).splitlines()
    assert head.split()[:3] == ["rate", "noise", "releases"]
    error, _, allowed = map(float, line.split()[3:])
    assert 0.0 < error < allowed


def test_queries(printed, monkeypatch):
    pytest.importorskip("geomloss")
    pytest.importorskip("ot")
    import queries

    monkeypatch.setattr(queries, "QUERIES", 2)
    found = json.loads(printed(queries.main, "--repeats", 1, "--records", 500, "--channels", 4, "--json"))
    assert set(found["step_ms"]) == {"ours", "plain, cdist", "plain, broadcast", "floor"}
    assert set(found["parts_ms"]) == {"1", "2", "8"}
    for parts in found["parts_ms"].values():
        assert min(parts.values()) > 0.0
        assert {"subsample", "solver", "clip", "noise", "optimiser", "step"} < set(parts)


def test_sampler(printed):
    found = printed(sampler.main, "--bits", 4)
    assert found.startswith("largest noise 12.12 standard deviations\n")
    assert found.splitlines()[-1].split()[0] == "4"


def test_sampling(printed, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    found = json.loads(printed(sampling.main, "--num", 4, "--rounds", 1, "--json"))
    found.pop("processor")
    assert set(found) == {"1×28×28", "3×32×32"}
    for row in found.values():
        assert row["ratio"] == pytest.approx(row["milliseconds_per_image"] / row["bare_milliseconds_per_image"])
    run = make_run(tmp_path / "run", **RECORD_RUN)
    assert printed(sampling.main, run, "--num", 4, "--rounds", 1).startswith(f"{run} milliseconds_per_image ")
    for words in ((tmp_path,), ("--num", 0)):
        with pytest.raises(SystemExit) as stopped:
            printed(sampling.main, *words)
        assert (stopped.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


def test_solver(printed):
    pytest.importorskip("geomloss")
    pytest.importorskip("ot")
    import solver

    found = json.loads(printed(solver.main, "--repeats", 1, "--shape", "2,5,64", "--json"))
    assert {row["shape"] for row in found["rows"]} == {"2×5×5, d=64"}
    assert {"ours", "geomloss batched", "pot sinkhorn", "floor"} < {row["contestant"] for row in found["rows"]}
    assert min(found["ratio_vs_geomloss"], found["ratio_vs_pot"], found["times_floor"]) > 0.0


def test_startup(printed, tmp_path, capsys):
    run = make_run(tmp_path / "run", **RECORD_RUN)
    found = json.loads(printed(startup.main, run, "--repeats", 1, "--json"))
    assert {"import torch", "--help", "--version", "plan --num-records 60000", "verify RUN"} <= set(found)
    assert found["import torch"]["ratio"] == found["import torch"]["processor_ratio"] == 1.0
    for row in found.values():
        assert row["ratio"] == pytest.approx(row["seconds"] / found["import torch"]["seconds"])
    startup.show(found)
    head, torch_line, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["command", "seconds", "ratio", "at", "most", "processor", "ratio"]
    assert torch_line.startswith("import torch ")
    assert {line.split()[0] for line in lines} >= {"--help", "--version", "plan", "verify"}
    for words in (("--repeats", 0), (tmp_path / "missing",)):
        with pytest.raises(SystemExit) as stopped:
            printed(startup.main, *words)
        assert stopped.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


RECORD = {"generator_forward", "subsample", "contributions", "noise", "generator_backward", "optimiser", "average"}
BATCH = "mode=batch", "batch_steps.queries_per_step=2", "batch_steps.sinkhorn_iterations=5"


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (("mode=record", "transport_steps.num_reference=16"), RECORD),
        (BATCH, RECORD),
        (("mode=embedding", "class_embedding.num_frequencies=50"), RECORD - {"subsample", "contributions", "noise"}),
    ],
    ids=["record", "batch", "embedding"],
)
def test_step(printed, data, settings, parts):
    common = ("generator=mlp", "width=16", "num_generated=16", "noise_multiplier=50", "num_steps=6")
    sets = [word for pair in (*common, *settings) for word in ("--set", pair)]
    found = json.loads(printed(step.main, data, "--steps", 1, "--json", *sets))
    assert set(found["parts_ms"]) == parts
    assert min(found["parts_ms"].values()) > 0.0
    assert 0.0 < found["generator_share"] < sum(found["parts_ms"].values()) / found["step_ms"] <= 1.0
    assert found["bookkeeping_ms"] > 0.0


def test_step_of_a_run_that_is_too_short(printed, data, capsys):
    with pytest.raises(SystemExit):
        printed(step.main, data, "--steps", 2, "--set", "num_steps=6", "--set", "noise_multiplier=50")
    assert "--steps 2 and 5 to warm up exceed the run's 6 steps" in capsys.readouterr().err


def test_quality_shows_the_project_s_own_rows(printed):
    with pytest.raises(SystemExit) as stopped:
        printed(quality.main, "--show", "--json")
    assert stopped.value.code == 0


@pytest.mark.filterwarnings("ignore")  # of a fixed seed and of version 0.1's names, which the script ignores too
def test_same_run_s_worker_on_the_working_tree(monkeypatch, tmp_path, capsys):
    settings = same_run.RUNS["batch-one-class"].settings | {"noise_multiplier": 50.0, "queries_per_step": 1}
    tiny = same_run.Run(10.0, same_run.Toy(60, shares=(1.0,)), settings, stop_after=5)
    monkeypatch.setitem(same_run.RUNS, "tiny", tiny)
    monkeypatch.setenv("PYTHONPATH", str(same_run.ROOT / "src"))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["same_run.py", "--worker", str(tmp_path), "--only", "tiny"])
    assert same_run.main() == 0
    assert capsys.readouterr().out == "tiny\n"
    answer = json.loads((tmp_path / "tiny.json").read_text())
    assert answer.get("traceback") is None
    found = same_run.canonical(answer)
    steps = {"name": "batch_steps", "noise_multiplier": 50.0, "sample_rate": 50 / 60, "count": 8}
    assert (found["card"]["mode"], found["charges"]) == ("batch", [steps])
    assert found["images"]["shape"] == [same_run.SAMPLED, 8, 8]


@pytest.mark.parametrize(
    ("name", "constants"),
    [("dp_merf", ("steps=2", "features=20", "num_generated=20")), ("gaussian", ("mean_share=0.5",))],
)
def test_peer(printed, data, monkeypatch, tmp_path, name, constants):
    monkeypatch.delitem(sys.modules, f"peers.{name}", raising=False)
    sets = [word for pair in constants for word in ("--set", pair)]
    found = json.loads(
        printed(
            lambda: runpy.run_module(f"peers.{name}", run_name="__main__"),
            data, "--num", 12, "--out", tmp_path / "made.npz", *sets,
        )
    )  # fmt: skip
    assert 9.8 < found["epsilon"] <= 10.0
    key, _, value = constants[0].partition("=")
    assert found["settings"][key] == float(value)
    assert len(load_synthetic(tmp_path / "made.npz")) == 12


def test_peer_refuses_a_constant_that_it_lacks(printed, data, monkeypatch, tmp_path, capsys):
    monkeypatch.delitem(sys.modules, "peers.gaussian", raising=False)
    with pytest.raises(SystemExit):
        printed(
            lambda: runpy.run_module("peers.gaussian", run_name="__main__"),
            data, "--out", tmp_path / "made.npz", "--set", "steps=2",
        )  # fmt: skip
    assert "choose from count_share, mean_share" in capsys.readouterr().err


def test_peer_of_whole_batches():
    """This peer has no script: it is settings of a run of the command line."""
    overrides = parse_overrides([f"{key}={value}" for key, value in batch.settings(64).items()])
    overrides |= {"num_steps": 1, "noise_multiplier": 20.0}
    config = resolve(settings_of(batch.RECIPE, overrides), facts_of("toy", toy(60)))
    assert (config.trains, config.plan.queries_per_step) == ("batch_steps", 256)


def test_every_script_has_a_test_here():
    scripts = {path.stem for path in BENCHMARKS.rglob("*.py") if 'if __name__ == "__main__"' in path.read_text()}
    assert scripts == {
        "accountant",
        "queries",
        "quality",
        "same_run",
        "sampler",
        "sampling",
        "solver",
        "startup",
        "step",
        "dp_merf",
        "gaussian",
    }
    libraries = {"quality_runs", "quality_table", "peer", "batch", "__init__"}
    assert {path.stem for path in BENCHMARKS.rglob("*.py")} == scripts | libraries
