"""The class embedding: what a record may change of it, what steps learn from it, and what a run with it claims."""

import math

import pytest
import torch

from dp_sinkhorn.build import build_generator, resolve
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.features import random_fourier as fourier
from dp_sinkhorn.features.random_fourier import FourierMap, fourier_map
from dp_sinkhorn.features.scattering import Scattering
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import epsilon_pld
from dp_sinkhorn.privacy.ledger import read_charges
from dp_sinkhorn.privacy.statistics import fourier_features
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.settings import EmbeddingRules, make_settings
from dp_sinkhorn.stages import class_embedding as embedding
from dp_sinkhorn.stages.class_embedding import EmbeddingStepRules, class_embedding, embedding_step
from dp_sinkhorn.stages.label_classifier import record_features
from dp_sinkhorn.stages.principal_subspace import ReleasedStatistics
from dp_sinkhorn.training import loop as trainer
from dp_sinkhorn.training import methods
from dp_sinkhorn.training import run_folder as runs
from dp_sinkhorn.training.run_folder import facts_of
from support.toy import BEFORE_THE_STEPS, toy
from support.toy import SMALL as RECORD

SMALL = {
    "sanitize": "embedding", "num_steps": 20, "num_generated": 16, "width": 16, "channels": 8, "min_dimensions": 4,
    "num_frequencies": 50,
}  # fmt: skip


def config(data: LabelledImages, **changes: object):
    return resolve(make_settings(None, {**SMALL, **changes}), facts_of("toy", data))


def released_of(data: LabelledImages, variance: float = 20.0) -> ReleasedStatistics:
    size = math.prod(data.shape)
    counts = torch.bincount(data.labels, minlength=data.num_classes).double()
    return ReleasedStatistics(counts, variance, Subspace(torch.zeros(size), torch.eye(size)[:, :4].contiguous()))


def embedded(data: LabelledImages, features: FourierMap):
    return class_embedding(data, features, record_features(data))


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("chunk", [7, 2048])
def test_one_record_moves_the_embedding_by_the_sensitivity_and_no_further(monkeypatch, chunk, weight):
    """At every place, in every class, whatever the image: features have norm 1."""
    monkeypatch.setattr(embedding, "_CHUNK", chunk)
    data = toy(30)
    features = fourier_map(config(data, wavelet_weight=weight), released_of(data).variance)
    base = embedded(data, features)
    assert base.sensitivity == 1.0
    for place in (0, 6, 7, 13, 30):
        for label, value in ((0, 0), (1, 255), (1, 128)):
            more = LabelledImages(
                torch.cat([data.pixels[:place], torch.full((1, 1, 8, 8), value).byte(), data.pixels[place:]]),
                torch.cat([data.labels[:place], torch.tensor([label]), data.labels[place:]]),
                data.class_names,
            )
            change = embedded(more, features).value - base.value
            assert 0.99999 < float(change.norm()) <= 1.0
            assert float(change[1 - label].norm()) < 1e-9


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_features_estimate_the_sum_of_kernels_that_is_set(weight):
    data = toy(40)
    made = config(data, num_frequencies=40_000, relative_width=0.5, wavelet_weight=weight, wavelet_width=0.1)
    features = fourier_map(made, variance=20.0).of_records(data, record_features(data))
    rows = data.floats().double()
    near = torch.exp(-torch.cdist(rows, rows).square() / (4.0 * 0.5 * 20.0))
    wavelets = Scattering(data.shape, layers=1)(rows)
    alike = torch.exp(-torch.cdist(wavelets, wavelets).square() / (4.0 * 0.1))
    assert float(near.min()) < 0.5
    assert float(alike.min()) < 0.5
    wanted = (1.0 - weight) * near + weight * alike
    # A mean of 40,000 cosines errs by at most 1/√80,000 in standard deviation; the worst of some 800 pairs.
    assert torch.allclose(features @ features.T, wanted, atol=5.0 / math.sqrt(80_000))


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_images_have_the_features_that_the_same_records_have(weight):
    """Those of records come from what is kept in half precision, those of images from one layer alone."""
    data = toy(40)
    features = fourier_map(config(data, wavelet_weight=weight), variance=20.0)
    records = features.of_records(data, record_features(data)).float()
    images = torch.cat(features.single().of_images(data.floats().unsqueeze(0), len(data)), dim=2)
    assert torch.allclose(images[0], records, atol=2e-4)
    # An image of another record differs by far more.
    assert float((records[0] - records[1]).abs().max()) > 0.05


