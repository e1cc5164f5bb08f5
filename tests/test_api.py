"""The Python interface."""

import signal
import tempfile
import warnings
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from dp_sinkhorn import DPSinkhorn, InputError, api
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.privacy.ledger import Ledger, read_charges
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.sampling.draw import draw
from support.asking import Asking, charged, signalled
from support.toy import LEAN, changed

FAST = LEAN["record"] | {"num_steps": 12}
Arrays = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (240, 8, 8), dtype=np.uint8)
    labels = np.arange(240) % 2
    images[labels == 1, :, 4:] += 150
    return images, labels


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of `model`."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture(scope="module")
def model(arrays: Arrays, kept: Path) -> DPSinkhorn:
    return DPSinkhorn(epsilon=5, delta=1e-4, settings=FAST).fit(*arrays, run_folder=kept)


def test_a_fitted_model_samples_and_has_a_card(model):
    images, labels = model.sample(31)
    assert images.shape == (31, 8, 8)
    assert images.dtype == np.uint8
    assert sorted(set(labels.tolist())) == [0, 1]
    assert 4.95 <= model.privacy_.epsilon <= 5.0
    assert model.privacy_.delta == 1e-4
    assert model.privacy_.private


def test_samples_have_the_chosen_labels_or_the_card_s_shares(model):
    _, labels = model.sample(20, labels=[1])
    assert labels.tolist() == [1] * 20
    _, labels = model.sample(1000)
    expected = 1000 * np.array(model.privacy_.class_prior.shares)
    assert np.abs(np.bincount(labels) - expected).max() < 1


def test_rounded_shares_still_give_the_requested_number_of_images(model):
    card, generator = model._model()
    rounded = card.class_prior.model_copy(update={"shares": (0.4995, 0.4995)})
    draws = draw(card.model_copy(update={"class_prior": rounded}), generator, 20_000)
    assert draws.counts.tolist() == [10_000, 10_000]


def test_a_saved_release_and_a_run_load_as_the_same_model(model, kept, tmp_path):
    model.save(tmp_path / "release")
    for path in (tmp_path / "release", kept):
        again = DPSinkhorn.load(path)
        assert again.privacy_ == model.privacy_
        np.testing.assert_array_equal(again.sample(10, seed=4)[0], model.sample(10, seed=4)[0])
    with pytest.raises(InputError, match="exists already"):
        model.save(tmp_path / "release")
    names = sorted(path.name for path in (tmp_path / "release").iterdir())
    assert names == ["README.md", "card.json", "weights.safetensors"]


