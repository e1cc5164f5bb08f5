"""Sign the card of a release that verifies."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dp_sinkhorn.io.atomic import write_whole
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.release.signature import (
    SIGNATURE,
    exposed_key_warning,
    fingerprint,
    load_private_key,
    sign_card,
)
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import CARD, find_release

if TYPE_CHECKING:
    from dp_sinkhorn.stages.base import Stages


@dataclass(frozen=True)
class Signed:
    """A written signature. `warning`: whether others can read the key's file; None if not."""

    path: Path
    public_key_sha256: str
    warning: str | None


def sign_release(
    path: AnyPath, key_path: AnyPath, stages: "Stages", passphrase: Callable[[], str | None] = lambda: None
) -> Signed:
    """Verify a release (in a run folder: with its ledger), then write `card.sig` beside its card atomically.

    Args:
        key_path: PEM file with an Ed25519 private key. passphrase: Asked only if the key is encrypted.

    Raises:
        InputError: The key cannot be used, the release does not verify, it has another signature, or the file cannot
            be written.
    """
    folder, key_path = find_release(path), Path(key_path)
    key = load_private_key(key_path, passphrase)
    card = (folder / CARD).read_bytes()
    result = verify(path, stages)
    if not result.ok:
        raise InputError(f"{folder} does not verify, so it is not signed: {result.problems[0]}")
    target, content = folder / SIGNATURE, sign_card(card, key)
    if target.exists() and target.read_bytes() != content:
        raise InputError(f"{target} is a signature by another key or of another card; delete it to sign again")
    _write(target, content)
    return Signed(target, fingerprint(key.public_key()), exposed_key_warning(key_path))


def _write(target: Path, content: bytes) -> None:
    try:
        write_whole(target, content)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; give a release that can be written") from None