def test_a_record_s_features_do_not_depend_on_its_company():
    data = toy(40)
    features, known = fourier_map(config(data), variance=20.0), record_features(data)
    alone = [features.of_records(data.subset(torch.tensor([row])), known[[row]]) for row in range(len(data))]
    assert torch.allclose(torch.cat(alone), features.of_records(data, known), rtol=0.0, atol=1e-12)


def test_gradients_are_those_of_both_kernels():
    data = toy(4)
    features = fourier_map(config(data), variance=20.0)
    images = (0.9 * data.floats().double()).view(2, 2, -1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rows: features.of_images(rows, 2), images, eps=1e-5, atol=1e-4, fast_mode=True
    )


def test_without_their_weight_wavelets_are_neither_computed_nor_released(monkeypatch):
    monkeypatch.setattr(fourier, "Scattering", None)
    data = toy(20)
    features = fourier_map(config(data, wavelet_weight=0), variance=20.0)
    assert class_embedding(data, features).value.shape == (2, 100)


def test_frequencies_follow_from_the_public_seed():
    data = toy(40)
    first, again, other = (fourier_map(config(data, seed=seed), variance=20.0) for seed in (1, 1, 2))
    assert torch.equal(first.frequencies, again.frequencies)
    assert not torch.equal(first.frequencies, other.frequencies)
    assert torch.equal(first.wavelets.frequencies, again.wavelets.frequencies)
    assert not torch.equal(first.wavelets.frequencies, other.wavelets.frequencies)


def rules_of(target: torch.Tensor, frequencies: torch.Tensor, each: int) -> EmbeddingStepRules:
    counts = torch.full((len(target),), 100.0, dtype=torch.float64)
    return EmbeddingStepRules.of(target * 100.0, counts, FourierMap(frequencies), 0.0, each * len(target))


def test_the_gradient_of_few_images_has_no_bias():
    """In the mean over draws of 2 images a class the gradient is that of many: what is matched is the whole class."""
    frequencies = torch.randn(6, 30, generator=torch.Generator().manual_seed(0)).double()
    target = fourier_features(torch.zeros(1, 6).double(), frequencies)

    class Scattered(Generator):
        """Images of one class: noise about 0.3, as wide as is learnt. A mere shift would leave their products alone."""

        def __init__(self) -> None:
            super().__init__((1, 2, 3), 1, 6)
            self.width = torch.nn.Parameter(torch.full((6,), 0.5))

        def forward(self, latents, labels):
            return 0.3 + self.width * latents

    class Held:
        """Moves nothing, keeps the gradients."""

        def __init__(self, generator) -> None:
            self.generator, self.sum = generator, torch.zeros(6)

        def zero_grad(self):
            self.generator.width.grad = None

        def step(self):
            self.sum += self.generator.width.grad

    found = []
    for each, steps in ((2, 6000), (500, 60)):
        held = Held(Scattered())
        for step in range(steps):
            embedding_step(
                held.generator, held, rules_of(target, frequencies, each), torch.Generator().manual_seed(step)
            )
        found.append(held.sum / steps)
    assert float(found[1].norm()) > 0.3
    assert float((found[0] - found[1]).norm()) < 0.05 * float(found[1].norm())


