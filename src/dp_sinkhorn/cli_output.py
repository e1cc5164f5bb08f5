"""What the verbs of the command line print."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from dp_sinkhorn.io.errors import one_line

if TYPE_CHECKING:
    from dp_sinkhorn.audit.audit import Audit
    from dp_sinkhorn.data.dataset import Summary
    from dp_sinkhorn.release.card import PrivacyCard
    from dp_sinkhorn.settings import RunConfig

stderr = Console(stderr=True)
stdout = Console()
_LARGE_SIDE = 64  # pixels, from which a run may take hours


def show_inspection(summary: "Summary") -> None:
    """Print a summary of what was read."""
    print("This output is about private data: do not hand it out.\n")
    for line in summary.lines():
        print(line)
    print("\ntraining images of each class:")
    for name, count in summary.images_per_class.items():
        print(f"  {one_line(name)}: {count:,}")
    for skipped in summary.skipped:
        examples = ", ".join(skipped.examples)
        print(f"\nnot read, {one_line(skipped.reason)}: {skipped.count:,}, for example {one_line(examples)}")
    for text in summary.warnings:
        print(f"\nwarning: {one_line(text)}")


def show_trained(card: "PrivacyCard", data: str, run: Path, seconds: float) -> None:
    """Print what was learnt from, the ε of the run, and what may be handed out. Public facts only."""
    from dp_sinkhorn.io.safe_read import listed
    from dp_sinkhorn.privacy.plan import delta_warning
    from dp_sinkhorn.release.explain import factor

    channels, height, width = card.image_shape
    took = f" in {duration(seconds)}" if seconds else ""  # a finished run was resumed
    classes = f"{len(card.class_names)} class{'es' if len(card.class_names) > 1 else ''}"
    print(
        f"\nTrained{took} on {one_line(data)}: {card.num_records:,} images of {height}x{width} pixels, "
        f"{'grey' if channels == 1 else 'RGB'}, in {classes} ({one_line(listed(card.class_names, 10))})."
    )
    if not card.private:
        print(card.statement())
        return
    print(
        f"Privacy: ε = {card.epsilon:.6g} at δ = {card.delta:g}. Adding or removing one image changes the probability "
        f"of anything\nan observer could conclude by at most a factor of {factor(card.epsilon)}, plus {card.delta:g}.\n"
    )
    if warning := delta_warning(card.delta, card.num_records):
        print(f"Warning: {warning}.\n")
    print(f"You may hand out    {run / 'release'}, and everything that you sample from it")
    print(f"Keep to yourself    {run / 'private'}")


def show_next(*commands: tuple[object, ...]) -> None:
    """Print what to type next."""
    print("\nNext:", *(shlex.join(["dp-sinkhorn", *map(str, words)]) for words in commands), sep="\n  ")


def show_time(config: "RunConfig") -> None:
    """Before a run on large images, say how long it will take."""
    from dp_sinkhorn.method import STAGES
    from dp_sinkhorn.training.speed import measure_speed

    if max(config.data.shape[1:]) > _LARGE_SIDE:
        with stderr.status("measuring a few steps on random images"):
            speed = measure_speed(config, STAGES)
        print(f"training will take about {duration(speed.whole(config))} on this machine", file=sys.stderr)


def warn(*messages: str | None) -> None:
    """Print each message as a line on stderr; None is no message."""
    for message in filter(None, messages):
        stderr.print(f"[yellow]warning:[/] {escape(one_line(message))}", highlight=False, soft_wrap=True)


def show(facts: dict[str, Any], as_json: bool) -> None:
    """Print facts as a table or as JSON."""
    print_json(facts) if as_json else print_facts(facts)


def show_dry_run(config: "RunConfig", as_json: bool) -> None:
    """Print the resolved run, its ε, and its time at this machine's measured speed."""
    from dp_sinkhorn.method import STAGES
    from dp_sinkhorn.privacy.accounting import epsilons
    from dp_sinkhorn.training.speed import measure_speed

    plan = config.plan
    bounds = epsilons(plan.charges, plan.target_delta)
    with stderr.status("measuring a few steps on random images"):
        speed = measure_speed(config, STAGES)
    whole = speed.whole(config)
    if as_json:
        estimate = {
            "num_steps": plan.num_steps,
            "queries": plan.num_steps * plan.queries_per_step,
            "epsilon_pld": bounds.pld,
            "epsilon_rdp": bounds.rdp,
            "seconds_per_step": speed.step,
            "seconds_before_steps": speed.before,
            "seconds_after_steps": speed.after,
            "seconds": whole,
        }
        print_json({**config.model_dump(mode="json"), "estimate": estimate})
        return
    print(config.to_toml())
    queries = "1 query" if plan.queries_per_step == 1 else f"{plan.queries_per_step} queries"
    what = f"steps of {queries}" if plan.queries_per_step else "steps on an embedding of the classes, released once"
    print(f"# {plan.num_steps} {what}, noise multiplier {plan.noise_multiplier:g}:")
    print(f"# epsilon {bounds.pld:.4g} (PLD), {bounds.rdp:.4g} (RDP) at delta {plan.target_delta:g}")
    before = f", {duration(speed.before)} before the first" if speed.before else ""
    before += f", {duration(speed.after)} after the last" if speed.after else ""
    print(f"# {1e3 * speed.step:.3g} ms a step on this machine (median of a few){before}: about {duration(whole)},")
    print("# plus up to some minutes of computation on the answers, before the first step and after the last")


def show_audit(result: "Audit") -> None:
    """Print one line for each check, then the bounds."""
    width = max(len(check.name) for check in result.checks) + 2
    for check in result.checks:
        print(f"{check.name:<{width}}{'ok' if check.ok else 'FAILED':<8}{check.finding}")
    measured = result.noise_multiplier_measured
    # Steps that see no record learn from an embedding of the classes.
    steps, learned = "the run's steps", f"{result.audited_steps} steps"
    if result.audited_steps == 0:
        steps = learned = "the embedding"
    facts = {
        "noise multiplier": f"{result.noise_multiplier:g} claimed, "
        + (f"{measured[0]:.4g} to {measured[1]:.4g} measured" if measured else "not measured"),
        "epsilon claimed": f"{result.epsilon_claimed:.4g} at delta {result.delta:g}",
        "epsilon from step": f"{result.epsilon_from_step:.4g}: {steps} at the largest noise that fits the measurement",
        "epsilon from canaries": f"{result.epsilon_from_canaries:.4g}: shown by {result.num_canaries} canaries in "
        f"{learned}, for which {result.epsilon_claimed_audited:.4g} is claimed",
        "epsilon lower bound": f"{result.epsilon_lower_bound:.4g}",
    }
    print()
    print_facts(facts)
    print("passed" if result.passed else "FAILED: the claim is contradicted")
    print(
        "The audit ran the code and the settings on public images and read no private record. It can contradict a\n"
        "claim; passing it proves nothing beyond what was measured (docs/how-to/audit.md)."
    )


def duration(seconds: float) -> str:
    """The largest unit of which there are at least two."""
    for unit, size in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 2.0 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def print_json(facts: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(facts, indent=2))


def print_facts(facts: dict[str, Any]) -> None:
    """Print a line for each fact."""
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        shown = f"{value:.6g}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' '):<{width}}{shown}")
