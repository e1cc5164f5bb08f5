"""One thread, and checked annotations, while the tests run."""

import os
import sys

import pytest
from jaxtyping import install_import_hook

# Read when PyTorch is loaded. The tests' tensors are tiny: threads would only wait for each other, and on a busy
# machine for a long time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Shapes and dtypes in the annotations of these packages are checked, in tests only.
CHECKED = ("generators", "privacy", "stages", "training", "transport")

install_import_hook([f"dp_sinkhorn.{name}" for name in CHECKED], "beartype.beartype")


def pytest_ignore_collect(collection_path, config):
    """With `-m quick` leave alone the files without a quick test: importing them takes longer than such tests."""
    if config.option.markexpr == "quick" and collection_path.match("test_*.py"):
        return "mark.quick" not in collection_path.read_text(encoding="utf-8") or None
    return None


# How many steps a run takes when it finishes, and of its own images it looks at: they cost time only, and decide on
# quality.
FEW = {
    "class_moments": {"_IMAGES": 400, "_MIN_PER_CLASS": 100},
    "label_classifier": {"_IMAGES": 400, "_EPOCHS": 2},
    "fine_tuning": {"_STEPS": 4, "_EMBEDDING_STEPS": 4, "_IMAGES": 20, "_OWN_IMAGES": 200, "_LEAST_OWN": 50},
}
NOT_THERE = {"stages", "estimators", "generators", "test_claims.py", "test_method.py"}


@pytest.fixture(autouse=True, scope="module")
def few_own_images(request):
    """Small runs finish in a moment, but where a test is about what finishing does."""
    if NOT_THERE & set(request.path.parts):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for stage, numbers in FEW.items():
            for name, number in numbers.items():
                patch.setattr(f"dp_sinkhorn.stages.{stage}.{name}", number)
        yield


@pytest.fixture(scope="module")
def rough_groups():
    """The ε of several records without its mixtures, which take seconds: for tests that only need some number."""
    from dp_sinkhorn.privacy.accounting import epsilon_pld

    def rough(charges, delta, records, whole_batches):
        return records * epsilon_pld(charges, delta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dp_sinkhorn.release.verify.epsilon_of_several", rough)
        yield


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from dp_sinkhorn import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dp-sinkhorn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture
def make_card():
    """Make a privacy card with some facts changed; it fits no weights."""
    from dp_sinkhorn.release.card import PrivacyCard

    facts = {
        "private": True,
        "epsilon": 9.987654321,
        "epsilon_rdp": 10.7,
        "delta": 1e-5,
        "neighboring_relation": "add_or_remove_one",
        "accountant": "an accountant",
        "mode": "record",
        "mechanism": "noise",
        "charges": (),
        "num_records": 1234,
        "num_steps": 20,
        "queries_per_step": 1,
        "sample_rate": 0.5,
        "expected_batch_size": 617,
        "noise_multiplier": 2.5,
        "clip_norm": 0.5,
        "sensitivity": 0.5,
        "class_prior": {"how": "declared", "shares": (0.5, 0.3, 0.2), "epsilon_alone": 0.0},
        "stages": ({"name": "transport_steps", "potential_iterations": 0},),
        "tuning": "not charged: none",
        "randomness": "the operating system",
        "treated_as_public": ("the number of records",),
        "warnings": (),
        "image_shape": (1, 8, 9),
        "class_names": ("cat", "dog", "emu"),
        "generator": {"name": "mlp", "latent_dim": 4, "width": 8, "channels": 8},
        "weights_sha256": "ab" * 32,
        "software": "dp-sinkhorn",
    }
    return lambda **changes: PrivacyCard.model_validate({**facts, **changes})