def test_few_images_are_enough_for_the_wavelets_of_large_ones(monkeypatch):
    """In the mean over steps the gradient is that of all images: the first few of each class are as good as any."""
    data = toy(100)
    features = fourier_map(config(data, num_frequencies=100, wavelet_weight=0.9), variance=60.0)
    counts = torch.full((2,), 50.0, dtype=torch.float64)
    target = embedded(data, features).value
    seen = []
    gradients = []
    for numbers in (400 * 784, 2 * 64 * 3):
        monkeypatch.setattr(embedding, "_WAVELET_NUMBERS", numbers)
        rules = EmbeddingStepRules.of(target, counts, features, 0.0, 24)
        seen.append(rules.seen)
        generator = build_generator(GeneratorSpec(name="mlp", latent_dim=4, width=8, channels=8), data.shape, 2)
        total = torch.zeros(())
        for step in range(300):
            optimiser = torch.optim.SGD(generator.parameters(), lr=0.0)
            embedding_step(generator, optimiser, rules, torch.Generator().manual_seed(step))
            total = total + torch.cat([parameter.grad.flatten() for parameter in generator.parameters()]) / 300
        gradients.append(total)
    assert seen == [12, 3]
    assert float((gradients[0] - gradients[1]).norm()) < 0.04 * float(gradients[0].norm())


def test_steps_lead_each_class_to_its_own_embedding():
    data = toy(200)
    made, statistics = config(data, num_frequencies=200), released_of(data, variance=60.0)
    features = fourier_map(made, statistics.variance)
    rules = EmbeddingStepRules.of(embedded(data, features).value, statistics.class_counts, features, 0.0, 40)
    generator = build_generator(GeneratorSpec(name="mlp", latent_dim=4, width=32, channels=8), data.shape, 2)
    optimiser = torch.optim.Adam(generator.parameters(), lr=3e-3)

    def distances() -> torch.Tensor:
        """Between the mean features of each class of images and each class of records."""
        images = torch.stack(list(generator.samples_by_class(200, 5)))
        means = torch.cat([part.mean(1) for part in rules.features.of_images(images, 200)], dim=1)
        return torch.cdist(means, rules.target)

    before = distances()
    for step in range(200):
        embedding_step(generator, optimiser, rules, torch.Generator().manual_seed(step))
    after = distances()
    assert (after.diagonal() < 0.5 * before.diagonal()).all()
    assert (after.diagonal() < 0.5 * after.flip(0).diagonal()).all()


def test_a_small_class_that_noise_hides_is_led_to_all_others():
    random = torch.Generator().manual_seed(0)
    counts = torch.tensor([1000.0, 800.0, 10.0, 60.0, 90.0], dtype=torch.float64)
    means = torch.nn.functional.normalize(torch.randn(5, 400, generator=random).double(), dim=1) * 0.5
    noise = torch.randn(5, 400, generator=random).double()
    frequencies = FourierMap(torch.zeros(5, 200).double())
    sums = means * counts.unsqueeze(1)
    quiet = EmbeddingStepRules.of(sums + 1e-3 * noise, counts, frequencies, 1e-3, 8)
    assert quiet.hidden.tolist() == [False] * 5
    # Noise of 4 on a number of the sums: on the mean of ten records 0.4, of sixty 0.067, of ninety 0.044.
    noisy = sums + 4.0 * noise
    hiding = EmbeddingStepRules.of(noisy, counts, frequencies, 4.0, 8)
    assert hiding.hidden.tolist() == [False, False, True, True, False]
    others = noisy[~hiding.hidden].sum(0) / counts[~hiding.hidden].sum()
    assert torch.allclose(hiding.target[2:4].double(), others.expand(2, -1), atol=1e-6)
    assert torch.allclose(hiding.target[4].double(), noisy[4] / 90.0, atol=1e-6)
    more = EmbeddingStepRules.of(noisy, counts, frequencies, 4.0, 8, hiding_noise=0.04)
    assert more.hidden.tolist() == [False, False, True, True, True]


def test_a_large_class_is_never_hidden():
    noise = torch.randn(2, 400, generator=torch.Generator().manual_seed(0)).double()
    counts = torch.tensor([100.0, 90.0], dtype=torch.float64)
    rules = EmbeddingStepRules.of(50.0 * noise, counts, FourierMap(torch.zeros(5, 200).double()), 50.0, 8)
    assert rules.hidden.tolist() == [False, False]


