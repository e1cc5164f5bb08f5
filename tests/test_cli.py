"""The command line: what it prints, and one line with exit code 2 for bad input."""

import gzip
import json
import resource
import shlex
import shutil
import signal
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp_sinkhorn.data.sources import load_images
from dp_sinkhorn.evaluation.classifiers import CLASSIFIERS
from dp_sinkhorn.method import STAGES, resolve
from dp_sinkhorn.training import loop, speed
from dp_sinkhorn.training import run_folder as runs
from support.asking import Asking, signalled
from support.image_files import without_summary
from support.small_release import RECORD, make_run
from support.toy import LEAN, pairs, settings

FAST = LEAN["record"] | {"num_steps": 12, "num_generated": 20}
FAST_ARGUMENTS = pairs(FAST)
# With the noise given, nothing is calibrated.
NOISY = pairs(FAST | {"noise_multiplier": 200})


@pytest.fixture
def run(command_line, monkeypatch, tmp_path):
    """See `command_line`; with its own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    return command_line


@pytest.fixture
def refused(run):
    """Run the command line on bad input: exit code 2, nothing on stdout; returns the one line."""

    def call(*arguments: object) -> str:
        code, out, err = run(*arguments)
        told = without_summary(err).splitlines()
        lines = [line for line in told if line.strip() and not line.startswith(("warning", "step"))]
        assert code == 2, err
        assert out == ""
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        return lines[0]

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """An .npz of 200 RGB images, two classes, with a test split."""
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (240, 9, 12, 3), dtype=np.uint8)
    labels = np.arange(240) % 2
    images[labels == 1, :, 6:] += 150
    np.savez(
        path, train_images=images[:200], train_labels=labels[:200], test_images=images[200:], test_labels=labels[200:]
    )
    return path


def train_on(data: Path, folder: Path, **changes: object) -> Path:
    """A finished run."""
    records = load_images(str(data), "train")
    config = resolve(settings(FAST, **changes), runs.facts_of(str(data), records))
    runs.start(records, config, folder, STAGES)
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A finished run."""
    return train_on(data, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def timed(monkeypatch):
    """A dry run that does not measure this machine."""
    monkeypatch.setattr(speed, "measure_speed", lambda config, stages: speed.Speed(0.1, 1.0, 0.0))


def test_plan_prints_json(run):
    code, out, err = run("plan", "--num-records", 1000, "--delta", 1e-5, *FAST_ARGUMENTS, "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert 9.9 <= facts["epsilon_pld"] <= 10.0 <= facts["epsilon_rdp"]
    assert facts["expected_batch_size"] == pytest.approx(1000 * facts["sample_rate"])
    assert facts["mode"] == "record"
    assert {"noise_multiplier", "num_steps"} <= set(facts)
    assert {charge["name"] for charge in facts["charges"]} >= {"class_counts", "transport_steps"}


def test_without_a_verb_the_help_is_printed(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "Usage" in out


def test_plan_prints_a_table_of_releases(run):
    code, out, _ = run("plan", "--num-records", 1000, "--epsilon", 1)
    assert code == 0
    assert "noise multiplier" in out
    assert "class_counts" in out
    assert "principal_subspace.second_moment  noise multiplier" in out


def test_plan_refuses_a_setting_without_an_effect(run):
    code, out, err = run("plan", "--num-records", 1000, "--epsilon", 1, "--set", "class_embedding.wavelet_weight=0.3")
    assert (code, out) == (2, "")
    assert "class_embedding.wavelet_weight would have no effect: this run has no class_embedding; leave it out" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--num-records", "0"], "num_records=0 is below 1; give the number of private records"),
        (["--num-records", "-5"], "num_records=-5 is below 1"),
        (["--num-records", "1e3"], "(given: 1e3)"),
        (["--epsilon", "0"], "epsilon=0 is not a positive number"),
        (["--epsilon", "-1"], "epsilon=-1"),
        (["--epsilon", "nan"], "epsilon=nan"),
        (["--epsilon", "inf"], "epsilon=inf"),
        (["--epsilon", "1e9"], "epsilon=1e+09 is above"),
        (["--delta", "0"], "delta=0 is not in (0, 1)"),
        (["--delta", "1"], "delta=1 is not in (0, 1)"),
        (["--delta", "1e-300"], "delta=1e-300 is below"),
        (["--set", "num_steps=0"], "num_steps=0 is below 1"),
        (["--set", "num_steps=-3"], "num_steps=-3 is below 1"),
        (["--set", "num_steps=10000000000000"], "num_steps='10000000000000' does not fit"),
        (["--set", "num_steps=2.5"], "num_steps='2.5' does not fit"),
        (["--set", "expected_batch_size=0"], "expected_batch_size=0 is below 1"),
        (["--set", "expected_batch_size=201"], "expected_batch_size=201 exceeds the 200 records"),
        (["--set", "noise_multiplier=0"], "noise_multiplier='0' does not fit"),
        (["--set", "noise_multiplier=nan"], "noise_multiplier='nan' does not fit: input should be a finite number"),
        (["--set", "noise_multiplier=0.001"], "noise_multiplier=0.001 is not in"),
        (["--set", "class_moments.budget_share=1"], "class_moments.budget_share='1' does not fit"),
        (["--set", "class_moments.budget_share=-0.1"], "class_moments.budget_share='-0.1' does not fit"),
        (["--set", "class_moments.budget_share=0.99"], "which leaves none for training; give a smaller budget_share"),
        (["--set", "class_counts.budget_share=0"], "leaves nothing for the histogram; declare class_counts.prior"),
        (["--set", "mode=batch", "--set", "batch_steps.queries_per_step=0"], "queries_per_step='0' does not fit"),
    ],
)
def test_a_bad_number_is_one_line_and_nothing_is_left(refused, data, tmp_path, words, told):
    """For `plan` and `train`, on 200 records."""
    records = [] if words[0] == "--num-records" else ["--num-records", 200]
    assert told in refused("plan", *records, *words)
    if records:
        assert told in refused("train", data, "--out", tmp_path / "run", *words)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_classifier")
def test_a_run_is_trained_sampled_evaluated_and_verified(run, data, tmp_path):
    code, out, err = run("train", data, "--out", tmp_path / "run", *FAST_ARGUMENTS, "--json")
    facts = json.loads(out)
    assert code == 0
    assert {"run", "release", "epsilon", "delta", "seconds", "peak_memory_bytes"} <= set(facts)
    assert 9.9 <= facts["epsilon"] <= 10
    assert "12/12" in err
    assert "ε spent" in err

    release = facts["release"]
    code, out, _ = run("sample", release, "--num", 41, "--out", tmp_path / "s.npz", "--json")
    assert code == 0
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert arrays["images"].shape == (41, 9, 12, 3)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].shape == (41,)
        assert arrays["labels"].dtype == np.int64
        assert set(arrays["labels"]) == {0, 1}

    code, out, _ = run("evaluate", tmp_path / "s.npz", "--real", data, "--out", tmp_path / "evaluation", "--json")
    scores = json.loads(out)
    assert code == 0
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text()) == scores
    for kind in ("tstr", "trtr"):
        assert set(scores[kind]) == {"logreg", "mlp", "cnn", "boosting"}
        for values in scores[kind].values():
            assert {"accuracy", "balanced_accuracy", "macro_f1"} <= set(values)
    assert scores["trtr"]["logreg"]["accuracy"] == 1.0

    code, out, _ = run("verify", release, "--json")
    checked = json.loads(out)
    assert code == 0
    assert {"ok", "private", "epsilon_card", "epsilon_pld", "epsilon_rdp", "problems"} <= set(checked)
    assert checked["ok"]
    assert 0.001 < checked["tpr_at_fpr_0_1_percent"] < checked["tpr_at_fpr_1_percent"] < 1.0
    assert checked["tradeoff_curve"][-1] == [1.0, 1.0]
    assert checked["epsilon_card"] == pytest.approx(facts["epsilon"])


