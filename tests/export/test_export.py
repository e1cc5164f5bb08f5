"""The ONNX file makes the release's images and holds its card, but nothing about the machine that wrote it."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from dp_sinkhorn.data import load_synthetic
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.spec import DEFAULT_SIZES
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.extras import how_to_install
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.release.export import METADATA, as_onnx
from dp_sinkhorn.release.weights import CARD, WEIGHTS, load_release

ROOT = Path(__file__).parents[2]
VERSION_1 = ROOT / "tests" / "files" / "version_1"
KINDS = ["conv", "mlp", "dcgan", "resnet"]
SMALL = {"latent_dim": 6, "width": 16, "channels": 8}
TUNED = {"latent_choice": True, "affine_dimensions": 5, "texture_channels": 3}


@pytest.fixture
def make_release(tmp_path, make_card):
    """A release in which no tensor has its initial value."""

    def call(**changes) -> Path:
        card = make_card(**changes)
        generator = build_generator(card.generator, card.image_shape, len(card.class_names), seed=1)
        random = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, tensor in generator.state_dict().items():
                if tensor.is_floating_point():
                    noise = 0.1 * torch.randn(tensor.shape, generator=random)
                    tensor.add_(noise.abs() if name.endswith("running_var") else noise)
        weights = save({name: tensor.contiguous() for name, tensor in generator.state_dict().items()})
        folder = tmp_path / "release"
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(weights)
        card = card.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
        (folder / CARD).write_text(card.to_json(), encoding="utf-8")
        return folder

    return call


def opened(content: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("layers", [{}, TUNED], ids=["bare", "tuned"])
@pytest.mark.parametrize("name", KINDS)
def test_onnxruntime_makes_the_same_images_as_the_release(make_release, name, layers):
    # Grey with odd sides, or RGB.
    shape = (3, 8, 12) if layers else (1, 9, 11)
    release = make_release(generator={"name": name, **SMALL, **layers}, image_shape=shape)
    _, generator = load_release(release, STAGES)
    network = as_onnx(release, STAGES)
    onnx.checker.check_model(onnx.load_from_string(network.content), full_check=True)
    session = opened(network.content)
    assert network.latent_dim == generator.latent_dim
    assert [(entry.name, entry.type, entry.shape) for entry in (*session.get_inputs(), *session.get_outputs())] == [
        ("latent", "tensor(float)", ["n", generator.latent_dim]),
        ("label", "tensor(int64)", ["n"]),
        ("image", "tensor(float)", ["n", *shape]),
    ]
    random = torch.Generator().manual_seed(3)
    for num in (0, 1, 2, 130):
        latents = torch.rand(num, generator.latent_dim, generator=random)
        labels = torch.randint(3, (num,), generator=random)
        with torch.no_grad():
            expected = ((generator(latents, labels) + 1) / 2).view(num, *shape).numpy()
        (found,) = session.run(None, {"latent": latents.numpy(), "label": labels.numpy()})
        assert (found.shape, found.dtype) == ((num, *shape), np.float32)
        assert np.allclose(found, expected, rtol=0, atol=1e-4)
        assert not num or (found.min() >= 0 and found.max() <= 1 and found.std() > 0.01)
    assert session.get_modelmeta().custom_metadata_map[METADATA] == (release / CARD).read_text(encoding="utf-8")


def test_a_release_of_one_class_is_exported(make_release):
    prior = {"how": "declared", "shares": (1.0,), "epsilon_alone": 0.0}
    spec = {"name": "mlp", **SMALL}
    release = make_release(generator=spec, class_names=("all",), class_prior=prior)
    session = opened(as_onnx(release, STAGES).content)
    (found,) = session.run(None, {"latent": np.zeros((4, 6), np.float32), "label": np.zeros(4, np.int64)})
    assert found.shape == (4, 1, 8, 9)


def test_the_file_is_reproducible_and_names_no_machine(make_release):
    release = make_release(generator={"name": "mlp", **SMALL, **TUNED})
    content = as_onnx(release, STAGES).content
    for word in (str(ROOT), str(release), "site-packages", sys.prefix, ".py", "test_"):
        assert word.encode() not in content, word
    assert as_onnx(release, STAGES).content == content


def test_the_command_prints_exactly_one_json_object(make_release, tmp_path):
    release = make_release(class_names=("kåt", "dog", "emu"))
    file = tmp_path / "g.onnx"
    command = [sys.executable, "-c", "from dp_sinkhorn.cli import main; main()"]
    done = subprocess.run([*command, "export", release, "--onnx", file, "--json"], capture_output=True, check=True)
    assert done.stderr == b""
    assert json.loads(done.stdout) == {
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "latent_dim": 4,
        "image_shape": [1, 8, 9],
        "class_names": ["kåt", "dog", "emu"],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.onnx", "release"]


def test_exporting_a_run_that_is_not_private_warns(make_release, command_line, tmp_path):
    release = make_release(private=False)
    code, out, err = command_line("export", release, "--onnx", tmp_path / "g.onnx")
    assert code == 0
    assert "cat, dog, emu" in out
    assert err.startswith("warning: NOT PRIVATE")
    assert len(err.splitlines()) == 1


def test_the_program_of_the_document_draws_images(make_release, command_line, tmp_path, monkeypatch):
    for shape in ((1, 8, 9), (3, 8, 9)):
        folder = tmp_path / str(shape[0])
        folder.mkdir()
        monkeypatch.chdir(folder)
        release = make_release(image_shape=shape, generator={"name": "mlp", **SMALL})
        assert command_line("export", release, "--onnx", "generator.onnx")[0] == 0
        (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / "export.md").read_text(), re.DOTALL)
        exec(compile(program, "export.md", "exec"), {})  # noqa: S102
        made = load_synthetic(Path("images.npz"))
        assert made.class_names == ("cat", "dog", "emu")
        assert made.pixels.shape == (1000, *shape)
        assert torch.allclose(torch.bincount(made.labels) / 1000, torch.tensor([0.5, 0.3, 0.2]), atol=0.06)
        with Image.open("first.png") as picture:
            rows = [image.movedim(0, -1).squeeze(-1).numpy() for image in made.pixels[:10]]
            assert np.array_equal(np.asarray(picture), np.concatenate(rows, axis=1))
        release.rename(folder / "release")


def test_old_releases_with_wrappers_are_refused(command_line, tmp_path):
    for mode in ("record", "embedding"):
        code, out, err = command_line("export", VERSION_1 / mode, "--onnx", tmp_path / "g.onnx")
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "is a release of version 1" in err
        assert "train a new run with this version" in err
    assert list(tmp_path.iterdir()) == []


def test_an_old_release_of_a_plain_network_is_exported():
    _, generator = load_release(VERSION_1 / "batch", STAGES)
    latents, labels = torch.rand(3, generator.latent_dim), torch.zeros(3, dtype=torch.int64)
    session = opened(as_onnx(VERSION_1 / "batch", STAGES).content)
    (found,) = session.run(None, {"latent": latents.numpy(), "label": labels.numpy()})
    with torch.no_grad():
        assert np.allclose(found.reshape(3, -1), (generator(latents, labels) + 1) / 2, rtol=0, atol=1e-4)


@pytest.mark.parametrize("module", ["onnx", "onnxscript"])
def test_without_the_extra_the_error_says_what_to_install(command_line, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    code, out, err = command_line("export", VERSION_1 / "batch", "--onnx", tmp_path / "g.onnx")
    assert (code, out) == (2, "")
    assert err == f"error: an ONNX file needs {module}, which is not installed; {how_to_install('onnx')}\n"


def test_bad_paths_and_damaged_releases_are_refused(make_release, command_line, tmp_path):
    def refused(release: Path, file: Path) -> str:
        code, out, err = command_line("export", release, "--onnx", file)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        return err

    release, file = make_release(), tmp_path / "g.onnx"
    assert "ends in '.pt'; give an .onnx file" in refused(release, tmp_path / "g.pt")
    assert "does not exist; create it first" in refused(release, tmp_path / "no" / "g.onnx")
    assert "none does not exist; check the path" in refused(tmp_path / "none", file)
    file.write_bytes(b"kept")
    assert "exists already" in refused(release, file)
    assert file.read_bytes() == b"kept"
    (tmp_path / "folder.onnx").mkdir()
    assert "exists already" in refused(release, tmp_path / "folder.onnx")
    (release / WEIGHTS).write_bytes(b"damaged")
    assert "SHA-256 differs" in refused(release, tmp_path / "h.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.onnx", "g.onnx", "release"]


def test_a_full_disk_leaves_no_file(make_release, command_line, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    release = make_release()
    monkeypatch.setattr("os.fsync", full)
    code, _, err = command_line("export", release, "--onnx", tmp_path / "g.onnx")
    assert code == 2
    assert "No space left on device; give a path with room" in err
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_card_in_another_encoding_is_refused(make_release):
    release = make_release()
    card = release / CARD
    card.write_text(card.read_text(encoding="utf-8"), encoding="utf-16")
    with pytest.raises(InputError, match="not UTF-8"):
        as_onnx(release, STAGES)


def test_the_export_tests_cover_every_kind_of_generator():
    assert set(KINDS) == set(DEFAULT_SIZES)
