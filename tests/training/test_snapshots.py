"""Pictures during training: when they are taken, and that taking them changes nothing."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.training.snapshots import Snapshots
from support.toy import LEAN, config

NAMES = ("a", "b", "c")


def snapshots(folder, num_steps, block, names=NAMES):
    """Snapshots of a run of so many steps in blocks."""
    made = config(base=LEAN["record"], noise_multiplier=20)
    data, plan = (part.model_copy(update=changes) for part, changes in
                  ((made.data, {"class_names": names}), (made.plan, {"num_steps": num_steps})))  # fmt: skip
    return Snapshots(folder, block, made.model_copy(update={"data": data, "plan": plan}))


def generator(name: str = "mlp", classes: int = 3):
    return build_generator(GeneratorSpec(name=name, latent_dim=4, width=8, channels=8), (1, 8, 8), classes)


def test_pictures_are_taken_at_block_ends_and_the_last_step(tmp_path):
    assert snapshots(tmp_path, 1000, 10).steps == [10, 20, 50, 100, 200, 350, 500, 650, 800, 1000]
    assert snapshots(tmp_path, 1234, 13).steps == [13, 26, 65, 130, 247, 442, 624, 806, 988, 1234]
    assert snapshots(tmp_path, 3, 1).steps == [1, 2, 3]


def test_a_picture_shows_each_class_in_its_rows(tmp_path):
    made = generator()
    picture = snapshots(tmp_path / "s", 100, 1).take(100, made)
    labels = torch.arange(3).repeat_interleave(20)
    with torch.no_grad():
        images = made(torch.rand(60, 4, generator=torch.Generator().manual_seed(0)), labels)
    expected = ((images + 1) * 127.5).round().view(3, 2, 10, 8, 8).numpy()
    with Image.open(tmp_path / "s" / "step-00100.png") as stored:
        assert np.array_equal(np.asarray(stored), np.asarray(picture))
        pixels = np.asarray(stored)[::6, ::6].astype(float)
    for row in range(6):
        for column in range(10):
            tile = pixels[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
            assert np.abs(tile - expected[row // 2, row % 2, column]).max() <= 1


def test_no_picture_is_taken_twice_or_at_other_steps(tmp_path):
    taken = snapshots(tmp_path / "s", 100, 1)
    assert taken.take(3, generator()) is None
    assert not (tmp_path / "s").exists()
    assert taken.take(5, generator()) is not None
    assert taken.take(5, generator()) is None


@pytest.mark.parametrize("name", ["mlp", "conv", "dcgan", "resnet"])
@pytest.mark.parametrize("training", [True, False])
def test_a_picture_changes_no_weight_statistic_or_random_stream(tmp_path, name, training):
    made = generator(name).train(training)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    random = torch.get_rng_state()
    assert snapshots(tmp_path, 100, 1).take(1, made) is not None
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training is training for module in made.modules())


def test_a_picture_of_many_classes_shows_the_first_ones(tmp_path):
    names = tuple(map(str, range(500)))
    picture = snapshots(tmp_path, 100, 1, names).take(1, generator(classes=500))
    assert picture.size == (10 * 9 * 6, 20 * 9 * 6)


def test_a_full_disk_leaves_no_part_of_a_picture(tmp_path, monkeypatch):
    seen = []

    def full(descriptor):
        seen.append(os.fstat(descriptor).st_size)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        snapshots(tmp_path, 100, 1).take(1, generator())
    assert seen[0] > 0  # a part was written
    assert list(tmp_path.iterdir()) == []
