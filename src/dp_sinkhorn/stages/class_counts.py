"""Stage: the number of records of each class, from a noisy histogram or as declared."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import field_validator

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import listed
from dp_sinkhorn.privacy.accounting import Charge, epsilon_pld, epsilons
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.curator import Curator, Draw
from dp_sinkhorn.privacy.plan import Budget, PrivacyPlan
from dp_sinkhorn.release.card import ClassPriorFacts, PrivacyCard
from dp_sinkhorn.settings import DataFacts, Positive, Settings, Share, StageRules, StageSettings, given
from dp_sinkhorn.stages.base import UNIT_SENSITIVITY, Stage, StageFacts, State, once_problems

_SHOWN = 5  # class names in a warning
_DOUBTFUL = 3.0  # standard deviations of the noise; the count of an empty class exceeds it once in 700 times
_SLACK = 1e-6


class ClassCountsSettings(StageSettings):
    """What a user may choose.

    Args:
        prior: `histogram`: the counts are released with noise. `uniform`, or a share for each class: the shares are
            declared, as public facts. None: `uniform` in mode `batch`, else `histogram`.
        budget_share: Share of the budget for the histogram, in (0, 1).
    """

    former: ClassVar[dict[str, str]] = {"class_prior": "prior"}

    prior: Literal["histogram", "uniform"] | tuple[Positive, ...] | None = None
    budget_share: Share | None = None

    @field_validator("prior", mode="before")
    @classmethod
    def _prior_from_text(cls, value: object) -> object:
        """Accept a list written as "0.7,0.3" on the command line."""
        if isinstance(value, str) and "," in value:
            return tuple(value.split(","))
        return tuple(value) if isinstance(value, list) else value


class ClassCountsRules(StageRules):
    """Constants: the declared share of each class; None: the records are counted."""

    declared: tuple[Positive, ...] | None = None


class ClassCounts(Stage):
    """Counts the records of each class. One record changes one count by 1: sensitivity 1."""

    name = "class_counts"
    settings_type = ClassCountsSettings
    rules_type = ClassCountsRules
    gives = ("counts",)
    charged = (name,)

    def __init__(self, share: float) -> None:
        self.default_share = share

    def charges(self, settings: Settings, budget: Budget) -> tuple[Charge, ...]:
        """See `Stage`."""
        chosen = settings.of(self.name, ClassCountsSettings)
        prior = chosen.prior or ("uniform" if budget.mode == "batch" else "histogram")
        share = given(chosen.budget_share, self.default_share)
        if prior != "histogram" or budget.num_classes == 1:
            if chosen.budget_share is not None:
                raise InputError(
                    f"{self.name}.budget_share would have no effect: the classes are not counted; leave it out or give "
                    f"{self.name}.prior=histogram"
                )
            return ()
        if share == 0.0:
            raise InputError(f"{self.name}.budget_share=0 leaves nothing for the histogram; declare {self.name}.prior")
        return (budget.once(self.name, share),)

    def rules(self, settings: Settings, plan: PrivacyPlan, data: DataFacts) -> ClassCountsRules:
        """See `Stage`."""
        prior, classes = settings.of(self.name, ClassCountsSettings).prior, data.num_classes
        if isinstance(prior, tuple) and (len(prior) != classes or abs(sum(prior) - 1.0) > 1e-6):
            raise InputError(
                f"{self.name}.prior={','.join(f'{share:g}' for share in prior)} does not fit {classes} classes; "
                f"give {classes} shares that sum to 1, or uniform, or histogram"
            )
        if self.is_charged(plan):
            return ClassCountsRules()
        return ClassCountsRules(declared=prior if isinstance(prior, tuple) else (1.0 / classes,) * classes)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`."""
        if "counts" in state.learnt:
            return
        declared = state.config.rules_of(self.name, ClassCountsRules).declared
        if declared is not None:
            state.learnt["counts"] = state.plan.num_records * torch.tensor(declared, dtype=torch.float64)
        else:
            noisy = self.ask(curator, state, UNIT_SENSITIVITY, self._contribute)
            state.learnt["counts"] = noisy.clamp(min=max(1.0, self.charge(state.plan).noise_multiplier))
        yield

    def finish(self, state: State) -> None:
        """See `Stage`: the shares of the classes and their cost."""
        counted = self.is_charged(state.plan)
        state.class_prior = ClassPriorFacts(
            how="noisy histogram" if counted else "declared",
            shares=state.class_shares,
            epsilon_alone=epsilon_pld([self.charge(state.plan)], state.plan.target_delta) if counted else 0.0,
        )

    def warnings(self, state: State) -> tuple[str, ...]:
        """See `Stage`: classes whose noisy count may be noise alone."""
        if not self.is_charged(state.plan):
            return ()
        # The counts are clamped to at least 1 and at least their noise.
        few = state.class_counts <= max(1.0, _DOUBTFUL * self.charge(state.plan).noise_multiplier)
        names = [name for name, flag in zip(state.config.data.class_names, few.tolist(), strict=True) if flag]
        if not names:
            return ()
        warning = "class {} may have no records at all: noise alone can explain its count"
        return (warning.format(listed(names, _SHOWN)),)

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        """See `Stage`."""
        prior, counted = card.class_prior, [charge for charge in card.charges if charge.name == self.name]
        if bool(counted) != (prior.how == "noisy histogram"):
            yield f"the class prior is a {prior.how!r}, but class counts are {'' if counted else 'not '}charged"
        if counted:
            yield from once_problems(self, card)
        try:
            alone = epsilons(counted, card.delta, prior.epsilon_alone).pld if counted else 0.0
        except InputError:
            return  # the check of all charges together reports it
        if not prior.epsilon_alone >= alone * (1.0 - _SLACK):
            yield (f"the card claims class prior epsilon alone {prior.epsilon_alone:.6g}; its charges give {alone:.6g}")

    def _contribute(self, draw: Draw) -> BoundedSum:
        counts = torch.bincount(draw.labels, minlength=draw.images.num_classes).to(torch.float64)
        return BoundedSum(counts, UNIT_SENSITIVITY)
