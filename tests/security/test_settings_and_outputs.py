"""Hostile configurations, command lines and output paths."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dp_sinkhorn.io.errors import MAX_MESSAGE, InputError
from dp_sinkhorn.io.safe_read import parse_toml, read_bytes, shown
from dp_sinkhorn.method import config_of, make_plan, resolve, settings_of
from dp_sinkhorn.sampling.outputs import check_output
from dp_sinkhorn.settings import DataFacts

COMMAND = [sys.executable, "-c", "from dp_sinkhorn.cli import main; main()"]


@pytest.fixture
def one_line(command_line):
    """Runs a command that must fail with exit code 2 and one line on stderr; returns the line."""

    def call(*arguments: object) -> str:
        code, out, err = command_line(*arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable()
        return err

    return call


def test_messages_are_one_printable_line_of_bounded_length():
    message = str(InputError("a\n\x1b[2J\u202e\ud800" + "b" * 10**6 + "; the remedy"))
    assert message.startswith(r"a\n\x1b[2J\u202e\ud800b")
    assert message.endswith("b; the remedy")
    assert message.isprintable()
    assert len(message) == MAX_MESSAGE - 1


def test_shown_values_are_short():
    deep: object = 1
    for _ in range(10_000):
        deep = {"a": deep}
    assert len(shown(deep)) < 100
    assert len(shown("x" * 10**6)) <= 200
    assert len(shown(list(range(10**6)))) < 100
    assert shown(int("f" * 10_000, 16)) == "a number of thousands of digits"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"num_steps = " + b"9" * 5000, "is not TOML"),
        (b"num_steps = 0x" + b"f" * 10_000, "num_steps=a number of thousands of digits"),
        (b"num_steps = " + b"[" * 100_000, "nested too deeply"),
        (b"num_steps = " + b"{a=" * 100_000, "nested too deeply"),
        (b".".join([b"a"] * 2000) + b" = 1", "unknown setting"),
        (b"num_steps." + b".".join([b"a"] * 2000) + b" = 1", "num_steps="),
        (b".".join([b"a"] * 100_000) + b" = 1", "too long dotted keys"),
        (b"\xff\xfe", "is not TOML"),
        (b"settings = 3", "is not a table"),
        (b'"\\u001b[2J" = 1', r"unknown setting '\x1b[2J'"),
        (b"num_steps = nan", "num_steps="),
        (b"num_steps = 1\nnum_steps = 2", "is not TOML"),
        (b"#" * (2**22 + 1), "larger than 4194304 bytes"),
        (b"num_generated = 1000000000000", "num_generated=1000000000000"),
        (b'width = "' + b"9" * 10**5 + b'"', "width="),
    ],
)
def test_hostile_recipes_are_refused(tmp_path, refused, content, word):
    (tmp_path / "recipe.toml").write_bytes(content)
    refused(lambda: settings_of(tmp_path / "recipe.toml"), word)
    refused(lambda: config_of(tmp_path / "recipe.toml"))


def test_long_dotted_keys_are_refused_and_long_lists_accepted():
    assert len(parse_toml(b"class_prior = [" + b"0.5, " * 10_000 + b"]")["class_prior"]) == 10_000
    with pytest.raises(ValueError, match="too long"):
        parse_toml(b".".join([b"a"] * 14_200) + b" = 1")


def test_recipes_must_be_regular_files(tmp_path, refused):
    os.mkfifo(tmp_path / "a.toml")
    (tmp_path / "b.toml").symlink_to("/dev/zero")
    for path in (tmp_path / "a.toml", tmp_path / "b.toml", tmp_path):
        refused(lambda path=path: read_bytes(path, 100, "give another"), "not a regular file")
    refused(lambda: settings_of(tmp_path / "a.toml"), "not a regular file")
    refused(lambda: settings_of("x" * 5000), "neither a file nor a known recipe")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_generated", 10**12),
        ("transport_steps.num_reference", 10**12),
        ("num_steps", 10**12),
        ("expected_batch_size", 10**30),
        ("width", 10**9),
        ("channels", 10**9),
        ("latent_dim", 10**9),
        ("principal_subspace.min_dimensions", 10**9),
        ("transport_steps.potential_iterations", 10**12),
        ("learning_rate", 1e300),
        ("transport_steps.relative_reg", 1e300),
        ("transport_steps.relative_clip_norm", "inf"),
        ("transport_steps.relative_clip_norm", 0.009),
        ("transport_steps.relative_reg", 9e-5),
        ("transport_steps.rest_weight", "nan"),
        ("reading.side", 10**6),
        ("reading.class_level", 10**6),
        ("reading.label_column", "x" * 1000),
        ("seed", 10**30),
        ("test_seed", -1),
        ("device", "x" * 1000),
    ],
)
def test_settings_out_of_range_are_refused_by_name(refused, name, value):
    stage, _, key = name.rpartition(".")
    refused(lambda: settings_of(None, {stage: {key: value}} if stage else {key: value}), f"{name}=")


def test_the_memory_of_a_step_is_bounded(refused):
    facts = DataFacts(source="toy", num_records=100, shape=(3, 64, 64), class_names=("a",))
    settings = settings_of(None, {"num_generated": 50_000, "noise_multiplier": 10, "num_steps": 1})
    refused(lambda: resolve(settings, facts), "images per step", "more than 268435456 numbers", "num_generated")


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"target_epsilon": 1e308}, "above 100"),
        ({"target_delta": 1e-300}, "below 1e-13"),
        ({"num_steps": 10**8, "batch_steps": {"queries_per_step": 10**5}, "mode": "batch"}, "more than 1000000000"),
        ({"noise_multiplier": 1e-9, "num_steps": 1}, "cannot be accounted for"),
        ({"noise_multiplier": 0.02, "num_steps": 1}, "so little noise"),
        ({"noise_multiplier": 1e-9}, "noise_multiplier=1e-09"),
    ],
)
def test_impossible_plans_are_refused_before_accounting(refused, monkeypatch, facts, word):
    monkeypatch.setattr("dp_accounting.pld.PLDAccountant", None)
    refused(lambda: make_plan(settings_of(None, facts), 1000, 2), word)


def test_a_plan_for_too_many_records_is_refused(refused, monkeypatch):
    monkeypatch.setattr("dp_accounting.pld.PLDAccountant", None)
    facts = {"expected_batch_size": 1, "noise_multiplier": 1.0, "num_steps": 5}
    refused(lambda: make_plan(settings_of(None, facts), 10**30, 2), "num_records")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("num_records = 100\n", "num_records = 1000000000000000000\n", "data.num_records="),
        ("num_steps = 3\n", "num_steps = 1000000000000000000\n", "settings.num_steps="),
        ("num_generated = 16\n", "num_generated = 1000000000000\n", "settings.num_generated="),
        ("width = 8\n", "width = 1000000000\n", "settings.width="),
        ("noise_multiplier = ", "noise_multiplier = 1e-9 #", "cannot be accounted for"),
        ("learning_rate = ", "learning_rate = nan #", "learning_rate="),
        ("shape = [\n    1,", "shape = [\n    1000,", "data.shape="),
    ],
)
def test_a_configuration_with_values_out_of_range_is_refused(tmp_path, config, refused, old, new, word):
    text = config.to_toml()
    (tmp_path / "config.toml").write_text(text)
    assert config_of(tmp_path / "config.toml") == config
    assert old in text
    (tmp_path / "config.toml").write_text(text.replace(old, new))
    refused(lambda: config_of(tmp_path / "config.toml"), word)


def test_invalid_sample_commands_leave_nothing_behind(one_line, release, tmp_path):
    out = tmp_path / "s.npz"
    assert "num=1000000000000 is above 33554432 images" in one_line("sample", release, "--num", 10**12, "--out", out)
    assert "num=" in one_line("sample", release, "--num", 10**40, "--out", out)
    assert "seed=" in one_line("sample", release, "--num", 1, "--seed", 10**40, "--out", out)
    assert "seed=-1" in one_line("sample", release, "--num", 1, "--seed", -1, "--out", out)
    for label in ("9" * 50, "9" * 5000, "\x1b[2J"):
        assert "is no class of" in one_line("sample", release, "--num", 1, "--labels", label, "--out", out)
    assert r"\x1b[2J" in one_line("sample", release, "\x1b[2J", "--num", 1, "--out", out)
    assert r".\x1b" in one_line("sample", release, "--num", 1, "--out", tmp_path / "a.\x1b")
    assert list(tmp_path.iterdir()) == []


def test_existing_outputs_of_any_kind_are_kept(refused, tmp_path):
    (tmp_path / "link.npz").symlink_to(tmp_path / "elsewhere.npz")
    (tmp_path / "link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.npz")
    for name in ("link.npz", "link", "pipe.npz"):
        refused(lambda name=name: check_output(tmp_path / name), "exists already")
    refused(lambda: check_output(Path("/dev/null")), "exists already")
    refused(lambda: check_output(Path("/dev/full")), "exists already")
    refused(lambda: check_output(Path("/dev/null/a.npz")), "does not exist")
    refused(lambda: check_output(tmp_path / ("x" * 5000)), "File name too long")
    assert not (tmp_path / "elsewhere.npz").exists()


def test_an_unwritable_output_gives_one_line(one_line, release):
    assert "cannot write /proc/s.npz" in one_line("sample", release, "--num", 1, "--out", "/proc/s.npz")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_gives_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: cannot read or write: No space left on device"]
