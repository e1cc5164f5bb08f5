"""Neighbouring data sets of public records, and curators that hold them: an audit asks these instead of a run's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.audit.stand_in import smooth_images
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.curator import Curator, HeldRecords, Query, View
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.settings import DataFacts
from dp_sinkhorn.stages.base import Worst

# A noise multiplier of almost 0, which shows the sums themselves.
SILENT = 1e-12
# Errors of audited code on ordinary records that count as a violation.
BREAKDOWNS = (RuntimeError, ValueError, IndexError, ArithmeticError)


class Violation(Exception):  # noqa: N818 - not an error of the audit, but a finding
    """The code violates the claim; the message says how."""


@dataclass(frozen=True, eq=False)
class PublicRecords:
    """Public records; those at the positions `far` are worst-case records."""

    images: LabelledImages
    far: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class FarRecords(HeldRecords):
    """Records whose rows at the positions `far` are scaled, by the factor of the view: further than any image lies."""

    far: tuple[int, ...] = ()
    factors: Mapping[str, float] | None = None

    def compute(self, view: View) -> Tensor:
        """See `HeldRecords`."""
        rows = super().compute(view)
        if self.far and (factor := (self.factors or {}).get(view.name)):
            rows = rows.clone()
            rows[list(self.far)] *= factor
        return rows


class DataSetCurator(Curator):
    """Answers queries on public records like a run's curator, but charges nothing and allows any query."""

    def __init__(self, records: FarRecords, random: CryptoRandom) -> None:
        # The base class's constructor is not called: there is no plan and no ledger.
        self.held, self.random = records, random

    def _allow(self, charge: Charge) -> None:
        """Allow every query."""


class Target:
    """A query of a run, to be asked of neighbouring data sets.

    Args:
        query: The query as the run asked it of public records. worst: Worst-case record of the stage that asks.
        by_record: Whether each record's contribution is bounded individually; if not, a query is bounded as a whole.
        once: Whether the query is made once, of all records.
    """

    def __init__(self, query: Query, worst: Worst, data: DataFacts, *, by_record: bool, once: bool) -> None:
        self.once = once
        self.query, self.worst, self.data, self.by_record = worst.query(query), worst, data, by_record
        labels = query.public.get("labels")
        self.far_label = 0 if labels is None else int(labels[0])

    @property
    def charge(self) -> Charge:
        """The charge of the query."""
        return self.query.charge

    @property
    def is_drawn(self) -> bool:
        """Whether it is a query on a subsample, whose rate may be 1."""
        return self.query.capacity is not None or not self.once

    @property
    def noise_multiplier(self) -> float:
        """Claimed noise multiplier of each query."""
        return self.charge.noise_multiplier

    @property
    def sensitivity(self) -> float:
        """Claimed sensitivity of each query."""
        return self.query.sensitivity

    @property
    def stddev(self) -> float:
        """Claimed standard deviation of an answer's noise: that of all its queries together."""
        return math.sqrt(self.charge.count) * self.noise_multiplier * self.sensitivity

    @cached_property
    def shape(self) -> torch.Size:
        """Shape of an answer."""
        return self.on(self.ordinary(2), 1.0, SILENT).release(CryptoRandom(test_seed=0)).shape

    def on(self, records: PublicRecords, sample_rate: float, noise: float | None = None) -> "Releases":
        """The query, asked of these records.

        Args:
            noise: Noise multiplier; None: the run's.
        """
        changes: dict[str, object] = {"sample_rate": sample_rate}
        if noise is not None:
            changes["noise_multiplier"] = noise
        query = replace(self.query, charge=self.charge.model_copy(update=changes))
        held = FarRecords(records.images, far=records.far, factors=self.worst.factors)
        return Releases(query, held)

    def ordinary(self, count: int, seed: int = 2) -> PublicRecords:
        """`count` smooth random images."""
        return PublicRecords(smooth_images(self.data, count, seed))

    def with_far(self, records: PublicRecords, position: int, label: int | None = None) -> PublicRecords:
        """The same records and a worst-case one at `position`."""
        images, added = records.images, self.worst.pixels
        label_row = torch.tensor([self.far_label if label is None else label])
        return PublicRecords(
            LabelledImages(
                torch.cat([images.pixels[:position], added, images.pixels[position:]]),
                torch.cat([images.labels[:position], label_row, images.labels[position:]]),
                images.class_names,
            ),
            (*(far + (far >= position) for far in records.far), position),
        )

    def many_far(self, count: int) -> PublicRecords:
        """`count` equal worst-case records; for whole batches after an ordinary one, which fills empty places."""
        ordinary, kept = self.ordinary(1).images, 0 if self.by_record else 1
        images = LabelledImages(
            torch.cat([ordinary.pixels[:kept], self.worst.pixels.expand(count, -1, -1, -1)]),
            torch.cat([ordinary.labels[:kept], torch.full((count,), self.far_label)]),
            ordinary.class_names,
        )
        return PublicRecords(images, tuple(range(len(images) - count, len(images))))


class Releases:
    """One query on one data set, which can be asked repeatedly."""

    def __init__(self, query: Query, held: FarRecords) -> None:
        self._query, self._held = query, held

    def release(self, random: CryptoRandom) -> Float64[Tensor, "..."]:
        """One noisy answer.

        Raises:
            Violation: The query failed.
        """
        try:
            return DataSetCurator(self._held, random).ask(self._query)
        except BREAKDOWNS as error:
            what = self._query.charge.name.replace("_", " ")
            raise Violation(f"{what} failed on ordinary records: {error}") from error
