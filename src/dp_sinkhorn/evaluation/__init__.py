"""How good synthetic images are, next to real ones."""

from dp_sinkhorn.evaluation.classifiers import CLASSIFIERS, CNN, MLP, Classifier, LogReg
from dp_sinkhorn.evaluation.suite import Evaluation, evaluate
from dp_sinkhorn.evaluation.tstr import Scores, score_classifiers

__all__ = [
    "CLASSIFIERS",
    "CNN",
    "MLP",
    "Classifier",
    "Evaluation",
    "LogReg",
    "Scores",
    "evaluate",
    "score_classifiers",
]
