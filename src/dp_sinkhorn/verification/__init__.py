"""Check a release: its card against itself, its weights, its ledger and its signature; sign what holds."""

from dp_sinkhorn.verification.check import Verification, verify
from dp_sinkhorn.verification.sign import Signed, sign_release

__all__ = ["Signed", "Verification", "sign_release", "verify"]
