"""The Python interface."""

import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dp_sinkhorn import DPSinkhorn, InputError
from dp_sinkhorn import api as synthesizer
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.sampling.draw import draw
from dp_sinkhorn.training import methods

FAST = {"num_steps": 12, "num_generated": 20, "num_reference": 20, "width": 16, "channels": 8, "min_dimensions": 4}


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (240, 8, 8), dtype=np.uint8)
    labels = np.arange(240) % 2
    images[labels == 1, :, 4:] += 150
    return images, labels


@pytest.fixture(scope="module")
def model(arrays) -> DPSinkhorn:
    return DPSinkhorn(epsilon=5, delta=1e-4, **FAST).fit(*arrays)


def test_fit_sample_and_card(model):
    images, labels = model.sample(31)
    assert images.shape == (31, 8, 8)
    assert images.dtype == np.uint8
    assert sorted(set(labels.tolist())) == [0, 1]
    assert 4.95 <= model.privacy_.epsilon <= 5.0
    assert model.privacy_.delta == 1e-4
    assert model.privacy_.private


def test_chosen_labels_and_shares(model):
    _, labels = model.sample(20, labels=[1])
    assert labels.tolist() == [1] * 20
    _, labels = model.sample(1000)
    expected = 1000 * np.array(model.privacy_.class_prior.shares)
    assert np.abs(np.bincount(labels) - expected).max() < 1


def test_shares_that_a_card_has_rounded_are_shared_out_whole(model):
    card, generator = model._model()
    rounded = card.class_prior.model_copy(update={"shares": (0.4995, 0.4995)})
    draws = draw(card.model_copy(update={"class_prior": rounded}), generator, 20_000)
    assert draws.counts.tolist() == [10_000, 10_000]


def test_save_and_load(model, tmp_path):
    model.save(tmp_path / "release")
    again = DPSinkhorn.load(tmp_path / "release")
    assert again.privacy_ == model.privacy_
    np.testing.assert_array_equal(again.sample(10, seed=4)[0], model.sample(10, seed=4)[0])
    with pytest.raises(InputError, match="exists already"):
        model.save(tmp_path / "release")


def test_a_release_is_saved_whole_or_not_at_all(model, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.save(tmp_path / "release")
    assert list(tmp_path.iterdir()) == []
    model.save(tmp_path / "release")


def test_evaluate(model, arrays):
    images, labels = arrays
    result = model.evaluate((images[:200], labels[:200]), (images[200:], labels[200:]), num=100)
    assert result.num_synthetic == 100
    assert result.trtr["logreg"].accuracy == 1.0


def test_evaluation_resizes_real_images_as_training_did(arrays):
    images, labels = arrays
    large = images.repeat(10, axis=1).repeat(10, axis=2)
    model = DPSinkhorn(epsilon=5, delta=1e-4, image_side=16, **FAST).fit(large, labels)
    result = model.evaluate((large[:200], labels[:200]), (large[200:], labels[200:]), num=50)
    assert result.num_test == 40
    assert result.trtr["logreg"].accuracy == 1.0


def test_a_run_that_is_cut_short_keeps_its_ledger_and_goes_on(arrays, tmp_path, monkeypatch):
    real, taken = methods.training_step, []

    def step(*args):
        if len(taken) == 5:
            signal.raise_signal(signal.SIGINT)
        taken.append(1)
        return real(*args)

    monkeypatch.setattr(methods, "training_step", step)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt) as stop:
        DPSinkhorn(**FAST).fit(*arrays)
    [folder] = tmp_path.iterdir()
    assert str(folder) in stop.value.__notes__[0]
    assert "ledger.jsonl says: go on with train --resume; here: give run_folder" in stop.value.__notes__[0]
    assert Ledger(folder / "ledger.jsonl").count("step") >= 6
    model = DPSinkhorn(**FAST).fit(*arrays, run_folder=folder, resume=True)
    assert len(taken) == 12
    assert model.privacy_.num_steps == 12
    assert verify(folder).ok
    with pytest.raises(InputError, match="epsilon=3"):
        DPSinkhorn(epsilon=3, **FAST).fit(*arrays, run_folder=folder, resume=True)
    with pytest.raises(InputError, match="give its run_folder"):
        DPSinkhorn(**FAST).fit(*arrays, resume=True)
    assert list(tmp_path.iterdir()) == [folder]


def test_what_is_known_of_a_budget_is_told_before_it_is_spent(arrays, monkeypatch):
    monkeypatch.setattr(synthesizer, "start", lambda *args: pytest.fail("training began"))
    with pytest.warns(UserWarning, match="delta=0.05 is not below 1/240"), pytest.raises(pytest.fail.Exception):
        DPSinkhorn(delta=0.05, **FAST).fit(*arrays)


def test_without_labels_it_is_unconditional(arrays):
    model = DPSinkhorn(**FAST).fit(arrays[0])
    assert model.privacy_.class_names == ("0",)
    assert model.sample(3)[1].tolist() == [0, 0, 0]


def test_floats_are_declared_to_lie_in_0_to_1(arrays):
    images, labels = arrays
    assert DPSinkhorn(**FAST).fit(images / 255.0, labels).sample(2)[0].dtype == np.uint8
    with pytest.raises(InputError):
        DPSinkhorn(**FAST).fit(images.astype(float), labels)


def test_a_run_folder_can_be_kept(arrays, tmp_path):
    DPSinkhorn(**FAST).fit(*arrays, run_folder=tmp_path / "run")
    assert (tmp_path / "run" / "ledger.jsonl").exists()
    assert DPSinkhorn.load(tmp_path / "run").privacy_.private


def test_misuse_is_told():
    with pytest.raises(InputError, match="not fitted"):
        DPSinkhorn().sample(1)
    with pytest.raises(InputError, match="unknown setting 'epochs'"):
        DPSinkhorn(epochs=3)
    with pytest.raises(InputError, match="epsilon=0"):
        DPSinkhorn(epsilon=0)
    with pytest.raises(InputError, match="delta=2"):
        DPSinkhorn(delta=2)
    # Never another ε than the one asked for.
    with pytest.raises(InputError, match="target_epsilon is given as epsilon=VALUE here"):
        DPSinkhorn(target_epsilon=1.0)
    with pytest.raises(InputError, match="target_delta is given as delta=VALUE here"):
        DPSinkhorn(delta=None)


def test_no_images_to_evaluate_are_refused(model, arrays):
    with pytest.raises(InputError, match="num=0 is below 1"):
        model.evaluate(arrays, arrays, num=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num": 2.5}, "num=2.5 is no integer"),
        ({"num": None}, "num=None is no integer"),
        ({"num": 5, "seed": None}, "seed=None is no integer"),
        ({"num": 5, "seed": -1}, "seed=-1 is not in"),
        ({"num": 5, "labels": 1}, "labels=1 is not a list"),
        ({"num": 5, "labels": "01"}, "labels='01' is not a list"),
        ({"num": 5, "labels": [1.5]}, "label=1.5 is no integer"),
        ({"num": 5, "labels": []}, "labels name no class"),
    ],
)
def test_what_cannot_be_sampled_is_told(model, arguments, words):
    with pytest.raises(InputError, match=words):
        model.sample(**arguments)
