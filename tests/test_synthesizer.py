"""The Python interface."""

import numpy as np
import pytest

from dp_sinkhorn import DPSinkhorn, InputError

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


def test_save_and_load(model, tmp_path):
    model.save(tmp_path / "release")
    again = DPSinkhorn.load(tmp_path / "release")
    assert again.privacy_ == model.privacy_
    np.testing.assert_array_equal(again.sample(10, seed=4)[0], model.sample(10, seed=4)[0])
    with pytest.raises(InputError, match="exists already"):
        model.save(tmp_path / "release")


def test_evaluate(model, arrays):
    images, labels = arrays
    result = model.evaluate((images[:200], labels[:200]), (images[200:], labels[200:]), num=100)
    assert result.num_synthetic == 100
    assert result.trtr["logreg"].accuracy == 1.0


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
