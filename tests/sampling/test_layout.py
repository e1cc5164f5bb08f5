"""Folders in the layout of other programs hold the images of all other formats."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.sampling.draw import Draws, draw
from dp_sinkhorn.sampling.outputs import check_output

RELEASE = Path(__file__).parents[1] / "files" / "version_1" / "batch"


@pytest.fixture
def drawn(make_card):
    def call(num: int = 2345, labels=None, **changes) -> Draws:
        card = make_card(**changes)
        generator = build_generator(card.generator, card.image_shape, len(card.class_names))
        return draw(card, generator, num, labels, seed=5)

    return call


@pytest.mark.parametrize("shape", [(1, 8, 9), (3, 8, 8)])
def test_dpimagebench_finds_the_images_and_labels(drawn, tmp_path, shape):
    draws, path = drawn(image_shape=shape), tmp_path / "mnist_28_eps10.0-mine"
    check_output(path, "dpimagebench")(draws)
    assert [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()] == ["gen/gen.npz"]
    with np.load(path / "gen" / "gen.npz", allow_pickle=False) as arrays:
        x, y, facts = arrays["x"], arrays["y"], json.loads(str(arrays["privacy"]))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((2345, *shape), np.float32, (2345,), np.int64)
    assert 0 <= x.min() < x.max() <= 1
    pixels = torch.cat([chunk.pixels for chunk in draws])
    assert np.array_equal(y, torch.cat([chunk.labels for chunk in draws]).numpy())
    # The benchmark's conversion before Inception, and its count of classes.
    assert torch.equal((torch.from_numpy(x) * 255.0).to(torch.uint8), pixels)
    assert len(set(y)) == 3
    assert facts["epsilon"] == draws.card.epsilon


def test_every_byte_survives_the_benchmark_s_truncation():
    bytes_ = np.arange(256, dtype=np.uint8)
    x = torch.from_numpy(bytes_.astype(np.float32) / np.float32(255))
    assert np.array_equal((x * 255.0).to(torch.uint8).numpy(), bytes_)


def test_equal_draws_give_equal_layouts(drawn, tmp_path):
    for name in ("a", "b"):
        check_output(tmp_path / name, "dpimagebench")(drawn(300))
    first, second = (tmp_path / name / "gen" / "gen.npz" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_the_layout_holds_at_most_two_chunks_in_memory(drawn, tmp_path, alive_chunks):
    check_output(tmp_path / "s", "dpimagebench")(drawn(2000))
    assert len(alive_chunks) == 20
    assert max(alive_chunks) <= 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_layout_leaves_nothing(drawn, tmp_path, monkeypatch, error):
    def broken(self):
        raise error

    monkeypatch.setattr(Draws, "__iter__", broken)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        check_output(tmp_path / "s.0", "dpimagebench")(drawn())
    assert list(tmp_path.iterdir()) == []


def test_a_layout_left_by_a_killed_process_is_replaced(drawn, tmp_path):
    (tmp_path / ".s.partial" / "gen").mkdir(parents=True)
    (tmp_path / ".s.partial" / "gen" / "gen.npz").write_bytes(b"torn")
    (tmp_path / "s").mkdir()  # an empty folder is filled
    check_output(tmp_path / "s", "dpimagebench")(drawn(60))
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_invalid_layouts_are_refused(drawn, tmp_path):
    with pytest.raises(InputError, match="layout 'cifar' is not known; give dpimagebench"):
        check_output(tmp_path / "s", "cifar")
    for name in ("s.npz", "s.png", "s.parquet"):
        with pytest.raises(InputError, match=r"is a folder, and .* give a folder"):
            check_output(tmp_path / name, "dpimagebench")
    (tmp_path / "taken" / "gen").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        check_output(tmp_path / "taken", "dpimagebench")
    write = check_output(tmp_path / "s", "dpimagebench")
    for draws, label in ((drawn(300, labels=[0, 2]), 1), (drawn(2), 2)):
        with pytest.raises(InputError, match=f"gives no image of class {label}"):
            write(draws)
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_the_command_line_accepts_a_layout(command_line, tmp_path):
    out = tmp_path / "s"
    code, _, err = command_line("sample", RELEASE, "--num", 40, "--out", out, "--layout", "dpimagebench")
    assert code == 0, err
    with np.load(out / "gen" / "gen.npz", allow_pickle=False) as arrays:
        assert len(arrays["x"]) == len(arrays["y"]) == 40
    code, _, err = command_line("sample", RELEASE, "--num", 40, "--out", tmp_path / "t", "--layout", "folder")
    assert (code, err) == (2, "error: layout 'folder' is not known; give dpimagebench\n")
    code, _, err = command_line(
        "sample", RELEASE, "--num", 40, "--out", tmp_path / "t", "--layout", "dpimagebench", "--labels", 1
    )
    assert code == 2
    assert err.startswith("error: num=40 gives no image of class 0")
    assert len(err.splitlines()) == 1
