"""Hostile releases: invalid cards and weights are refused in one line, before they cost memory or time."""

import hashlib
import json
import math
import os
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from scipy.stats import norm

from dp_sinkhorn import DPSinkhorn, verify
from dp_sinkhorn.generators.build import MAX_PARAMETERS, build_generator, empty_generator
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.privacy.accounting import Charge, check_analysable, epsilons
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.weights import find_release, load_release


@pytest.fixture
def copy(release, tmp_path) -> Path:
    return shutil.copytree(release, tmp_path / "copy")


def change(folder: Path, **facts: Any) -> Path:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **facts}))
    return folder


def put_weights(folder: Path, content: bytes) -> Path:
    (folder / "weights.safetensors").write_bytes(content)
    return change(folder, weights_sha256=hashlib.sha256(content).hexdigest())


def test_the_release_of_these_tests_is_valid(copy):
    result = verify(copy)
    assert result.problems == ()
    assert DPSinkhorn.load(copy).sample(3)[0].shape == (3, 8, 8)
    put_weights(copy, (copy / "weights.safetensors").read_bytes())
    assert verify(copy).ok


STEP = {"name": "transport_steps", "noise_multiplier": 2.0, "sample_rate": 0.5, "count": 3}


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"num_records": 10**18}, "num_records"),
        ({"num_records": -1}, "num_records"),
        ({"num_steps": 10**30}, "num_steps"),
        ({"epsilon": "1e999"}, "epsilon"),
        ({"sample_rate": 0.0}, "sample_rate"),
        ({"image_shape": [3, 10**6, 10**6]}, "image_shape"),
        ({"image_shape": [2, 8, 8]}, "image_shape"),
        ({"image_shape": [1, 8, 4]}, "image_shape"),
        ({"generator": {"name": "mlp", "latent_dim": 1, "width": 10**9, "channels": 1}}, "generator.width"),
        ({"generator": {"name": "__import__", "latent_dim": 1, "width": 1, "channels": 1}}, "generator.name"),
        ({"class_names": ["a", "a"]}, "repeat"),
        ({"class_names": ["a"]}, "for 1 classes"),
        ({"class_names": []}, "class_names"),
        ({"class_names": ["a", "\ud800"]}, "class_names"),
        ({"class_names": ["a", "\x1b[2J"]}, "cannot be printed"),
        ({"class_names": ["a", "\u202eevil"]}, "cannot be printed"),
        ({"class_names": ["a", "b" * 200]}, "class_names.1"),
        ({"accountant": "\x1b]0;owned\x07"}, "accountant"),
        ({"warnings": ["a\nb"]}, "warnings"),
        ({"tuning": "x" * 10_000}, "tuning"),
        ({"class_prior": {"how": "declared", "shares": [1e308, 1e308], "epsilon_alone": 0}}, "class_prior"),
        ({"class_prior": {"how": "declared", "shares": [0.2, 0.2], "epsilon_alone": 0}}, "sum 0.4"),
        ({"charges": [STEP] * 5000}, "charges"),
        ({"charges": [{**STEP, "count": 10**10}]}, "charges.0.count"),
        ({"charges": [{**STEP, "noise_multiplier": -1.0}]}, "noise_multiplier"),
        ({"charges": [{**STEP, "name": "\x1b[31m"}]}, "charges.0.name"),
        ({"weights_sha256": "../../etc"}, "weights_sha256"),
        ({"card_version": 4}, "card_version"),
        ({"card_version": 1}, "not facts of version 1"),
        ({"stages": [{"name": "class_counts"}] * 51}, "stages"),
        ({"stages": [{"name": "\x1b[31m"}]}, "stages.0.name"),
        ({"stages": [{"name": "class_counts", "\x1b[31m": 1}]}, "stages.0"),
        ({"stages": [{"name": "class_counts", "note": "a\nb"}]}, "stages.0.facts.note"),
        ({"stages": [{"name": "class_counts", "note": "x" * 3000}]}, "stages.0.facts.note"),
        ({"stages": [{"name": "class_counts"}, {"name": "class_counts"}]}, "a stage twice"),
        ({"stages": [{"facts": {}}]}, "stages.0.name"),
        ({"stages": "class_counts"}, "stages"),
        ({"x" * 10_000: 1}, "xxx"),
    ],
)
def test_invalid_facts_of_a_card_are_refused(copy, refused, facts, word):
    change(copy, **facts)
    for call in (lambda: load_release(copy, STAGES), lambda: verify(copy)):
        refused(call, "not a valid card", word)


