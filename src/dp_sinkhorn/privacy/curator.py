"""The curator holds the records and answers queries with noise, after charging them. Nothing else is handed out.

Figures that the guarantee does not cover go to the run's folder `private/`, and only if the user asks for them.

The term is that of the literature, the trusted curator: Dwork and Roth (2014), "The algorithmic foundations of
differential privacy", section 2.1.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.atomic import append_line
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler

PRIVATE_METRICS = "metrics.jsonl"  # in the run's private folder


@runtime_checkable
class View(Hashable, Protocol):
    """Per-record numbers that several queries need: one row per record, a function of that record alone."""

    @property
    def name(self) -> str:
        """The name under which stages list it in `needs`."""
        ...

    def __call__(self, images: LabelledImages) -> Tensor:
        """Compute the row of each image."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class HeldRecords:
    """All records of a curator, with the views computed so far."""

    images: LabelledImages
    views: dict[View, Tensor] = field(default_factory=dict)

    def view(self, view: View) -> Tensor:
        """The rows of all records, computed once."""
        if view not in self.views:
            self.views[view] = self.compute(view)
        return self.views[view]

    def compute(self, view: View) -> Tensor:
        """The rows of all records, computed now."""
        return view(self.images)

    def drop_all_but(self, names: Iterable[str]) -> None:
        """Free the views with other names."""
        kept = set(names)
        for view in [view for view in self.views if view.name not in kept]:
            del self.views[view]


@dataclass(frozen=True, eq=False, repr=False)
class Draw:
    """The records drawn for one query: as private as all records; there may be none.

    Args:
        index: Indices of the records drawn, ascending; None: all records. Padded subsamples: (K, capacity).
        present: (K, capacity) for padded subsamples: True where the place holds a drawn record.
    """

    held: HeldRecords
    index: Int64[Tensor, "..."] | None = None
    present: Bool[Tensor, "K capacity"] | None = None

    @property
    def images(self) -> LabelledImages:
        """All records; only for queries on all records."""
        assert self.index is None  # noqa: S101 - a subsample is read through `labels` and `view`
        return self.held.images

    @property
    def labels(self) -> Int64[Tensor, "..."]:
        """Labels of the records drawn."""
        labels = self.held.images.labels
        return labels if self.index is None else labels[self.index]

    def view(self, view: View) -> Tensor:
        """Rows of the records drawn."""
        rows = self.held.view(view)
        return rows if self.index is None else rows[self.index.to(rows.device)]

    def blocks(self, queries: int) -> "Iterable[Draw]":
        """The padded subsamples, `queries` at a time."""
        assert self.index is not None and self.present is not None  # noqa: S101, PT018 - padded
        parts = zip(self.index.split(queries), self.present.split(queries), strict=True)
        return (Draw(self.held, index, present) for index, present in parts)


@dataclass(frozen=True, eq=False)
class Query:
    """What a stage asks of the records.

    Args:
        charge: Its cost: name, noise multiplier, sample rate, and the number of queries in this sum.
        sensitivity: L2 bound on the change of each query when one record is added or removed.
        contribute: The only code that sees records: maps a draw, which may be empty, to a bounded sum.
        public: What else `contribute` uses and what changes from query to query. All of it is released or public.
        capacity: For whole batches: each subsample is padded to this many places, so that shapes are public.
    """

    charge: Charge
    sensitivity: float
    contribute: Callable[[Draw], BoundedSum]
    public: Mapping[str, Tensor] = field(default_factory=dict)
    capacity: int | None = None


