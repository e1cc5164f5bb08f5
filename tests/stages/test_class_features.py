"""The sums of features: short rows are kept, long ones cut, and what is not finite is none."""

import math

import torch

from dp_sinkhorn.stages.class_features import feature_sum


def test_a_feature_sum_clips_long_rows_and_drops_rows_not_finite() -> None:
    rows = torch.tensor([[0.6, 0.0], [0.1, 0.2], [math.nan, 0.0], [0.0, math.inf], [3.0, -4.0]])
    found = feature_sum(rows)
    assert found.sensitivity == 1.0
    torch.testing.assert_close(found.value, torch.tensor([1.3, -0.6], dtype=torch.float64), rtol=1e-5, atol=0.0)
    assert torch.equal(feature_sum(rows[:0]).value, torch.zeros(2, dtype=torch.float64))