@pytest.mark.parametrize(
    ("charge", "word"),
    [
        ({"noise_multiplier": 1e-300}, "noise_multiplier=1e-300 cannot be accounted for"),
        ({"noise_multiplier": 1e300}, "noise_multiplier=1e+300 cannot be accounted for"),
        ({"noise_multiplier": 0.02, "sample_rate": 1e-5}, "so little noise"),
        ({"noise_multiplier": 0.01, "count": 1}, "so little noise"),
        ({"noise_multiplier": 1.0, "count": 10**9}, "at most 10000000"),
        ({"noise_multiplier": 1.0, "sample_rate": 1.0, "count": 10**9}, "hide nothing"),
        ({"sample_rate": 1e-300}, "sample_rate=1e-300 cannot be accounted for"),
    ],
)
def test_charges_that_cannot_be_accounted_for_are_refused_early(copy, refused, monkeypatch, charge, word):
    # The tight accountant would take minutes or hundreds of GiB, so it must not run.
    monkeypatch.setattr("dp_accounting.pld.PLDAccountant", None)
    # verify computes a separate ε for the charge of the counts.
    for name in ("transport_steps", "class_counts"):
        change(copy, charges=[{**STEP, **charge, "name": name}])
        result = verify(copy)
        assert not result.ok
        assert word in result.problems[0]
        assert result.epsilon_pld is None


def test_too_many_charges_and_kinds_of_charges_are_refused(refused, monkeypatch):
    monkeypatch.setattr("dp_accounting.pld.PLDAccountant", None)
    half = Charge(name="transport_steps", noise_multiplier=1e4, count=6 * 10**8)
    refused(lambda: epsilons([half, half], 1e-5), "more than 1000000000 times")
    kinds = [Charge(name="steps", noise_multiplier=100.0 + number, sample_rate=0.5) for number in range(33)]
    refused(lambda: epsilons(kinds, 1e-5), "33 kinds")
    refused(lambda: epsilons(kinds[:1], 1e-300), "delta=1e-300")


def test_the_charges_of_real_runs_can_be_accounted_for(config):
    # The paper's longest run, the largest target, one pass over a million records, and the smallest useful noise.
    check_analysable(
        [Charge(name="transport_steps", noise_multiplier=1.1, sample_rate=50 / 60_000, count=20_000 * 64)], 1e-5
    )
    check_analysable([Charge(name="transport_steps", noise_multiplier=0.5, sample_rate=1e-6, count=10**6)], 1e-7)
    check_analysable([Charge(name="class_counts", noise_multiplier=1e8)], 1e-10)
    check_analysable(config.plan.charges, 1e-5)
    # The exact δ of one Gaussian release at the reported ε (Balle and Wang 2018, theorem 8).
    mu, epsilon = 2.0, epsilons([Charge(name="transport_steps", noise_multiplier=0.5)], 1e-5).pld
    delta = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(1e-5, rel=0.01)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"epsilon": 1, "epsilon": 10}', "'epsilon' is given twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 100_000, "not a valid card"),
        (b"\xff\xfe\0", "not a valid card"),
        (b"", "not a valid card"),
        (b"[]", "not a valid card"),
        (b"null", "not a valid card"),
        (b'"\\ud800"', "not a valid card"),
        (b" " * (2**22 + 1), "larger than 4194304 bytes"),
    ],
)
def test_non_strict_json_is_refused(copy, refused, content, word):
    (copy / "card.json").write_bytes(content)
    refused(lambda: verify(copy), word)


def test_a_card_with_repeated_keys_is_refused(copy, refused):
    text = (copy / "card.json").read_text()
    (copy / "card.json").write_text(text.replace('"epsilon":', '"epsilon": 0.1, "epsilon":', 1))
    refused(lambda: verify(copy), "given twice")


