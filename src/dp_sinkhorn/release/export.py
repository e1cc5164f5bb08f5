"""The network of a release as one ONNX file, which other programs run without PyTorch."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.extras import require
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.io.safe_read import MAX_TEXT_BYTES, read_bytes
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.weights import CARD, find_release, load_release

if TYPE_CHECKING:
    from dp_sinkhorn.stages.base import Stages

LATENT, LABEL, IMAGE = "latent", "label", "image"
METADATA = "dp_sinkhorn_card"
"""Key of the ONNX model's metadata whose value is the text of `card.json`."""

_NEEDED = ("onnx", "onnxscript")  # by PyTorch's exporter
_UNDAMAGED = "give an undamaged release"


@dataclass(frozen=True, eq=False)
class ExportedNetwork:
    """A release's network as an ONNX file.

    Args:
        latent_dim: Size z of a latent. content: Bytes of the ONNX file.
    """

    card: PrivacyCard
    latent_dim: int
    content: bytes


def as_onnx(path: AnyPath, stages: "Stages") -> ExportedNetwork:
    """Export the network of a release.

    Inputs: `latent` (float32, n × z, uniform in [0, 1]) and `label` (int64, n), for any n.
    Output: `image` (float32, NCHW in [0, 1]).
    The metadata hold the text of the release's `card.json`, with the shares of the classes, under `METADATA`.

    Args:
        path: A release folder, or a finished run.

    Raises:
        InputError: The exporter is not installed, the release cannot be read, or it has layers of version 1 or 2.
    """
    path = Path(path)
    for module in _NEEDED:
        require(module, "onnx", "an ONNX file")
    card, generator = load_release(path, stages)
    if card.layers.shapes(card.generator, card.image_shape, len(card.class_names)):
        raise InputError(
            f"{path} is a release of version {card.card_version}, which is more than one network; train a new run "
            "with this version and export that"
        )
    content = read_bytes(find_release(path) / CARD, MAX_TEXT_BYTES, _UNDAMAGED)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path} has a card that is not UTF-8; {_UNDAMAGED}") from None
    return ExportedNetwork(card, generator.latent_dim, _onnx_file(generator, {METADATA: text}))


class _Drawing(nn.Module):
    """A generator that returns images (n, c, h, w) in [0, 1]."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latent: Float[Tensor, "n z"], label: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        images: Tensor = (self.generator(latent, label) + 1.0) / 2.0
        return images.view(-1, *self.generator.shape)


def _onnx_file(generator: Generator, metadata: dict[str, str]) -> bytes:
    # The exporter would make a batch size of 0 or 1 a constant, so the example has two images.
    example = torch.zeros(2, generator.latent_dim), torch.zeros(2, dtype=torch.int64)
    any_number = {0: torch.export.Dim("n")}
    with _silenced(), torch.no_grad():
        program = torch.onnx.export(
            _Drawing(generator).eval(),
            example,
            dynamo=True,
            input_names=[LATENT, LABEL],
            output_names=[IMAGE],
            dynamic_shapes={LATENT: any_number, LABEL: any_number},
            verbose=False,
        )
        assert program is not None  # noqa: S101 - as the exporter is called
        model = program.model_proto
    _strip_metadata(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString(deterministic=True))


def _strip_metadata(model: Any) -> None:
    """Remove the exporter's own metadata, which names paths of this machine."""
    del model.graph.value_info[:]
    parts = model.graph.node, model.graph.initializer, model.graph.input, model.graph.output
    for part in (model, model.graph, *(entry for entries in parts for entry in entries)):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence warnings and log lines of the exporter, which concern its developers."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