def test_a_dry_run_prints_the_run_and_writes_nothing(run, data, tmp_path):
    large = ("--delta", "0.01", "--allow-large-delta")
    code, out, err = run("train", data, "--out", tmp_path / "run", "--dry-run", *large, *NOISY)
    assert code == 0
    assert "noise_multiplier" in out
    assert "delta=0.01 is not below 1/200" in err
    assert "ms a step on this machine" in out
    assert list(tmp_path.iterdir()) == []


def test_options_override_a_recipe_and_none_restores_defaults(run, data, tmp_path, timed):
    recipe = tmp_path / "recipe.toml"
    chosen = 'target_epsilon = 3.0\nnum_steps = 7\nnoise_multiplier = 200\ngenerator = "mlp"\nwidth = 9\n'
    recipe.write_text(chosen + 'warmup = 0.5\nschedule = "constant"\n')
    dry = ("train", data, "--out", tmp_path / "r", "--dry-run", "--json", "--recipe", recipe)
    code, out, _ = run(*dry, "--epsilon", 2)
    facts = json.loads(out)
    assert code == 0
    assert facts["settings"]["target_epsilon"] == 2.0
    assert facts["plan"]["num_steps"] == 7
    assert facts["generator"]["name"] == "mlp"
    # "none" restores the default, also if it is a number.
    taken = ("--set", "warmup=none", "--set", "schedule=none", "--set", "width=none")
    code, out, _ = run(*dry, *taken)
    facts = json.loads(out)
    assert code == 0
    assert (facts["settings"]["warmup"], facts["settings"]["schedule"]) == (0.05, "cosine")
    assert facts["settings"]["width"] is None
    assert facts["generator"]["width"] > 9


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", ("(default: 10)", "(default: 1e-5)")),
        ("report", ("(default: RUN/report.html",)),
        ("verify", ("(default: that of RUN)",)),
    ],
)
def test_help_shows_defaults(run, monkeypatch, verb, words):
    """In parentheses: square brackets in a help text are markup and would not be shown."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    code, out, _ = run(verb, "--help")
    assert code == 0
    for word in words:
        assert word in out


def test_resume_of_a_finished_run_prints_the_same_summary(run, data, finished):
    code, out, _ = run("train", data, "--out", finished, "--resume", "--json")
    card = json.loads((finished / "release" / "card.json").read_text())
    assert code == 0
    assert json.loads(out)["epsilon"] == card["epsilon"]


def suggested(out: str) -> list[list[str]]:
    """The commands that an output ends with, without the program's name."""
    return [shlex.split(line)[1:] for line in out.partition("\nNext:\n")[2].splitlines()]


