"""Compare synthetic images with real ones."""

from dp_sinkhorn.evaluation.attack import Bound
from dp_sinkhorn.evaluation.classifiers import CLASSIFIERS, CNN, MLP, Boosting, Classifier, LogReg
from dp_sinkhorn.evaluation.efficientnet import EfficientNetLite0
from dp_sinkhorn.evaluation.features import FeatureExtractor, ModuleExtractor
from dp_sinkhorn.evaluation.inception import Inception2048
from dp_sinkhorn.evaluation.record import Evaluation
from dp_sinkhorn.evaluation.suite import evaluate
from dp_sinkhorn.evaluation.tstr import Scores, score_classifiers

__all__ = [
    "CLASSIFIERS",
    "CNN",
    "MLP",
    "Boosting",
    "Bound",
    "Classifier",
    "EfficientNetLite0",
    "Evaluation",
    "FeatureExtractor",
    "Inception2048",
    "LogReg",
    "ModuleExtractor",
    "Scores",
    "evaluate",
    "score_classifiers",
]
