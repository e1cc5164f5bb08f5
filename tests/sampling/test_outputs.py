"""Every output format holds the same images, is written in chunks, and appears complete or not at all."""

import hashlib
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dp_sinkhorn.data import load_synthetic
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.sampling import draw as sampling
from dp_sinkhorn.sampling.draw import Draws, draw, sample
from dp_sinkhorn.sampling.outputs import check_output

FORMATS = ["s.npz", "s.parquet", "s", "s.png"]
NUM = 2345  # two whole chunks and a part


@pytest.fixture
def drawn(make_card):
    def call(num: int = NUM, labels=None, seed: int = 5, **changes) -> Draws:
        card = make_card(**changes)
        return draw(card, build_generator(card.generator, card.image_shape, len(card.class_names)), num, labels, seed)

    return call


def written(draws: Draws, path: Path) -> Path:
    check_output(path)(draws)
    return path


def test_chunks_give_the_same_images_as_one_pass(drawn):
    # The order of the first version: all labels shuffled, then all latents.
    draws = drawn()
    random = torch.Generator().manual_seed(5)
    assert float((draws.counts - NUM * torch.tensor([0.5, 0.3, 0.2])).abs().max()) < 1
    labels = torch.arange(3).repeat_interleave(draws.counts)[torch.randperm(NUM, generator=random)]
    with torch.no_grad():
        images = draws.generator(torch.rand(NUM, 4, generator=random), labels)
    found = sample(draws.card, draws.generator, NUM, seed=5)
    assert found.labels.tolist() == labels.tolist()
    # A matrix product of all rows may round differently from one of a hundred.
    expected = ((images + 1) * 127.5).round().to(torch.int16)
    assert (found.pixels.flatten(1).to(torch.int16) - expected).abs().max() <= 1
    assert (found.pixels.flatten(1) == expected).double().mean() > 0.999


def test_a_balanced_draw_has_equal_numbers_of_all_classes(drawn):
    made = drawn()
    assert made.counts.tolist() != [100, 100, 100]
    for num, labels, counts in ((300, None, [100, 100, 100]), (301, [2, 0], [151, 0, 150])):
        found = draw(made.card, made.generator, num, labels, seed=5, balanced=True).counts
        assert sorted(found.tolist()) == sorted(counts)
        assert int(found[1]) == counts[1]


@pytest.mark.parametrize("chunk", [100, 700])
def test_the_chunk_size_does_not_change_the_images(drawn, monkeypatch, chunk):
    draws = drawn()
    whole = sample(draws.card, draws.generator, NUM, seed=5)
    monkeypatch.setattr(sampling, "_CHUNK", chunk)
    again = sample(draws.card, draws.generator, NUM, seed=5)
    assert torch.equal(whole.pixels, again.pixels)
    assert torch.equal(whole.labels, again.labels)


@pytest.mark.parametrize("shape", [(1, 8, 9), (3, 8, 8)])
def test_every_format_holds_the_same_images(drawn, tmp_path, shape):
    draws = drawn(1203, image_shape=shape)
    expected = torch.cat([chunk.pixels for chunk in draws])
    labels = torch.cat([chunk.labels for chunk in draws])
    for name in ("s.npz", "s.parquet"):
        found = load_synthetic(written(draws, tmp_path / name))
        assert found.class_names == ("cat", "dog", "emu")
        assert torch.equal(found.pixels, expected)
        assert torch.equal(found.labels, labels)
    written(draws, tmp_path / "s")
    for number in (0, 999, 1000, 1202):
        with Image.open(tmp_path / "s" / draws.card.class_names[labels[number]] / f"{number:06d}.png") as image:
            assert np.array_equal(np.asarray(image), np.moveaxis(expected[number].numpy(), 0, -1).squeeze())
    assert len(list((tmp_path / "s").rglob("*.png"))) == 1203


