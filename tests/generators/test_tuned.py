"""The layers of a `TunedGenerator`: choice, affine map and texture against their definitions."""

import pytest
import torch

from dp_sinkhorn.features.cosine import cosines, frequency_bands, num_bands
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.generators.tuned import (
    CHOICE_TRIES,
    AffineLayer,
    LatentChoice,
    TextureLayer,
    TunedGenerator,
    _add_masked,
)

pytestmark = pytest.mark.quick

SHAPE, SIZE, DIMENSIONS = (1, 8, 8), 64, 4


class Fixed(Generator):
    """Every image is the same ramp."""

    def __init__(self) -> None:
        super().__init__(SHAPE, 2, 3)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.linspace(-0.5, 0.5, SIZE).expand(len(labels), -1)


def some_tensors(random: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "basis": torch.linalg.qr(torch.randn(SIZE, DIMENSIONS, generator=random))[0],
        "maps": torch.randn(2, DIMENSIONS, DIMENSIONS, generator=random),
        "gains": torch.randn(2, num_bands(1), generator=random),
        "shifts": torch.randn(2, SIZE, generator=random) * torch.tensor([[1.0], [10.0]]),
        "spreads": torch.randn(2, DIMENSIONS, DIMENSIONS, generator=random),
    }


def tuned(dimensions: int = DIMENSIONS, channels: int = 5, *, choice: bool = False) -> TunedGenerator:
    return TunedGenerator(Fixed(), dimensions, channels, choice=choice)


def test_the_affine_layer_applies_the_map_of_each_class_in_range() -> None:
    random = torch.Generator().manual_seed(0)
    tensors, generator = some_tensors(random), tuned(channels=0)
    generator.affine.load_state_dict(tensors)
    basis = tensors["basis"]
    labels, latents = torch.tensor([1, 0, 1]), torch.rand(3, 3 + DIMENSIONS, generator=random)
    images = generator(latents, labels).detach()
    ramp = torch.linspace(-0.5, 0.5, SIZE)
    rest = torch.eye(SIZE) - basis @ basis.T
    wave = cosines(8, 8).float()
    both = torch.kron(wave, wave)
    # A uniform latent, scaled to mean 0 and variance 1.
    for image, k, own in zip(images, labels.tolist(), (latents[:, 3:] - 0.5) * 12**0.5, strict=True):
        strengths = tensors["gains"][k][frequency_bands(SHAPE)] * (both.T @ rest @ ramp)
        moved = ramp @ basis @ tensors["maps"][k] + own @ tensors["spreads"][k]
        move = basis @ moved + rest @ both @ strengths + tensors["shifts"][k]
        torch.testing.assert_close(image, (ramp + (1.0 - ramp**2).sqrt() * move).clamp(-1.0, 1.0))
    assert float(images.abs().max()) == 1.0


@pytest.mark.parametrize("layer", ["affine", "texture"])
def test_black_and_white_pixels_do_not_change(layer: str) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(3, SIZE, generator=random) - 0.5
    images[:, :20], images[:, 20:40] = -1.0, 1.0
    labels = torch.tensor([0, 1, 0])
    if layer == "affine":
        moved = AffineLayer(SHAPE, **some_tensors(random))(images, labels, torch.ones(3, DIMENSIONS))
    else:
        texture = TextureLayer(SHAPE, 2, 5)
        torch.nn.init.normal_(texture.last.weight, generator=random)
        torch.nn.init.ones_(texture.last.bias)
        moved = texture(images, labels, torch.rand(3, SIZE, generator=random)).detach()
    assert torch.equal(moved[:, :40], images[:, :40])
    assert bool((moved[:, 40:] != images[:, 40:]).all())


class Shifted(Fixed):
    """The ramp plus the mean of the latents, so that other latents give another image."""

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().forward(latents, labels) + 0.3 * latents.mean(1, keepdim=True)


