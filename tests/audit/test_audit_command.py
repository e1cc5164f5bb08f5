"""`dp-sinkhorn audit` on the command line."""

import json

import numpy as np
import pytest

from dp_sinkhorn.audit import audit
from dp_sinkhorn.audit.checks import Check
from dp_sinkhorn.audit.neighbouring import Violation
from dp_sinkhorn.audit.query_audit import QueryAudit, TradeOff
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.settings import DataFacts
from support import planted

SETTINGS = [
    *("generator=mlp", "width=16", "num_steps=20", "num_generated=20"),
    *("transport_steps.num_reference=20", "principal_subspace.min_dimensions=4"),
    *("class_counts.prior=uniform", "expected_batch_size=30", "mode=record"),
]
SET = [part for pair in SETTINGS for part in ("--set", pair)]
LITTLE = ["--draws", "100", "--steps", "10", "--canaries", "60"]


def test_an_audit_needs_no_records_and_leaves_the_run_unchanged(command_line, tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (60, 8, 8), dtype=np.uint8), np.arange(60) % 2
    data, folder = tmp_path / "data.npz", tmp_path / "run"
    np.savez(data, train_images=images, train_labels=labels)
    assert command_line("train", data, "--out", folder, *SET)[0] == 0
    data.unlink()
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    code, out, err = command_line("audit", folder, *LITTLE, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["passed"]
    assert all(check["ok"] for check in result["checks"])
    assert result["checks"][0]["name"] == "card"
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*")) == before
    assert result["epsilon_claimed"] == json.loads((folder / "release" / "card.json").read_text())["epsilon"]
    assert 0.0 < result["epsilon_lower_bound"] <= result["epsilon_claimed"]
    assert result["epsilon_lower_bound"] == max(result["epsilon_from_step"], result["epsilon_from_canaries"])


def test_a_bug_of_the_embedding_fails_only_its_own_checks(command_line, tmp_path, monkeypatch):
    """In a run that also has transport steps."""
    planted.features_not_bounded(monkeypatch)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("target_epsilon = 20.0\n[class_embedding]\nbudget_share = 0.2\nnum_frequencies = 50\n")
    code, out, _ = command_line("audit", "--recipe", recipe, *SET, *LITTLE, "--json")
    assert code == 2
    checks = {check["name"]: check["ok"] for check in json.loads(out)["checks"]}
    assert {name for name, ok in checks.items() if not ok} == {"class embedding: sensitivity"}
    assert {"transport steps, first: trade-off", "class embedding: noise", "only the answers"} <= checks.keys()


@pytest.mark.parametrize("found", [1e9, 1e300])
def test_noise_above_the_accountant_s_limit_gives_no_bound(monkeypatch, found):
    """The audit of the step reports the problem itself."""
    trade_off = TradeOff(noise_multiplier=(1e3, found), epsilon=0.0, epsilon_claimed=1.0)
    failed = Check("trade-off", ok=False, finding="more noise than claimed")
    monkeypatch.setattr(audit, "audit_query", lambda *_: QueryAudit((failed,), trade_off))
    monkeypatch.setattr(audit, "check_fresh_randomness", lambda *_: "")
    monkeypatch.setattr(audit, "audit_canaries", lambda *_: (_ for _ in ()).throw(Violation("left out")))
    settings = settings_of(None, {"num_steps": 20, "mode": "record"})
    result = audit.audit_settings(settings, audit.Effort(), 0, lambda _: None, STAGES)
    assert not result.passed
    assert result.epsilon_lower_bound == 0.0


def test_an_audit_uses_the_device_of_this_machine(monkeypatch, tmp_path):
    facts = DataFacts(source="none", num_records=200, shape=(1, 8, 8), class_names=("0", "1"))
    config = resolve(settings_of(None, {"num_steps": 20}), facts)
    there = config.model_copy(update={"device": "cuda:99"})
    (tmp_path / "config.toml").write_text(there.to_toml())
    monkeypatch.setattr(audit, "_audit", lambda config, *_: config.device)
    assert audit.audit_run(tmp_path, audit.Effort(), 0, lambda _: None, STAGES) == config.device


def test_a_recipe_with_a_fixed_seed_fails_the_audit(command_line, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('mode = "batch"\nnoise_multiplier = 2.0\ntest_seed = 1\n[batch_steps]\nqueries_per_step = 2\n')
    few = [*SET[:6], "--set", "num_generated=8", "--set", "batch_steps.sinkhorn_iterations=5"]
    code, out, err = command_line("audit", "--recipe", recipe, *few, *LITTLE)
    assert code == 2, err
    lines = out.splitlines()
    failed = [line for line in lines if "FAILED  " in line]
    assert len(failed) == 1
    assert failed[0].startswith("fresh randomness")
    assert "a seed is fixed" in failed[0]
    assert sum("  ok  " in line for line in lines) == 12
    assert "FAILED: the claim is contradicted" in lines
    assert "read no private record" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either a run folder or --recipe"),
        ([".", "--recipe", "mnist_paper"], "either a run folder or --recipe"),
        (["somewhere"], "somewhere does not exist"),
        (["."], ". holds no run"),
        ([".", "--set", "num_steps=3"], "--set num_steps=3"),
        (["--recipe", "nowhere.toml"], "cannot read nowhere.toml"),
        (["--recipe", "mnist_paper", "--draws", "5"], "draws=5 is too few"),
        (["--recipe", "mnist_paper", "--canaries", "0"], "canaries=0 is too few"),
        (["--recipe", "mnist_paper", "--steps", "0"], "steps=0 is too few"),
    ],
)
def test_bad_input_is_one_line(command_line, arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = command_line("audit", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert len(err.splitlines()) == 1