def test_a_run_charges_the_embedding_and_no_step(tmp_path):
    card = runs.start(toy(), "toy", make_settings(None, SMALL), tmp_path / "run").card
    assert 9.9 <= card.epsilon <= 10.0
    assert {charge.name: charge.count for charge in card.charges} == {
        **BEFORE_THE_STEPS,
        "class_embedding": 1,
    }
    (charge,) = (charge for charge in card.charges if charge.name == "class_embedding")
    assert (card.noise_multiplier, card.clip_norm, card.sensitivity) == (charge.noise_multiplier, 1.0, 1.0)
    assert (card.sanitize, card.num_steps, card.queries_per_step) == ("embedding", 20, 0)
    assert "the steps see no record" in card.mechanism
    assert verify(tmp_path / "run").ok


def test_steps_are_taken_again_after_a_crash_and_nothing_is_charged_again(tmp_path, monkeypatch):
    """Steps cost nothing, so those since the last checkpoint are not lost: two runs alike end alike."""
    data, alike = toy(), make_settings(None, {**SMALL, "test_seed": 3, "num_steps": 250})
    whole = runs.start(data, "toy", alike, tmp_path / "whole").card
    real, count = methods.embedding_step, 0

    def dying(*args):
        nonlocal count
        count += 1
        if count == 100:  # blocks have 3 steps, so one step of a block is taken and lost
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(methods, "embedding_step", dying)
    with pytest.raises(KeyboardInterrupt):
        runs.start(data, "toy", alike, tmp_path / "cut")
    charged = read_charges(tmp_path / "cut" / "ledger.jsonl")
    monkeypatch.setattr(methods, "embedding_step", real)
    resumed = runs.resume(data, tmp_path / "cut", {}).card
    assert read_charges(tmp_path / "cut" / "ledger.jsonl") == charged
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.epsilon == whole.epsilon == epsilon_pld(charged, 1e-5)


@pytest.mark.parametrize(
    "given",
    [SMALL, {**RECORD, "embedding_share": 0.2, "num_frequencies": 50}],
    ids=["in place of steps", "beside steps, where it is needed after the last of them"],
)
def test_a_run_goes_on_with_no_less_than_its_embedding(tmp_path, monkeypatch, given):
    monkeypatch.setattr(trainer.Run, "train", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runs.start(toy(), "toy", make_settings(None, given), tmp_path / "run")
    path = tmp_path / "run" / "private" / "checkpoint.safetensors"
    tensors, place = trainer.load_checkpoint(path)
    del tensors["released.class_embedding"]
    trainer.save_checkpoint(path, tensors, place)
    with pytest.raises(InputError, match="does not fit this run"):
        runs.resume(toy(), tmp_path / "run", {})


def test_a_step_that_diverges_stops_the_run(tmp_path, monkeypatch):
    def diverging(*args):
        raise FloatingPointError

    monkeypatch.setattr(methods, "embedding_step", diverging)
    with pytest.raises(InputError, match="training diverged at step 0"):
        runs.start(toy(), "toy", make_settings(None, SMALL), tmp_path / "run")


def test_images_that_are_not_finite_are_refused():
    data = toy(20)
    made, statistics = config(data), released_of(data)
    rules = EmbeddingStepRules.of(
        torch.zeros(2, 200).double(), statistics.class_counts, fourier_map(made, statistics.variance), 1.0, 8
    )
    generator = build_generator(GeneratorSpec(name="mlp", latent_dim=4, width=8, channels=8), data.shape, 2)
    with torch.no_grad():
        next(generator.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError):
        embedding_step(generator, torch.optim.SGD(generator.parameters()), rules, torch.Generator())


def test_private_metrics_have_nothing_to_tell(tmp_path):
    runs.start(toy(), "toy", make_settings(None, {**SMALL, "private_metrics": True}), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    assert not (tmp_path / "run" / "private" / "metrics.jsonl").exists()


def test_rules_of_the_embedding():
    data = toy(2000)  # 2.5e-4 of noise a record
    made = resolve(make_settings(None, {}), facts_of("toy", data))
    assert isinstance(made.rules, EmbeddingRules)
    assert made.settings.sanitize is None
    assert (made.num_generated, made.privacy.num_steps, made.learning_rate) == (400, 500, 4e-3)
