"""Writer of Parquet files of encoded images for Hugging Face's `datasets`."""

import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from dp_sinkhorn.data.class_names import are_integers
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.extras import require
from dp_sinkhorn.sampling.draw import Draws
from dp_sinkhorn.sampling.privacy_facts import privacy_facts


def require_parquet() -> tuple[ModuleType, ModuleType]:
    """Import `pyarrow` and `pyarrow.parquet`.

    Raises:
        InputError: They are not installed.
    """
    return require("pyarrow", "datasets", "Parquet"), require("pyarrow.parquet", "datasets", "Parquet")


def write_parquet(path: Path, draws: Draws) -> None:
    """Write the columns `image` (struct of PNG `bytes` and a `path`) and `label` (int64), one row group per chunk.

    Labels are a `ClassLabel` that counts through the class names, or plain integers as the records had them.
    The column `probabilities` (lists of K float32) is added if the draws give them. The schema's metadata hold the
    features of `datasets` (`huggingface`) and the privacy facts (`dp_sinkhorn`).
    """
    pa, parquet = require_parquet()
    schema = _schema(pa, draws)
    digits = max(6, len(str(draws.num - 1)))
    first = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for chunk in draws:
            encoded = [
                {"bytes": png, "path": f"{first + index:0{digits}d}.png"} for index, png in enumerate(_encoded(chunk))
            ]
            columns: dict[str, Any] = {
                "image": encoded,
                "label": chunk.labels.numpy() if _counts_through(chunk.class_names) else chunk.arrays()[1],
            }
            if draws.gives_probabilities:
                columns["probabilities"] = draws.probabilities(chunk).tolist()
            writer.write_table(pa.table(columns, schema=schema))
            first += len(encoded)


def _schema(pa: ModuleType, draws: Draws) -> Any:
    names = list(draws.card.class_names)
    counted = _counts_through(draws.card.class_names)
    label = {"names": names, "_type": "ClassLabel"} if counted else {"dtype": "int64", "_type": "Value"}
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": label}
    columns = {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()}
    if draws.gives_probabilities:
        number = {"dtype": "float32", "_type": "Value"}
        features["probabilities"] = {"feature": number, "length": len(names), "_type": "List"}
        columns["probabilities"] = pa.list_(pa.float32(), len(names))
    metadata = {"huggingface": {"info": {"features": features}}, "dp_sinkhorn": privacy_facts(draws.card)}
    return pa.schema(columns.items(), {name: json.dumps(facts) for name, facts in metadata.items()})


def _counts_through(names: tuple[str, ...]) -> bool:
    """Whether labels are places of classes: not where the names are other integers than 0, 1, 2 and so on."""
    return not are_integers(names) or names == tuple(map(str, range(len(names))))


def _encoded(images: LabelledImages) -> list[bytes]:
    encoded = []
    for image in images.arrays()[0]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded
