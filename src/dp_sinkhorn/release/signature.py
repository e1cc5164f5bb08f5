"""Detached Ed25519 signatures of a card. The card holds the weights' SHA-256, so its signature covers them too."""

import base64
import binascii
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import read_bytes

SIGNATURE: Final = "card.sig"
# Signed together with the card's bytes, so that no other data signed with the same key can pass for a card.
PREFIX: Final = b"dp-sinkhorn card v1\n"
MAX_KEY_BYTES, _SIGNATURE_BYTES = 1 << 16, 64
_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out private.pem"
_PEM = "give a PEM file"
_PUBLIC = "make one with: openssl pkey -in private.pem -pubout -out public.pem"


def load_private_key(path: Path, passphrase: Callable[[], str | None]) -> Ed25519PrivateKey:
    """Read a PEM file (PKCS#8) with an Ed25519 private key.

    Args:
        passphrase: Called only if the key is encrypted; returns None if there is nobody to ask.

    Raises:
        InputError: The file cannot be read or is not such a key, or the passphrase is missing or wrong.
    """
    content = read_bytes(path, MAX_KEY_BYTES, _PEM)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError:
        key = _decrypted(path, content, passphrase())
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path} is not a private key in PEM; {_MAKE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is not an Ed25519 key; {_MAKE}")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a PEM file with an Ed25519 public key.

    Raises:
        InputError: The file cannot be read or is not such a key.
    """
    content = read_bytes(path, MAX_KEY_BYTES, _PEM)
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path} is not a public key in PEM; {_PUBLIC}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path} is not an Ed25519 public key; {_PUBLIC}")
    return key


def sign_card(card: bytes, key: Ed25519PrivateKey) -> bytes:
    """The content of `card.sig` for the bytes of a `card.json`: the signature in base64 and a newline."""
    return base64.b64encode(key.sign(PREFIX + card)) + b"\n"


def is_signed_by(card: bytes, signature: bytes, key: Ed25519PublicKey) -> bool:
    """Whether `signature` (the content of `card.sig`) is a signature of exactly these bytes by this key."""
    try:
        raw = base64.b64decode(signature.strip(), validate=True)
        if len(raw) != _SIGNATURE_BYTES:
            return False
        key.verify(raw, PREFIX + card)
    except (InvalidSignature, binascii.Error):
        return False
    return True


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's 32 raw bytes, in hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def exposed_key_warning(path: Path) -> str | None:
    """A warning if users other than the owner may access the file of a private key; else None."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077 == 0 or os.name == "nt":  # Windows keeps no such modes
        return None
    return f"{path} has mode {mode:03o}, so others can use this private key; protect it with: chmod 600 {path}"


def _decrypted(path: Path, content: bytes, passphrase: str | None) -> PrivateKeyTypes:
    if not passphrase:
        raise InputError(f"{path} is encrypted; set DP_SINKHORN_KEY_PASSPHRASE, or sign in a terminal that can ask")
    try:
        return serialization.load_pem_private_key(content, password=passphrase.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"the passphrase does not open {path}; give the right one") from None