def test_the_end_of_train_is_one_screen_and_its_commands_work(run, data, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", data, "--out", finished, "--resume")
    card = json.loads((finished / "release" / "card.json").read_text())
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) < 20
    assert f"on {data}: 200 images of 9x12 pixels, RGB, in 2 classes (0, 1)." in out
    assert f"ε = {card['epsilon']:.6g} at δ = {card['delta']:g}." in out
    assert f"You may hand out    {finished / 'release'}, and everything that you sample from it" in lines
    assert f"Keep to yourself    {finished / 'private'}" in lines
    sample, evaluate, report = suggested(out)
    code, out, err = run(*sample)
    assert (code, err) == (0, "")
    assert out.startswith("1,000 images are in synthetic.npz. You may hand them out: ")
    assert suggested(out) == [["DATA" if word == str(data) else word for word in evaluate]]
    judged = []
    monkeypatch.setattr("dp_sinkhorn.evaluation.suite.evaluate", lambda *parts, **more: judged.append(parts) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*evaluate, "--extractor", "none")
    assert report == ["report", str(finished), "--curator", "--evaluation", "evaluation"]


def test_a_large_delta_is_warned_of_at_the_end_and_with_samples(run, data, tmp_path):
    code, out, err = run("train", data, "--out", tmp_path / "run", *NOISY, "--delta", 0.01, "--allow-large-delta")
    assert code == 0, err
    assert "Warning: delta=0.01 is not below 1/200" in out
    assert (
        "delta=0.01 is not below 1/200" in run("sample", tmp_path / "run", "--num", 2, "--out", tmp_path / "s.npz")[2]
    )


def test_a_run_that_is_not_private_says_so_and_names_nothing_to_hand_out(run, data, tmp_path):
    code, out, err = run("train", data, "--out", tmp_path / "run", *NOISY, "--set", "test_seed=1")
    assert code == 0, err
    assert "NOT PRIVATE" in out
    assert "hand out" not in out


def test_sample_needs_only_the_release_and_a_seed_repeats_images(run, finished, tmp_path):
    shutil.copytree(finished / "release", tmp_path / "release")
    for name in ("a", "b"):
        assert run("sample", tmp_path / "release", "--num", 10, "--out", tmp_path / f"{name}.npz", "--seed", 3)[0] == 0
    first, second = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("a", "b"))
    np.testing.assert_array_equal(first, second)


def test_sample_writes_chosen_labels_folders_and_grids(run, finished, tmp_path):
    assert run("sample", finished, "--num", 10, "--out", tmp_path / "folder", "--labels", "1")[0] == 0
    files = sorted(path.relative_to(tmp_path / "folder").parts[0] for path in (tmp_path / "folder").rglob("*.png"))
    assert files == ["1"] * 10
    balanced = tmp_path / "balanced.npz"
    assert run("sample", finished, "--num", 11, "--out", balanced, "--balanced")[0] == 0
    assert sorted(np.bincount(np.load(balanced)["labels"]).tolist()) == [5, 6]
    balanced.unlink()
    assert run("sample", finished, "--num", 200, "--out", tmp_path / "grid.png")[0] == 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.mode == "RGB"
        assert grid.width == 20 * 13 * 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "grid.png"]


