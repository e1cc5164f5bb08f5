"""Signatures: signed releases verify, also with OpenSSL; alterations and wrong keys are reported."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dp_sinkhorn import DPSinkhorn, verify
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.release.sign import Signed, sign_release
from dp_sinkhorn.release.signature import fingerprint, is_signed_by, load_private_key, load_public_key, sign_card
from support.small_release import RECORD, make_run

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
# RFC 8032, section 7.1, test 2: the secret key and its public key.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")


def sign(run: Path, key: Path, passphrase: Callable[[], str | None] = lambda: None) -> Signed:
    return sign_release(run, key, STAGES, passphrase)


def write_keys(folder: Path, name: str, key: Ed25519PrivateKey, passphrase: bytes | None = None) -> tuple[Path, Path]:
    protection = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(PEM, PKCS8, protection))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", **RECORD)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def keys(tmp_path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "mine", Ed25519PrivateKey.from_private_bytes(SECRET))


def test_a_signed_release_is_valid_for_its_key_only(run, keys, tmp_path):
    private, public = keys
    signed = sign(run, private)
    assert signed.path == run / "release" / "card.sig"
    assert signed.warning is None
    assert sorted(path.name for path in (run / "release").iterdir()) == [
        "README.md",
        "card.json",
        "card.sig",
        "weights.safetensors",
    ]
    result = verify(run, public_key=public)
    assert result.ok
    assert result.signature == "valid"
    result = verify(run)
    assert result.ok
    assert result.signature == "not checked"
    _, other = write_keys(tmp_path, "other", Ed25519PrivateKey.generate())
    result = verify(run, public_key=other)
    assert not result.ok
    assert result.signature == "invalid"
    assert "is not a signature of" in result.problems[0]


def test_the_signature_is_ed25519_of_a_prefix_and_the_card_s_bytes(run, keys):
    sign(run, keys[0])
    raw = base64.b64decode((run / "release" / "card.sig").read_bytes())
    card = (run / "release" / "card.json").read_bytes()
    expected = Ed25519PrivateKey.from_private_bytes(SECRET).sign(b"dp-sinkhorn card v1\n" + card)
    assert raw == expected
    assert load_public_key(keys[1]).public_bytes_raw() == PUBLIC


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_makes_the_keys_and_confirms_the_signature(run, tmp_path):
    def openssl(*arguments: object) -> str:
        command = ["openssl", *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "private.pem")
    openssl("pkey", "-in", "private.pem", "-pubout", "-out", "public.pem")
    sign(run, tmp_path / "private.pem")
    assert verify(run, public_key=tmp_path / "public.pem").signature == "valid"
    (tmp_path / "message").write_bytes(b"dp-sinkhorn card v1\n" + (run / "release" / "card.json").read_bytes())
    (tmp_path / "raw").write_bytes(base64.b64decode((run / "release" / "card.sig").read_bytes()))
    arguments = ("-verify", "-pubin", "-inkey", "public.pem", "-rawin", "-in", "message", "-sigfile", "raw")
    assert "Verified Successfully" in openssl("pkeyutl", *arguments)


def test_a_signature_without_the_prefix_is_invalid(run, keys):
    card = (run / "release" / "card.json").read_bytes()
    raw = Ed25519PrivateKey.from_private_bytes(SECRET).sign(card)
    assert not is_signed_by(card, base64.b64encode(raw), load_public_key(keys[1]))


def test_any_changed_byte_of_the_card_voids_the_signature(run, keys):
    sign(run, keys[0])
    path = run / "release" / "card.json"
    content = path.read_text()
    for altered in (content + " ", json.dumps(json.loads(content)), content.replace("not charged", "charged")):
        path.write_text(altered)
        assert verify(run, public_key=keys[1]).signature == "invalid"
    path.write_text(content)
    assert verify(run, public_key=keys[1]).signature == "valid"


def test_exchanged_weights_are_caught_despite_a_valid_signature(run, keys):
    sign(run, keys[0])
    (run / "release" / "weights.safetensors").write_bytes(b"other weights")
    result = verify(run, public_key=keys[1])
    assert not result.ok
    assert result.signature == "valid"
    assert not result.weights_match


def test_a_missing_signature_is_a_problem_if_a_key_was_given(run, keys):
    result = verify(run, public_key=keys[1])
    assert not result.ok
    assert result.signature == "none"
    assert "card.sig" in result.problems[0]
    assert verify(run).ok


@pytest.mark.parametrize("content", [b"", b"not base64!", b"AAAA", b"A" * 70_000, b"\xff\xfe"])
def test_a_file_that_is_no_signature_is_invalid(run, keys, content):
    (run / "release" / "card.sig").write_bytes(content)
    assert verify(run, public_key=keys[1]).signature == "invalid"


def test_a_release_that_does_not_verify_is_not_signed(run, keys):
    path = run / "release" / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "epsilon": 0.1}))
    with pytest.raises(InputError, match=r"does not verify, so it is not signed: the card claims epsilon 0\.1"):
        sign(run, keys[0])
    path.write_text(json.dumps({**card, "private": False}))
    with pytest.raises(InputError, match="NOT PRIVATE"):
        sign(run, keys[0])
    path.write_text(json.dumps(card))
    (run / "ledger.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match="the ledger holds 0"):
        sign(run, keys[0])
    assert not list((run / "release").glob("card.sig*"))


def test_signing_twice_changes_nothing_and_another_key_is_refused(run, keys, tmp_path):
    first = sign(run, keys[0]).path.read_bytes()
    assert sign(run, keys[0]).path.read_bytes() == first
    other, _ = write_keys(tmp_path, "other", Ed25519PrivateKey.generate())
    with pytest.raises(InputError, match="delete it to sign again"):
        sign(run, other)
    assert (run / "release" / "card.sig").read_bytes() == first


def test_an_encrypted_key_needs_its_passphrase(run, tmp_path):
    private, public = write_keys(tmp_path, "locked", Ed25519PrivateKey.generate(), b"open sesame")
    with pytest.raises(InputError, match="is encrypted"):
        sign(run, private)
    with pytest.raises(InputError, match="does not open"):
        sign(run, private, lambda: "open barley")
    assert not list((run / "release").glob("card.sig*"))
    sign(run, private, lambda: "open sesame")
    assert verify(run, public_key=public).signature == "valid"


def test_no_passphrase_is_asked_for_an_unencrypted_key(run, keys):
    def nobody() -> str:
        raise AssertionError("asked")

    sign(run, keys[0], nobody)


def test_files_that_are_no_ed25519_keys_are_refused(keys, tmp_path):
    private, public = keys
    other = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - only to be refused
    (tmp_path / "rsa.pem").write_bytes(other.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    (tmp_path / "rsa.pub").write_bytes(
        other.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(b"-" * 70_000)
    for name, words in (
        ("rsa.pem", "not an Ed25519 key"),
        (public.name, "not a private key in PEM"),
        ("empty", "not a private key in PEM"),
        ("large", "larger than"),
        ("nowhere", "No such file"),
        (".", "not a regular file"),
    ):
        with pytest.raises(InputError, match=words):
            load_private_key(tmp_path / name, lambda: None)
    for name, words in (
        ("rsa.pub", "not an Ed25519 public key"),
        (private.name, "not a public key in PEM"),
        ("empty", "not a public key in PEM"),
        ("nowhere", "No such file"),
    ):
        with pytest.raises(InputError, match=words):
            load_public_key(tmp_path / name)


def test_a_key_that_others_can_read_gets_a_warning(run, keys):
    keys[0].chmod(0o640)
    warning = sign(run, keys[0]).warning
    assert "mode 640" in str(warning)
    assert "chmod 600" in str(warning)


def test_a_failed_write_leaves_nothing(run, keys, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        sign(run, keys[0])
    assert not list((run / "release").glob("card.sig*"))


def test_saving_a_release_keeps_its_signature(run, keys, tmp_path):
    sign(run, keys[0])
    DPSinkhorn.load(run).save(tmp_path / "copy")
    assert verify(tmp_path / "copy", public_key=keys[1]).signature == "valid"


def test_the_fingerprint_is_of_the_raw_key():
    import hashlib

    key = Ed25519PrivateKey.from_private_bytes(SECRET)
    assert fingerprint(key.public_key()) == hashlib.sha256(PUBLIC).hexdigest()
    assert is_signed_by(b"card", sign_card(b"card", key), key.public_key())
