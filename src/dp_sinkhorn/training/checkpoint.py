"""What a run needs to continue: one safetensors file, replaced atomically."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dp_sinkhorn.io.atomic import write_whole
from dp_sinkhorn.io.errors import InputError

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class CheckpointInfo:
    """Facts about a run at the time of its checkpoint.

    Args:
        ledger: Hash of the ledger's last line. step: Number of updates of the generator.
        stopped: Whether the run was stopped on request here, so that no query followed.
        taken: Number of releases made, by name. records: SHA-256 of the records (private, like the whole checkpoint).
    """

    ledger: str
    step: int
    stopped: bool
    taken: dict[str, int]
    records: str

    def check_records(self, sha256: str, run: Path) -> None:
        """Refuse records that are not those of the run in this folder."""
        if self.records != sha256:
            raise InputError(f"the records are not those that the run in {run} began with; give the same data")


def save_checkpoint(path: Path, tensors: dict[str, Tensor], info: CheckpointInfo) -> None:
    """Write all tensors and facts atomically: `path` is always either the whole old file or the whole new one.

    Guarantees: On return the new file and its name are on disk. Only its owner can read it.
    """
    facts = {name: json.dumps(value) for name, value in vars(info).items()}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, facts)
    write_whole(path, content, mode=0o600)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """Read tensors and facts back.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = {name: json.loads(value) for name, value in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        return tensors, CheckpointInfo(**facts)
    except (OSError, SafetensorError, AttributeError, TypeError, ValueError):
        raise InputError(f"{path} is missing or damaged, so this run cannot continue; start a new run") from None