def test_a_release_is_saved_atomically(model, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.save(tmp_path / "release")
    assert list(tmp_path.iterdir()) == []
    model.save(tmp_path / "release")


def test_evaluation_resizes_real_images_as_training_did(arrays, monkeypatch):
    """The evaluation itself is tested elsewhere."""
    images, labels = arrays
    large = images.repeat(5, axis=1).repeat(5, axis=2)
    model = DPSinkhorn(epsilon=5, delta=1e-4, settings=FAST | {"reading": {"side": 10}}).fit(large, labels)
    given = []
    monkeypatch.setattr(api, "evaluate", lambda *parts, **more: given.append((parts, more)))
    model.evaluate((large[:200], labels[:200]), (large[200:], labels[200:]), num=50, seed=3)
    model.evaluate((large[:200], labels[:200]), (large[200:], labels[200:]))
    [((synthetic, train, test), more), (default, _)] = given
    assert [part.shape for part in (synthetic, train, test)] == [(1, 10, 10)] * 3
    assert [len(part) for part in (synthetic, train, test, default[0])] == [50, 200, 40, 200]
    assert more["seed"] == 3


def test_an_interrupted_fit_keeps_its_ledger_and_continues(arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = DPSinkhorn(settings=FAST)
    asking = Asking(monkeypatch, at=5, what=signalled(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as stop:
        model.fit(*arrays)
    [folder] = tmp_path.iterdir()
    assert str(folder) in stop.value.__notes__[0]
    assert "its ledger.jsonl: continue with fit(images, labels, resume=True)" in stop.value.__notes__[0]
    assert Ledger(folder / "ledger.jsonl").count("transport_steps") == 6
    [early] = model.ledgers_
    model.fit(*arrays, run_folder=folder, resume=True)
    assert asking.steps == 12
    assert model.privacy_.num_steps == 12
    assert verify(folder, STAGES).ok
    # The ledger of a resumed run replaces its shorter former version.
    assert model.ledgers_ == ((folder / "ledger.jsonl").read_bytes(),)
    assert model.ledgers_[0].startswith(early)
    with pytest.raises(InputError, match="epsilon=3"):
        DPSinkhorn(epsilon=3, settings=FAST).fit(*arrays, run_folder=folder, resume=True)
    with pytest.raises(InputError, match="this object has none; give its run_folder"):
        DPSinkhorn(settings=FAST).fit(*arrays, resume=True)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_same_object_continues_the_fit_that_a_callback_stopped(arrays, tmp_path, monkeypatch, error):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asking, told, raised = Asking(monkeypatch), [], error("mine")

    def stop_once(progress):
        told.append(progress)
        if len(told) == 5:
            raise raised

    model = DPSinkhorn(settings=FAST)
    with pytest.raises(error) as stop:
        model.fit(*arrays, callbacks=[stop_once])
    assert stop.value is raised
    [folder] = tmp_path.iterdir()  # a temporary one
    assert asking.steps == charged(folder)["transport_steps"] == 5
    with pytest.raises(InputError, match="this object has none"):
        clone(model).fit(*arrays, resume=True)
    with pytest.raises(UserWarning, match=r"add up; resume=True continues the interrupted one instead$"):
        model.fit(*arrays)  # warnings are errors here
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no second budget
        assert model.fit(*arrays, resume=True, callbacks=[stop_once]) is model
    assert [progress.step for progress in told] == list(range(1, 13))
    assert asking.steps == model.privacy_.num_steps == 12
    assert list(tmp_path.iterdir()) == []
    [ledger] = model.ledgers_
    (tmp_path / "ledger.jsonl").write_bytes(ledger)
    assert charged(tmp_path) == asking.made
    with pytest.raises(InputError, match="this object has none"):
        model.fit(*arrays, resume=True)


def test_too_little_memory_is_refused_before_anything_is_spent(arrays, tmp_path, monkeypatch):
    monkeypatch.setattr("dp_sinkhorn.training.speed.psutil.virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(InputError, match=r"of memory, and 0\.0 GiB are free"):
        DPSinkhorn(settings=FAST).fit(*arrays, run_folder=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_callbacks_get_a_record_that_they_cannot_change(arrays):
    told = []
    DPSinkhorn(settings=FAST).fit(*arrays, callbacks=[told.append])
    with pytest.raises(FrozenInstanceError):
        told[0].step = 2
    assert told[-1].step == told[-1].num_steps == 12
    assert 9.9 < told[-1].epsilon <= 10.0
    assert told[-1].picture.size == (10 * 9 * 6, 6 * 9 * 6)


@pytest.mark.parametrize("verbose", [0, 1])
def test_fit_shows_its_progress_unless_it_shall_be_silent(arrays, capfd, verbose):
    DPSinkhorn(settings=FAST, verbose=verbose).fit(*arrays)
    out, err = capfd.readouterr()
    assert (out, "step 12/12" in err, err == "") == ("", bool(verbose), not verbose)


def test_a_second_fit_is_a_new_run_and_warns(arrays, tmp_path):
    model = DPSinkhorn(settings=FAST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(*arrays, run_folder=tmp_path / "a")
    first = model.privacy_
    with pytest.warns(UserWarning, match=r"spent a budget in 1 earlier run\(s\) \(ledgers_\).* add up"):
        model.fit(*arrays, run_folder=tmp_path / "b")
    assert model.privacy_.weights_sha256 != first.weights_sha256
    assert model.ledgers_ == tuple((tmp_path / name / "ledger.jsonl").read_bytes() for name in "ab")
    assert sum(charge.count for charge in read_charges(tmp_path / "b" / "ledger.jsonl")) == 15


def test_a_large_delta_stops_before_training_unless_it_is_allowed(arrays, monkeypatch):
    monkeypatch.setattr(api, "start", lambda *args: pytest.fail("training began"))
    with pytest.raises(InputError, match=r"delta=0\.05 is not below 1/240"):
        DPSinkhorn(delta=0.05, settings=FAST).fit(*arrays)
    with pytest.warns(UserWarning, match="delta=0.05 is not below 1/240"), pytest.raises(pytest.fail.Exception):
        DPSinkhorn(delta=0.05, settings={**FAST, "allow_large_delta": True}).fit(*arrays)


def test_fit_accepts_floats_and_images_without_labels(arrays):
    images, labels = arrays
    model = DPSinkhorn(settings=FAST).fit(images / 255.0)
    assert model.privacy_.class_names == ("0",)
    drawn = model.sample(3)
    assert drawn[0].dtype == np.uint8
    assert drawn[1].tolist() == [0, 0, 0]
    with pytest.raises(InputError):  # floats must be in [0, 1]
        DPSinkhorn(settings=FAST).fit(images.astype(float), labels)


def test_a_model_that_is_not_fitted_says_so_in_both_languages():
    for error in (InputError, NotFittedError):
        with pytest.raises(error, match="not fitted; call fit"):
            DPSinkhorn().sample(1)
        with pytest.raises(error, match="not fitted; call fit"):
            DPSinkhorn().save("release")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"settings": {"epochs": 3}}, "unknown setting 'epochs'"),
        ({"settings": {"class_moments": {"epochs": 3}}}, r"unknown setting 'class_moments\.epochs'"),
        ({"settings": 5}, "settings=5 is no mapping"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"epsilon": "much"}, "epsilon='much'"),
        ({"epsilon": "10"}, "epsilon='10'"),
        ({"delta": 2}, "delta=2"),
        # ε can only be given in one way, so it cannot be overridden.
        ({"settings": {"target_epsilon": 1.0}}, "give epsilon=NUMBER"),
        ({"delta": None}, "give delta=NUMBER"),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_spent(arrays, tmp_path, monkeypatch, parameters, words):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = DPSinkhorn(**parameters)
    with pytest.raises(InputError, match=words):
        model.fit(*arrays)
    with pytest.raises(InputError, match=r"callbacks=.*give for example \[print\]"):
        DPSinkhorn(settings=FAST).fit(*arrays, callbacks=print)
    assert not model.ledgers_
    assert list(tmp_path.iterdir()) == []


def test_evaluating_no_images_is_refused(model, arrays):
    with pytest.raises(InputError, match="num=0 is below 1"):
        model.evaluate(arrays, arrays, num=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num": 2.5}, "num=2.5 is not an integer"),
        ({"num": None}, "num=None is not an integer"),
        ({"num": 5, "seed": None}, "seed=None is not an integer"),
        ({"num": 5, "seed": -1}, "seed=-1 is not in"),
        ({"num": 5, "labels": 1}, "labels=1 is not a list"),
        ({"num": 5, "labels": "01"}, "labels='01' is not a list"),
        ({"num": 5, "labels": [1.5]}, "label=1.5 is not an integer"),
        ({"num": 5, "labels": []}, "labels name no class"),
        ({"num": 5, "labels": [2]}, "label 2 is no class of this release; its classes are 0, 1"),
        ({"num": 5, "labels": [10**5000]}, "label a number of thousands of digits is no class"),
    ],
)
def test_bad_arguments_of_sample_are_refused(model, arguments, words):
    with pytest.raises(InputError, match=words):
        model.sample(**arguments)


def test_make_plan_reads_no_data():
    plan = api.make_plan(240, 5, 1e-4, settings=changed(FAST, num_steps=12))
    assert plan.num_steps == 12
    assert plan.charge("transport_steps").count == 12
    with pytest.raises(InputError, match="num_records=0 is below 1"):
        api.make_plan(0)


def test_the_public_names_are_those_that_completion_shows():
    import dp_sinkhorn

    assert dir(dp_sinkhorn) == sorted(dp_sinkhorn.__all__)