@pytest.mark.parametrize("options", [(), ("--relabel",), ("--probabilities",), ("--relabel", "--probabilities")])
def test_sample_writes_labels_and_probabilities_of_the_classifier(run, tmp_path, options):
    """This classifier has learnt nothing: it finds the larger class in every image, with its share as probability."""
    release = make_run(tmp_path / "run", **RECORD) / "release"
    assert run("sample", release, "--num", 40, "--out", tmp_path / "s.npz", *options)[0] == 0
    with np.load(tmp_path / "s.npz") as found:
        assert np.bincount(found["labels"]).tolist() == ([0, 40] if "--relabel" in options else [10, 30])
        assert ("probabilities" in found) is ("--probabilities" in options)
        if "--probabilities" in options:
            np.testing.assert_allclose(found["probabilities"], [[0.25, 0.75]] * 40, rtol=1e-6)


def test_parquet_is_written_evaluated_and_trained_on(run, data, finished, tmp_path, monkeypatch, timed):
    assert run("sample", finished, "--num", 60, "--out", tmp_path / "s.parquet")[0] == 0
    judged = []
    monkeypatch.setattr("dp_sinkhorn.evaluation.suite.evaluate", lambda *parts, **more: judged.append(parts) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("evaluate", tmp_path / "s.parquet", "--real", data, "--json", "--extractor", "none")
    assert [len(part) for part in judged[0][:3]] == [60, 200, 40]
    out = run("train", tmp_path / "s.parquet", "--out", tmp_path / "r", "--dry-run", "--json", *NOISY)[1]
    assert json.loads(out)["data"]["num_records"] == 60


def test_tensorboard_gets_public_facts_and_pictures(run, refused, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, board = tmp_path / "run", tmp_path / "board"
    assert "lies in the run's folder" in refused("train", data, "--out", out, "--tensorboard", out / "board")
    assert "cannot write --tensorboard /proc/board" in refused(
        "train", data, "--out", out, "--tensorboard", "/proc/board"
    )
    assert "num_steps=0" in refused("train", data, "--out", out, "--tensorboard", board, "--set", "num_steps=0")
    assert list(tmp_path.iterdir()) == []
    code, _, err = run("train", data, "--out", out, *FAST_ARGUMENTS, "--tensorboard", board)
    assert code == 0, err
    events = EventAccumulator(str(board))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"epsilon", "field_rms", "steps_per_second"}
    assert [entry.step for entry in events.Scalars("epsilon")] == list(range(1, 13))
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert events.Scalars("epsilon")[-1].value == pytest.approx(metrics[-1]["epsilon"])
    assert events.Scalars("field_rms")[-1].value == pytest.approx(metrics[-1]["field_rms"])
    pictures = {path.name for path in (out / "samples").iterdir()}
    assert {f"step-{entry.step:05d}.png" for entry in events.Images("samples")} <= pictures
    assert events.Images("samples")[-1].step == 12


def test_without_tensorboard_one_line_says_what_to_install(refused, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    line = refused("train", data, "--out", tmp_path / "run", "--tensorboard", tmp_path / "board")
    assert "pip install -c constraints.txt '.[tensorboard]'" in line
    assert list(tmp_path.iterdir()) == []


def test_every_verb_warns_of_a_test_seed(run, data, tmp_path):
    code, out, _ = run("train", data, "--out", tmp_path / "run", *FAST_ARGUMENTS, "--set", "test_seed=1")
    assert code == 0
    assert "NOT PRIVATE" in out
    code, _, err = run("sample", tmp_path / "run", "--num", 5, "--out", tmp_path / "s.npz", "--json")
    assert code == 0
    assert "NOT PRIVATE" in err
    code, out, _ = run("verify", tmp_path / "run")
    assert code == 2
    assert "NOT PRIVATE" in out


def test_training_prints_the_card_s_warnings_once(run, data, tmp_path):
    hiding = ("--epsilon", "0.3", "--delta", "0.01", "--allow-large-delta", "--set", "class_counts.prior=0.97,0.03")
    code, _, err = run("train", data, "--out", tmp_path / "run", *FAST_ARGUMENTS, *hiding)
    assert code == 0
    told = [line.removeprefix("warning: ") for line in err.splitlines() if line.startswith("warning")]
    card = json.loads((tmp_path / "run" / "release" / "card.json").read_text())
    assert told == card["warnings"]
    assert [line[:14] for line in told] == ["delta=0.01 is ", "200 records ar", "too few record"]


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize("delta", ["0.005", "0.1"])
def test_a_delta_of_1_over_n_or_more_stops_before_anything(run, data, tmp_path, verb, delta):
    given = (data, "--out", tmp_path / "run") if verb == "train" else ("--num-records", 200)
    code, out, err = run(verb, *given, "--delta", delta)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: delta={delta} is not below 1/200")
    assert "give a delta well below 5.0e-03, or --allow-large-delta" in err
    assert not (tmp_path / "run").exists()


def test_a_budget_is_a_line_for_each_run_and_one_for_all(run, tmp_path):
    runs = [make_run(tmp_path / name, run=name * 32, **RECORD) for name in "ab"]
    code, out, err = run("budget", *runs)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == [*map(str, runs), "together"]
    code, out, _ = run("budget", *runs, "--delta", 1e-6, "--json")
    facts = json.loads(out)
    assert (code, facts["delta"], len(facts["runs"])) == (0, 1e-6, 2)
    assert facts["runs"][0]["epsilon"] < facts["epsilon"]
    code, _, err = run("budget", runs[0], runs[0])
    assert code == 2
    assert "are one run" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "class_counts.prior=0.5,0.4", *NOISY], "class_counts.prior=0.5,0.4"),
        (
            ["--set", "class_counts.prior=many"],
            "class_counts.prior='many' does not fit: input should be 'histogram' or 'uniform'",
        ),
        (["--set", "class_counts.prior=0,1"], "class_counts.prior='0' does not fit: input should be greater than 0"),
        (
            ["--set", "batch_steps.queries_per_step=4"],
            "error: batch_steps.queries_per_step would have no effect: mode=",
        ),
        (["--set", "class_moments.speed=fast"], "unknown setting 'class_moments.speed'"),
        (["--set", "class_moments=fast"], "class_moments='fast' is a stage, not a setting"),
        (["--epsilon", "abc"], "(given: abc); see dp-sinkhorn train --help"),
        (["--epsilon=abc"], "(given: abc); see dp-sinkhorn train --help"),
        (["--set", "learning_rate=-1"], "learning_rate='-1'"),
        (["--set", "speed=fast"], "unknown setting 'speed'"),
        (["--set", "num_steps"], "'num_steps' is not key=value"),
        (["--recipe", "nowhere.toml"], "cannot read nowhere.toml"),
        (["--set", "device=warp", *NOISY], "device='warp'"),
        (["--resume"], "holds no run to resume"),
        (["--resume", "--dry-run"], "--dry-run and --resume exclude each other"),
        (["--wrong"], "--wrong"),
    ],
)
def test_train_refuses_bad_options_and_leaves_nothing(refused, data, tmp_path, arguments, words):
    assert words in refused("train", data, "--out", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_train_refuses_bad_data(refused, tmp_path):
    out = ("--out", tmp_path / "run")
    assert "nowhere" in refused("train", tmp_path / "nowhere", *out)
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("train", tmp_path / "empty", *out)
    (tmp_path / "idx").mkdir()
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        with gzip.open(tmp_path / "idx" / name, "wb") as file:
            file.write(b"\0\0\x08\x03")
    assert "idx" in refused("train", tmp_path / "idx", *out)
    np.savez(tmp_path / "nan.npz", train_images=np.full((20, 8, 8), np.nan), train_labels=np.zeros(20, int))
    assert "nan" in refused("train", tmp_path / "nan.npz", *out).lower()
    np.savez(tmp_path / "mismatch.npz", train_images=np.zeros((20, 8, 8), np.uint8), train_labels=np.zeros(19, int))
    told = refused("train", tmp_path / "mismatch.npz", *out)
    assert "mismatch.npz, train split: 19 labels" in told
    (tmp_path / "sizes").mkdir()
    for index, side in enumerate((8, 9)):
        Image.new("L", (side, side)).save(tmp_path / "sizes" / f"{index}.png")
    assert "--side 32" in refused("train", tmp_path / "sizes", *out)
    assert not (tmp_path / "run").exists()


def test_train_refuses_an_existing_folder_and_keeps_it(refused, data, finished):
    before = (finished / "ledger.jsonl").read_bytes()
    assert "exists already" in refused("train", data, "--out", finished)
    assert (finished / "ledger.jsonl").read_bytes() == before


def test_train_refuses_a_folder_that_cannot_be_written(refused, data):
    assert "cannot write /proc/run" in refused("train", data, "--out", "/proc/run")


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(refused, data, tmp_path, monkeypatch):
    """A limit on file sizes replaces the full disk: the checkpoint does not fit, the ledger does."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        line = refused("train", data, "--out", "run", *FAST_ARGUMENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot write run: File too large; make room, then start a new run" in line
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert not (tmp_path / "run" / "release").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_continue_and_continues(run, data, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        Asking(patch, at=5, what=signalled(number))
        code, out, err = run("train", data, "--out", tmp_path / "run", *FAST_ARGUMENTS)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "error: interrupted; continue with train --resume"
    assert run("train", data, "--out", tmp_path / "run", "--resume")[0] == 0


def test_an_interruption_before_the_first_charge_leaves_nothing(run, data, tmp_path, monkeypatch):
    def interrupt(*args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop, "build_generator", interrupt)
    code, _, err = run("train", data, "--out", tmp_path / "run", *FAST_ARGUMENTS)
    assert code == 130
    assert err.splitlines()[-1] == "error: interrupted; start it again (nothing was spent)"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_sampling_leaves_nothing(run, finished, tmp_path, monkeypatch, number):
    monkeypatch.setattr("dp_sinkhorn.sampling.draw.to_pixels", lambda images: signal.raise_signal(number))
    # A shell starts background processes with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, out, err = run("sample", finished, "--num", 5, "--out", tmp_path / "folder")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out, err) == (130, "", "error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_sample_refuses_bad_input(refused, finished, tmp_path):
    out = tmp_path / "s.npz"
    assert "num=0" in refused("sample", finished, "--num", 0, "--out", out)
    assert "seed=-1 is not in 0.." in refused("sample", finished, "--num", 5, "--out", out, "--seed", -1)
    for wrong, word in (("0,2", "2"), ("a,b", "a"), ("", "")):
        told = f"label '{word}' is no class of this release; its classes are 0, 1"
        assert told in refused("sample", finished, "--num", 5, "--out", out, "--labels", wrong)
    assert "'.jpg'" in refused("sample", finished, "--num", 5, "--out", tmp_path / "s.jpg")
    assert "does not exist" in refused("sample", finished, "--num", 5, "--out", tmp_path / "no" / "s.npz")
    assert "neither a run nor a release" in refused("sample", tmp_path, "--num", 5, "--out", out)
    assert "holds no classifier" in refused("sample", finished, "--num", 5, "--out", out, "--relabel")
    grid = tmp_path / "grid.png"
    assert "an .npz or .parquet file" in refused("sample", finished, "--num", 4, "--out", grid, "--probabilities")
    out.write_bytes(b"kept")
    assert "exists already" in refused("sample", finished, "--num", 5, "--out", out)
    assert out.read_bytes() == b"kept"


def test_a_tampered_release_is_refused_or_reported(run, refused, finished, tmp_path):
    release = tmp_path / "release"
    shutil.copytree(finished / "release", release)
    card = json.loads((release / "card.json").read_text())
    (release / "card.json").write_text(json.dumps({**card, "epsilon": 1.0}))
    code, out, _ = run("verify", release)
    assert code == 2
    assert "the card claims epsilon 1" in out
    (release / "card.json").write_text(json.dumps({**card, "num_steps": 3}))
    assert "claims 3 noisy queries" in run("verify", release)[1]
    (release / "card.json").write_text(json.dumps(card))
    weights = bytearray((release / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (release / "weights.safetensors").write_bytes(weights)
    assert "SHA-256 differs" in run("verify", release)[1]
    assert "SHA-256 differs" in refused("sample", release, "--num", 5, "--out", tmp_path / "s.npz")
    (release / "card.json").write_text("{}")
    assert "not a valid card" in refused("sample", release, "--num", 5, "--out", tmp_path / "s.npz")


def test_sign_and_verify_with_keys(run, refused, finished, tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, locked = Ed25519PrivateKey.generate(), pem.BestAvailableEncryption(b"sesame")
    private, public, folder = tmp_path / "private.pem", tmp_path / "public.pem", tmp_path / "run"
    private.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, locked))
    private.chmod(0o644)
    public.write_bytes(key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))
    shutil.copytree(finished, folder)

    monkeypatch.delenv("DP_SINKHORN_KEY_PASSPHRASE", raising=False)
    assert "is encrypted" in refused("sign", folder, "--key", private)
    assert "not a private key" in refused("sign", folder, "--key", public)
    assert "nowhere.pem does not exist" in refused("sign", folder, "--key", tmp_path / "nowhere.pem")
    monkeypatch.setenv("DP_SINKHORN_KEY_PASSPHRASE", "sesame")
    code, out, err = run("sign", folder, "--key", private, "--json")
    assert code == 0
    assert set(json.loads(out)) == {"signature", "public_key_sha256"}
    assert "has mode 644" in err
    before = (folder / "release" / "card.sig").read_bytes()

    assert "signed, not checked: give --public-key" in run("verify", folder)[1]
    code, out, _ = run("verify", folder, "--public-key", public)
    assert code == 0
    assert "ledger     the run's ledger holds exactly the card's charges" in out
    assert "signature  valid" in out
    ledger = ("--ledger", folder / "ledger.jsonl")
    code, out, _ = run("verify", folder / "release", *ledger, "--public-key", public, "--json")
    assert (json.loads(out)["ledger"], json.loads(out)["signature"]) == ("equal", "valid")
    assert "not a public key" in refused("verify", folder, "--public-key", private)
    assert "is not a file" in refused("verify", folder, "--ledger", tmp_path / "nowhere.jsonl")
    assert run("train", data_of(folder), "--out", folder, "--resume")[0] == 0
    assert (folder / "release" / "card.sig").read_bytes() == before


def data_of(folder: Path) -> str:
    """The data that a run was trained on."""
    return str(tomllib.loads((folder / "config.toml").read_text())["data"]["source"])


def test_evaluate_refuses_bad_data(refused, data, tmp_path):
    np.savez(tmp_path / "small.npz", images=np.full((10, 8, 8), 99, np.uint8), labels=np.arange(10) % 2)
    assert "is not square (12x9 pixels)" in refused("evaluate", tmp_path / "small.npz", "--real", data)
    line = refused("evaluate", tmp_path / "small.npz", "--real", data, "--stretch")
    assert "synthetic images are 1x8x8, real test images 3x8x8" in line
    assert "nowhere.npz" in refused("evaluate", tmp_path / "nowhere.npz", "--real", data)
    bare = {"train_images": np.full((10, 8, 8), 99, np.uint8), "train_labels": np.arange(10) % 2}
    np.savez(tmp_path / "train_only.npz", **bare)
    assert "no test split" in refused("evaluate", tmp_path / "small.npz", "--real", tmp_path / "train_only.npz")


@pytest.fixture
def one_classifier(monkeypatch):
    """Evaluation with the quickest classifier in place of all; the others have their own tests."""
    monkeypatch.setattr("dp_sinkhorn.evaluation.tstr.CLASSIFIERS", dict.fromkeys(CLASSIFIERS, CLASSIFIERS["logreg"]))


@pytest.fixture(scope="module")
def synthetic(data, tmp_path_factory) -> Path:
    """Synthetic images that resemble the data: its own training images, brightened."""
    path = tmp_path_factory.mktemp("synthetic") / "s.npz"
    with np.load(data) as arrays:
        np.savez(path, images=arrays["train_images"][:40] + 10, labels=arrays["train_labels"][:40])
    return path


@pytest.mark.usefixtures("one_classifier")
def test_evaluate_compares_with_training_records_only_on_request(run, data, finished, synthetic):
    quick = ("evaluate", synthetic, "--real", data, "--extractor", "none", "--json")
    code, out, err = run(*quick)
    assert code == 0
    assert "warning: no Fréchet or kernel distance" in err
    assert json.loads(out)["memorisation"] is None
    code, out, _ = run(*quick, "--memorisation", "--release", finished)
    found = json.loads(out)["memorisation"]
    card = json.loads((finished / "release" / "card.json").read_text())
    assert code == 0
    assert found["private"] is True
    bound = found["bound"]
    assert (bound["epsilon"], bound["delta"]) == (card["epsilon"], card["delta"])
    # `evaluate` and `verify` give the same bound on attacks.
    most = json.loads(run("verify", finished, "--json")[1])
    assert bound["tpr_at_fpr"] == {"0.01": most["tpr_at_fpr_1_percent"], "0.001": most["tpr_at_fpr_0_1_percent"]}
    curve = np.array(most["tradeoff_curve"])
    assert bound["auc"] == pytest.approx(np.trapezoid(curve[:, 1], curve[:, 0]), abs=0.01)


@pytest.mark.usefixtures("one_classifier")
def test_evaluate_caches_statistics_of_real_images(run, data, synthetic, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the eval extra is not installed")
    arguments = ("evaluate", synthetic, "--real", data, "--cache", tmp_path / "cache")
    first = json.loads(run(*arguments, "--features", 12, "--json")[1])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(kept) == 2
    code, out, _ = run(*arguments, "--features", 12)
    assert code == 0
    assert "Features of efficientnet-lite0-1280" in out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == kept
    assert (first["frechet"]["num_synthetic"], first["frechet"]["num_real"]) == (12, 12)
    assert first["frechet"]["extractor"] == "efficientnet-lite0-1280"
    assert first["frechet"]["is_fid"] is False
    assert any("12 images a sample are fewer than needed" in line for line in first["warnings"])


def test_evaluate_refuses_bad_options(refused, data, finished, synthetic, tmp_path):
    evaluate = ("evaluate", synthetic, "--real", data)
    assert "'vgg' is not known; give efficientnet-lite0" in refused(*evaluate, "--extractor", "vgg")
    assert "gone.pth: No such file" in refused(*evaluate, "--extractor", f"inception:{tmp_path / 'gone.pth'}")
    assert "features=0 is too few" in refused(*evaluate, "--extractor", "none", "--features", 0)
    assert "add --memorisation" in refused(*evaluate, "--release", finished)
    assert "handed out" in refused(*evaluate, "--out", finished / "release" / "evaluation")
    card = json.loads((finished / "release" / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "num_records": 7}))
    line = refused(*evaluate, "--extractor", "none", "--memorisation", "--release", tmp_path)
    assert "was trained on 7 records, the training split has 200" in line
    with np.load(data) as arrays:
        changed = dict(arrays)
    changed["test_labels"] = np.zeros_like(changed["test_labels"])
    np.savez(tmp_path / "one.npz", **changed)
    line = refused("evaluate", synthetic, "--real", tmp_path / "one.npz", "--extractor", "none")
    assert "all 40 test images are of class '0'" in line


def test_whole_batches_train_release_and_verify(run, data, tmp_path):
    words = pairs(LEAN["batch"] | {"num_steps": 6, "noise_multiplier": 2})
    code, out, err = run("train", data, "--out", tmp_path / "run", *words, "--json")
    assert code == 0, err
    facts = json.loads(out)
    card = json.loads((Path(facts["release"]) / "card.json").read_text())
    assert (card["mode"], card["queries_per_step"]) == ("batch", 2)
    assert card["sensitivity"] == 2.0 * card["clip_norm"]
    assert {charge["name"]: charge.get("count", 1) for charge in card["charges"]} == {"batch_steps": 12}
    code, out, _ = run("verify", facts["release"], "--json")
    assert code == 0
    assert json.loads(out)["epsilon_card"] == pytest.approx(facts["epsilon"])
    code, _, _ = run("sample", facts["release"], "--num", 5, "--out", tmp_path / "s.npz")
    assert code == 0


@pytest.mark.parametrize("name", ["mnist_paper", "fashion_mnist_paper", "celeba_paper"])
def test_a_dry_run_of_a_recipe_shows_steps_epsilon_and_time(run, data, tmp_path, timed, name):
    code, out, err = run(
        *("train", data, "--out", tmp_path / "run", "--recipe", name, "--dry-run", "--json"),
        *("--set", "expected_batch_size=20", "--set", "noise_multiplier=3", "--set", "channels=8"),
        *("--side", 32, "--stretch"),
    )
    assert code == 0, err
    facts = json.loads(out)
    assert 9.0 < facts["estimate"]["epsilon_pld"] <= 10.0
    assert facts["estimate"]["num_steps"] > 100
    assert facts["estimate"]["seconds"] == pytest.approx(1.0 + 0.1 * facts["estimate"]["num_steps"])
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_and_another_mode_s_setting_are_refused(refused, data, tmp_path):
    line = refused("train", data, "--out", tmp_path / "run", "--recipe", "cifar_paper")
    assert "cifar_paper" in line
    assert "mnist_paper" in line
    line = refused("plan", "--num-records", 60000, "--recipe", "mnist_paper", "--set", "mode=record")
    assert "batch_steps." in line
    assert "mode='record' does not use them" in line
    assert "leave them out (KEY=none removes a recipe's value)" in line
    assert not (tmp_path / "run").exists()