def test_new_layers_change_nothing_and_take_the_first_latent() -> None:
    generator = TunedGenerator(Shifted(), DIMENSIONS, 5, choice=True)
    latents = torch.rand(6, generator.latent_dim, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(6) % 2
    assert torch.equal(generator(latents, labels), Shifted()(latents[:, :3], labels))


@pytest.mark.parametrize(
    ("goodness", "taken"),
    [
        ([1.0, 9.0, 9.0, 9.0, 9.0], 0),  # the first of at least 0, not the best
        ([-1.0, -0.1, 0.0, 9.0, 9.0], 2),
        ([-9.0, -9.0, -9.0, -9.0, 0.1], 4),
        ([-3.0, -2.0, -0.5, -1.0, -4.0], 2),  # all are below 0: the best
    ],
)
def test_the_choice_takes_the_first_good_latent_or_else_the_best(
    monkeypatch, goodness: list[float], taken: int
) -> None:
    latents = torch.arange(2.0 * CHOICE_TRIES * 3).view(2, -1)
    asked = []

    def told(several: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        asked.append((several, labels))
        return torch.tensor([goodness, goodness[::-1]])

    choice = LatentChoice(3, 2)
    monkeypatch.setattr(choice, "goodness", told)
    first, _ = choice(latents, torch.tensor([0, 1]))
    assert torch.equal(first, latents[0].view(CHOICE_TRIES, 3)[taken])
    ((several, labels),) = asked
    assert torch.equal(several, latents.view(2, CHOICE_TRIES, 3))
    assert labels.tolist() == [[0] * CHOICE_TRIES, [1] * CHOICE_TRIES]


def test_bfloat16_makes_the_same_choice_of_latents() -> None:
    generator = TunedGenerator(Shifted(), 0, 0, choice=True)
    random = torch.Generator().manual_seed(4)
    for weight in (generator.choice.last.weight, generator.choice.biases.weight):
        torch.nn.init.normal_(weight, generator=random)
    labels = torch.arange(200) % 2
    with torch.no_grad():
        whole = generator.sample(labels, torch.Generator().manual_seed(0))
        generator.precision = torch.bfloat16
        half = generator.sample(labels, torch.Generator().manual_seed(0))
    torch.testing.assert_close(half, whole, atol=1e-2, rtol=0.0)


def test_gradients_of_the_mask_match_finite_differences() -> None:
    random = torch.Generator().manual_seed(5)
    images = (1.8 * torch.rand(4, 8, generator=random, dtype=torch.float64) - 0.9).requires_grad_()
    moves = (0.2 * torch.rand(4, 8, generator=random, dtype=torch.float64) - 0.1).requires_grad_()
    assert torch.autograd.gradcheck(_add_masked, (images, moves))


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_gradients_are_finite_at_black_and_white_pixels(value: float) -> None:
    """The slope of √(1 − x²) is infinite there; the images and the texture still get gradients."""
    random = torch.Generator().manual_seed(2)
    generator = tuned()
    generator.affine.load_state_dict({**some_tensors(random), "shifts": torch.full((2, SIZE), 0.1)})
    torch.nn.init.normal_(generator.texture.last.weight, generator=random)
    labels = torch.arange(4) % 2
    images = (2.0 * torch.rand(4, SIZE, generator=random) - 1.0).mul_(0.3)
    images[:, ::2] = value
    images.requires_grad_()
    moved = generator.affine(images, labels, torch.ones(4, DIMENSIONS))
    generator.texture(moved, labels, torch.rand(4, SIZE, generator=random)).square().sum().backward()
    found = [images.grad, *(weight.grad for weight in generator.texture.parameters())]
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in found)


def test_each_layer_uses_its_own_latents() -> None:
    """The generator's latents come first, so it makes the same images with and without layers."""

    generator = TunedGenerator(Shifted(), DIMENSIONS, 5, choice=False)
    assert generator.sizes == (3, DIMENSIONS, SIZE)
    assert generator.latent_dim == 3 + DIMENSIONS + SIZE
    chosen = TunedGenerator(Shifted(), DIMENSIONS, 5, choice=True)
    assert chosen.sizes == (CHOICE_TRIES * 3, DIMENSIONS, SIZE)
    random = torch.Generator().manual_seed(3)
    tensors = some_tensors(random)
    generator.affine.load_state_dict({**tensors, "shifts": torch.zeros(2, SIZE), "gains": torch.zeros(2, num_bands(1))})
    torch.nn.init.normal_(generator.texture.last.weight, generator=random)
    latents, labels = torch.rand(1, generator.latent_dim, generator=random), torch.tensor([1])
    image = generator(latents, labels).detach()
    for part in latents.clone().split(generator.sizes, dim=1):
        changed = latents.clone()
        first = int((latents[0] == part[0, 0]).nonzero())
        changed[:, first : first + part.shape[1]] = 1.0 - part
        assert not torch.equal(generator(changed, labels), image)


@pytest.mark.parametrize("dimensions", [0, DIMENSIONS])
@pytest.mark.parametrize("channels", [0, 5])
@pytest.mark.parametrize("choice", [False, True])
def test_the_specification_selects_the_layers(dimensions: int, channels: int, choice: bool) -> None:
    spec = GeneratorSpec(
        name="mlp", latent_dim=3, width=8, channels=8,
        latent_choice=choice, affine_dimensions=dimensions, texture_channels=channels,
    )  # fmt: skip
    more = 3 * (CHOICE_TRIES - 1) * choice + dimensions + SIZE * (channels > 0)
    generator = build_generator(spec, SHAPE, 2)
    assert generator.latent_dim == 3 + more
    assert isinstance(generator, TunedGenerator) is (more > 0)
    names = {name.partition(".")[0] for name in generator.state_dict()}
    layers = {"choice": choice, "affine": dimensions, "texture": channels}
    assert names & layers.keys() == {name for name, size in layers.items() if size}


def test_bfloat16_does_not_round_what_the_affine_layer_adds() -> None:
    """bfloat16 cannot tell 0.5 from 0.5001, so the shift is added in float32."""
    generator = tuned(channels=0)
    generator.affine.load_state_dict({**generator.affine.state_dict(), "shifts": torch.full((2, SIZE), 1e-4)})
    generator.precision = torch.bfloat16
    labels = torch.zeros(2, dtype=torch.int64)
    plain = tuned(channels=0)
    plain.precision = torch.bfloat16
    moves = (generator.sample(labels, torch.Generator()) - plain.sample(labels, torch.Generator())).detach()
    assert moves.dtype == torch.float32
    assert float(moves.min()) > 0.5e-4


def test_choice_and_affine_map_are_not_trained() -> None:
    generator = tuned(choice=True)
    assert not any(weight.requires_grad for weight in generator.affine.parameters())
    trained = [weight for network in generator.trainable() for weight in network.parameters()]
    assert len(trained) == 1 + len(list(generator.texture.parameters()))
