"""Images of 96 pixels a side, more than the networks of the literature have."""

from pathlib import Path

import pytest
import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.sampling.draw import sample
from support.toy import LEAN, start

FEW_STEPS = {"record": {"num_steps": 2, "noise_multiplier": 50}, "batch": {"num_steps": 2, "noise_multiplier": 5}}


def large(side: int) -> LabelledImages:
    """Forty grey images of noise in two classes."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 1, side, side), generator=random, dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(40) % 2, ("0", "1"))


@pytest.mark.parametrize("mode", FEW_STEPS)
@pytest.mark.parametrize("generator", ["conv", "mlp"])
def test_large_images_are_trained_on_verified_and_sampled(tmp_path: Path, mode: str, generator: str) -> None:
    card = start(tmp_path / "run", large(96), LEAN[mode], **FEW_STEPS[mode], generator=generator).card
    assert card.image_shape == (1, 96, 96)
    assert verify(tmp_path / "run", STAGES).ok
    assert sample(*load_release(tmp_path / "run" / "release", STAGES), 3).shape == (1, 96, 96)


@pytest.mark.parametrize("generator", ["dcgan", "resnet"])
def test_networks_for_smaller_images_say_what_to_do(tmp_path: Path, generator: str) -> None:
    with pytest.raises(InputError, match="give --side 64 or less, or generator=conv or mlp"):
        start(tmp_path / "run", large(65), LEAN["batch"], **FEW_STEPS["batch"], generator=generator)
    assert list(tmp_path.iterdir()) == []