def test_numpy_reads_the_archive_and_equal_draws_give_equal_files(drawn, tmp_path):
    files = [written(drawn(), tmp_path / f"{index}.npz") for index in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    with np.load(files[0], allow_pickle=False) as arrays:
        assert (arrays["images"].shape, arrays["images"].dtype) == ((NUM, 8, 9), np.uint8)
        assert arrays["labels"].dtype == np.int64
        assert arrays["class_names"].tolist() == ["cat", "dog", "emu"]


@pytest.mark.parametrize("name", FORMATS)
def test_writers_hold_at_most_two_chunks_in_memory(drawn, tmp_path, alive_chunks, name):
    written(drawn(2000), tmp_path / name)
    assert len(alive_chunks) == 20 or name == "s.png"
    assert max(alive_chunks) <= 2


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_writer_leaves_nothing(drawn, tmp_path, monkeypatch, name, error):
    real = Draws.__iter__

    def broken(self):
        yield from [next(iter(real(self)))]
        raise error

    monkeypatch.setattr(sampling, "_CHUNK", 10)
    monkeypatch.setattr(Draws, "__iter__", broken)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        written(drawn(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_output_left_by_a_killed_process_is_replaced(drawn, tmp_path, name):
    path = tmp_path / name
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    if path.suffix:
        partial.write_bytes(b"torn")
    else:
        (partial / "cat").mkdir(parents=True)
        (partial / "cat" / "000000.png").write_bytes(b"torn")
    written(drawn(60), path)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_grid_draws_no_more_than_it_shows(drawn, tmp_path, monkeypatch):
    made = []
    real = Draws.__iter__
    monkeypatch.setattr(Draws, "__iter__", lambda self: (made.append(1) or chunk for chunk in real(self)))
    written(drawn(50_000), tmp_path / "s.png")
    assert len(made) == 1
    with Image.open(tmp_path / "s.png") as grid:
        # Two rows per class of twenty images of 8x9 pixels with lines, enlarged six times.
        assert grid.size == (20 * 10 * 6, 6 * 9 * 6)
        first = next(iter(drawn(50_000)))
        cat = first.pixels[first.labels == 0][0, 0]
        assert np.array_equal(np.asarray(grid)[: 8 * 6 : 6, : 9 * 6 : 6], cat.numpy())


def test_only_the_given_labels_are_drawn(drawn, tmp_path):
    found = load_synthetic(written(drawn(50, labels=[1, 2]), tmp_path / "s.parquet"))
    assert torch.bincount(found.labels).tolist() == [0, 30, 20]


def test_too_few_and_too_many_images_are_refused(drawn):
    for num in (0, -1, 2**31):
        with pytest.raises(InputError, match=f"num={num}"):
            drawn(num)


def test_class_names_that_are_not_file_names_become_numbers(drawn, tmp_path):
    hostile = [("a", "A", "b"), ("..", "x", "y"), ("a/b", "x", "y"), ("a ", "x", "1")]
    for index, names in enumerate(hostile):
        written(drawn(20, class_names=names), tmp_path / f"f{index}")
        assert sorted(path.name for path in (tmp_path / f"f{index}").iterdir()) == ["0", "1", "2"]
    assert len(list(tmp_path.iterdir())) == 4


def test_datasets_loads_the_parquet_file(drawn, tmp_path):
    names = ('say "no"', "ε, δ", "emu")
    draws = drawn(1100, class_names=names)
    path = written(draws, tmp_path / "s.parquet")
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)
    for dataset in (loaded, datasets.Dataset.from_parquet(str(path), cache_dir=cache)):
        assert dataset.features["label"].names == list(names)
        assert isinstance(dataset.features["image"], datasets.Image)
        assert len(dataset) == 1100
        pixels = torch.cat([chunk.pixels for chunk in draws])
        for number in (0, 1099):
            assert np.array_equal(np.asarray(dataset[number]["image"]), pixels[number, 0].numpy())
        assert dataset["label"][:] == torch.cat([chunk.labels for chunk in draws]).tolist()


def test_the_parquet_file_holds_its_privacy_facts(drawn, tmp_path):
    draws = drawn(10)
    metadata = pq.read_schema(written(draws, tmp_path / "s.parquet")).metadata
    facts = json.loads(metadata[b"dp_sinkhorn"])
    assert (facts["private"], facts["epsilon"], facts["delta"]) == (True, 9.987654321, 1e-5)
    assert facts["card_sha256"] == hashlib.sha256(draws.card.to_json().encode()).hexdigest()
    assert "(9.988, 1e-05)-differentially private" in facts["note"]


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pyarrow, which is not installed; .* -c constraints.txt '\.\[datasets\]'"):
        check_output(tmp_path / "s.parquet")