class Curator:
    """Holds the records. Answers queries with noise, after charging them. Private figures go to `private` alone.

    Guarantees: when `ask` returns, the charge of this query is on disk. Noise, sample rate and count of the release are
    those of the charge. A charged release is made once. Everything `ask` returns is a release of the Gaussian
    mechanism.

    Args:
        records: All records; their number is public.
        allowances: All that the plan allows, one charge per name.
        ahead: How many releases to charge in one entry, by name; default: all of that name.
        private: Folder for figures that the guarantee does not cover; None: `figures` does nothing.
    """

    def __init__(
        self,
        records: LabelledImages,
        allowances: Iterable[Charge],
        ledger: Ledger,
        random: CryptoRandom,
        ahead: Mapping[str, int] | None = None,
        private: Path | None = None,
    ) -> None:
        self.held = HeldRecords(records)
        self.ledger = ledger
        self.random = random
        self._allowances = {charge.name: charge for charge in allowances}
        self._ahead = dict(ahead or {})
        self._private = private
        # Releases that count as made. A charge of an earlier process counts: its release may have been made.
        self._taken = {name: ledger.count(name) for name in self._allowances}

    def ask(self, query: Query) -> Float64[Tensor, "..."]:
        """Charge the query and return the noisy sum.

        Raises:
            InputError: All releases that the plan allows under this name are already made.
            ValueError: The plan has no such charge, or the sum holds another number of queries than the charge.
            OSError: The charge could not be written; nothing was released.
        """
        self._allow(query.charge)
        total = query.contribute(self._draw(query))
        if total.queries != query.charge.count:
            raise ValueError(f"a sum of {total.queries} queries is charged as {query.charge.count}")
        return GaussianMechanism(query.sensitivity, query.charge.noise_multiplier)(total, self.random)

    def taken(self, name: str) -> int:
        """Count the releases of a name that are made: a resumed run continues there."""
        return self._taken[name]

    def charged(self, name: str) -> int:
        """Count the releases of a name that are charged, made or not."""
        return self.ledger.count(name)

    def continue_from(self, taken: Mapping[str, int]) -> None:
        """Allow this run to make the releases that an earlier process charged and did not make.

        The ledger is marked first, so this happens once. The caller knows from a checkpoint that matches the head of
        the ledger that at most `taken` releases of each name were made.
        """
        if any(taken[name] < count for name, count in self._taken.items()):
            self.ledger.mark_resumption({name: taken[name] for name in self._taken})
            self._taken = {name: taken[name] for name in self._taken}

    def keep_views(self, names: Iterable[str]) -> None:
        """Free all views of the records except these."""
        self.held.drop_all_but(names)

    def figures(self, query: Query, step: int, measure: Callable[[Draw], Mapping[str, int | float]]) -> None:
        """Write figures about a query on real records to the private folder. The guarantee does not cover them.

        They are measured on a separate draw, which is then discarded. Nothing is returned.
        """
        if self._private is not None:
            found = measure(self._draw(query))
            append_line(self._private / PRIVATE_METRICS, json.dumps({"step": step, **found}), mode=0o600)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all records, for the checkpoint. It is private."""
        return self.held.images.sha256()

    def _allow(self, charge: Charge) -> None:
        """Charge the next block of releases if no charged one is left, and count these releases as made."""
        name, allowance = charge.name, self._allowances.get(charge.name)
        if allowance is None or (charge.noise_multiplier, charge.sample_rate) != (
            allowance.noise_multiplier,
            allowance.sample_rate,
        ):
            raise ValueError(f"the plan does not allow {charge!r}")
        taken, charged = self._taken[name], self.ledger.count(name)
        if taken + charge.count > allowance.count:
            raise InputError(
                f"{name} was charged and asked before, and its answer is lost; the budget in {self.ledger.path} is "
                "spent; start a new run"
            )
        while charged < taken + charge.count:
            block = min(self._ahead.get(name, allowance.count), allowance.count - charged)
            self.ledger.charge(allowance.model_copy(update={"first": charged, "count": block}))
            charged += block
        self._taken[name] = taken + charge.count

    def _draw(self, query: Query) -> Draw:
        """Draw a fresh Poisson subsample; at sample rate 1, all records."""
        sampler = PoissonSubsampler(len(self.held.images), query.charge.sample_rate)
        if query.capacity is not None:
            return Draw(self.held, *sampler.draw_padded(query.charge.count, query.capacity, self.random))
        if query.charge.sample_rate == 1.0:
            return Draw(self.held)
        return Draw(self.held, sampler.draw(self.random))
