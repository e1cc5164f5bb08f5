"""Parquet files of encoded images, as Hugging Face's `datasets` reads them."""

import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.extras import require
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.sampling.draw import Draws
from dp_sinkhorn.sampling.privacy_facts import privacy_facts


def require_parquet() -> tuple[ModuleType, ModuleType]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        InputError: They are not installed.
    """
    return require("pyarrow", "datasets", "Parquet"), require("pyarrow.parquet", "datasets", "Parquet")


def write_parquet(path: Path, draws: Draws) -> None:
    """Columns `image` (struct of PNG `bytes` and a `path`) and `label` (int64), a row group a chunk.

    The schema's metadata hold the features of `datasets` (`huggingface`) and the privacy facts (`dp_sinkhorn`).
    """
    pa, parquet = require_parquet()
    schema = _schema(pa, draws.card)
    digits = max(6, len(str(draws.num - 1)))
    first = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for chunk in draws:
            encoded = [
                {"bytes": png, "path": f"{first + index:0{digits}d}.png"} for index, png in enumerate(_encoded(chunk))
            ]
            writer.write_table(pa.table({"image": encoded, "label": chunk.labels.numpy()}, schema=schema))
            first += len(encoded)


def _schema(pa: ModuleType, card: PrivacyCard) -> Any:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(card.class_names), "_type": "ClassLabel"},
    }
    columns = {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()}
    metadata = {"huggingface": {"info": {"features": features}}, "dp_sinkhorn": privacy_facts(card)}
    return pa.schema(columns.items(), {name: json.dumps(facts) for name, facts in metadata.items()})


def _encoded(images: LabelledImages) -> list[bytes]:
    encoded = []
    for image in images.arrays()[0]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded
