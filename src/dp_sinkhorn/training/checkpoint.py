"""What a run needs to go on: one safetensors file, replaced atomically."""

from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dp_sinkhorn.io.atomic import write_whole
from dp_sinkhorn.io.errors import InputError

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Place:
    """Where a run stood when its checkpoint was written.

    Args:
        ledger: Hash that ended the ledger. next_step: The first step not taken.
        stopped: Whether the run stopped there in good order: no step was taken after it.
        data: SHA-256 of the records (private, like the whole checkpoint).
    """

    ledger: str
    next_step: int
    stopped: bool
    data: str

    def check_data(self, data_sha256: str, run: Path) -> None:
        """Refuse records other than those that the run in this folder began with."""
        if self.data != data_sha256:
            raise InputError(f"the records are not those that the run in {run} began with; give the same data")


def save_checkpoint(path: Path, tensors: dict[str, Tensor], place: Place) -> None:
    """Write all tensors; at any moment `path` is either the old file or the new one, whole.

    Guarantees: when it returns, the new file and its name are on disk.
    """
    facts = {name: str(value) for name, value in asdict(place).items()}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, facts)
    write_whole(path, content)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Place]:
    """Read tensors and place back.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            place = Place(facts["ledger"], int(facts["next_step"]), facts["stopped"] == "True", facts["data"])
        return tensors, place
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        raise InputError(f"{path} is missing or damaged, so this run cannot go on; start a new run") from None