@pytest.mark.parametrize("name", ["conv", "mlp", "dcgan", "resnet"])
def test_a_huge_generator_is_refused_without_allocating_it(copy, refused, name):
    spec = {"name": name, "latent_dim": 4096, "width": 65536, "channels": 4096}
    change(copy, generator=spec, image_shape=[3, 64, 64])
    refused(lambda: load_release(copy, STAGES), "does not fit its card")
    tracemalloc.start()
    try:
        refused(
            lambda: build_generator(GeneratorSpec(**spec), (3, 64, 64), 10_000),
            "width=65536",
            f"more than {MAX_PARAMETERS}",
        )
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["conv", "mlp", "dcgan", "resnet"])
def test_an_empty_generator_has_the_real_shapes_and_draws_nothing(name):
    spec = GeneratorSpec(name=name, latent_dim=3, width=8, channels=8)
    before = torch.get_rng_state()
    empty = empty_generator(spec, (3, 9, 16), 5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    real = build_generator(spec, (3, 9, 16), 5).state_dict()
    assert {n: (t.shape, t.dtype) for n, t in empty.items()} == {n: (t.shape, t.dtype) for n, t in real.items()}
    assert all(tensor.is_meta for tensor in empty.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(copy, refused, value):
    tensors = {key: value.clone() for key, value in load_file(copy / "weights.safetensors").items()}
    name = sorted(tensors)[1]
    tensors[name].view(-1)[-1] = value
    put_weights(copy, save(tensors))
    refused(lambda: load_release(copy, STAGES), name, "not finite")
    refused(lambda: DPSinkhorn.load(copy), "not finite")
    result = verify(copy)
    assert not result.ok
    assert "not finite" in result.problems[0]


def test_weights_of_other_names_shapes_or_types_are_refused(copy, refused):
    # Copies: `load_file` maps the file, which is overwritten below.
    right = {key: value.clone() for key, value in load_file(copy / "weights.safetensors").items()}
    name = sorted(right)[0]
    for wrong in (
        {**right, "more": torch.zeros(1)},
        {key: value for key, value in right.items() if key != name},
        {**right, name: right[name].double()},
        {**right, name: right[name].to(torch.complex64)},
        {**right, name: right[name][..., :-1].contiguous()},
        {},
    ):
        put_weights(copy, save(wrong))
        refused(lambda: load_release(copy, STAGES), "does not fit its card")


def tensor_file(header: bytes, payload: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + payload


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        tensor_file(b"{}", length=2**63),
        tensor_file(b"{}", length=2**30),
        tensor_file(b"{" * 1000),
        tensor_file(b'{"a":' * 1000),
        tensor_file(b"\xff" * 8),
        tensor_file(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(8)),
        tensor_file(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}', bytes(16)),
        tensor_file(b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}}'),
        tensor_file(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
            bytes(12),
        ),
        tensor_file(b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', bytes(1)),
        tensor_file(b'{"a":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[0,2]}}', bytes(2)),
        tensor_file(b'{"a":{"dtype":"X","shape":[2],"data_offsets":[0,2]}}', bytes(2)),
        b"\x80\x04\x95pickle",
    ],
)
def test_damaged_weights_are_refused(copy, refused, content):
    put_weights(copy, content)
    refused(lambda: load_release(copy, STAGES), "give an undamaged release")


def test_a_long_header_is_refused_before_it_is_parsed(copy, refused, monkeypatch):
    monkeypatch.setattr("dp_sinkhorn.release.weights.load", None)
    put_weights(copy, tensor_file(b" " * (2**20 + 1)))
    refused(lambda: load_release(copy, STAGES), "header of more than 1048576 bytes")


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
def test_devices_and_pipes_in_a_release_are_refused_unread(copy, refused, name):
    # /dev/zero has size 0 and never ends; a pipe blocks.
    (copy / name).unlink()
    (copy / name).symlink_to("/dev/zero")
    refused(lambda: load_release(copy, STAGES), "regular file" if name == "weights.safetensors" else "neither a run")
    (copy / name).unlink()
    os.mkfifo(copy / name)
    refused(lambda: load_release(copy, STAGES), "regular file" if name == "weights.safetensors" else "neither a run")


def test_links_to_valid_files_are_accepted(copy, tmp_path):
    # The cache of a hub stores releases like this; the card's hash verifies the file.
    for name in ("weights.safetensors", "card.json"):
        (copy / name).rename(tmp_path / name)
        (copy / name).symlink_to(tmp_path / name)
    assert verify(copy).ok


def test_saving_a_loaded_release_copies_no_other_files(copy, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (copy / "README.md").unlink()
    (copy / "README.md").symlink_to(tmp_path / "secret")
    (copy / "more.txt").symlink_to(tmp_path / "secret")
    (copy / "folder").mkdir()
    os.mkfifo(copy / "pipe")
    DPSinkhorn.load(copy).save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "card.json",
        "weights.safetensors",
    ]
    assert "secret" not in (tmp_path / "saved" / "README.md").read_text()
    assert verify(tmp_path / "saved").ok


def test_invalid_paths_are_refused(refused):
    refused(lambda: find_release(Path("x" * 5000)), "File name too long")
    refused(lambda: PrivacyCard.from_file(Path("a\0b")), r"a\x00b")
