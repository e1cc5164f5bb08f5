"""The command line: each verb reads its arguments, calls one function and prints what it returns."""

import atexit
import gc
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from dp_sinkhorn.cli_options import (
    AllowLargeDelta,
    ClassesArePublic,
    Data,
    Delta,
    Epsilon,
    Json,
    Recipe,
    Release,
    Set,
    existing,
    existing_data,
    reads_data,
    words_of,
)
from dp_sinkhorn.cli_output import (
    print_facts,
    print_json,
    show,
    show_audit,
    show_dry_run,
    show_inspection,
    show_next,
    show_time,
    show_trained,
    stderr,
    stdout,
    warn,
)
from dp_sinkhorn.io.atomic import write_whole
from dp_sinkhorn.io.errors import InputError, did_you_mean, one_line

# Without this, threads wait for each other by spinning, which makes a step several times slower when another process
# needs a core. OpenMP reads it when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Verbs import what they need inside their functions, so that `--help` does not wait for PyTorch.


class _Verbs(TyperGroup):
    """Names the verb that a mistyped one resembles, in the words of all errors."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        verb = args[0]
        if ctx.resilient_parsing or verb.startswith("-") or verb in self.commands:
            return super().resolve_command(ctx, args)
        raise InputError(f"{verb!r} is not a verb; see dp-sinkhorn --help{did_you_mean(verb, self.commands)}")


app = typer.Typer(
    cls=_Verbs,
    help="Train an image generator on private images with differential privacy, and hand out what it draws. "
    "A first run: inspect, train, sample, evaluate, report; each verb has --help.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
_INTERRUPTED = 130  # as shells have it for Ctrl-C


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dp-sinkhorn {version('dp-sinkhorn')}")
        raise typer.Exit


@app.callback()
def _of_every_verb(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def plan(
    num_records: Annotated[int, typer.Option(help="Number of private images (of two classes or more).")],
    epsilon: Epsilon = None,
    delta: Delta = None,
    allow_large_delta: AllowLargeDelta = False,
    recipe: Recipe = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Show what a run would release about the records, and with how much noise. Reads no data."""
    from dp_sinkhorn.method import chosen_mode, make_plan, settings_of
    from dp_sinkhorn.privacy.accounting import epsilons
    from dp_sinkhorn.privacy.plan import budget_warnings

    settings = settings_of(recipe, _overrides(epsilon, delta, allow_large_delta, set_))
    made = make_plan(settings, num_records, num_classes=2)
    bounds = epsilons(made.charges, made.target_delta)
    warn(*budget_warnings(made.target_epsilon, made.target_delta, num_records))
    facts = {
        "epsilon_pld": bounds.pld,
        "epsilon_rdp": bounds.rdp,
        "delta": made.target_delta,
        "mode": chosen_mode(settings, num_records),
        "noise_per_record": made.noise_per_record,
        "noise_multiplier": made.noise_multiplier,
        "num_steps": made.num_steps,
        "queries_per_step": made.queries_per_step,
        "sample_rate": made.sample_rate,
        "expected_batch_size": made.expected_batch_size,
    }
    charges = [charge.model_dump(exclude={"first"}) for charge in made.charges]
    if as_json:
        print_json({**facts, "charges": charges})
        return
    print_facts(facts)
    width = max(len(charge.name) for charge in made.charges)
    print("\nreleases:")
    for charge in made.charges:
        times = "once" if charge.count == 1 else f"{charge.count} times"
        rate = "" if charge.sample_rate == 1.0 else f", each on {100 * charge.sample_rate:.3g} % of the records"
        print(f"  {charge.name:<{width}}  noise multiplier {charge.noise_multiplier:g}, {times}{rate}")


@app.command()
@reads_data
def inspect(
    data: Data,
    classes_are_public: ClassesArePublic = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write a .png picture of the first images and their labels.")
    ] = None,
    as_json: Json = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Show what `train` would read. Costs no privacy. Keep the output to yourself: it is about private data."""
    from dp_sinkhorn.data.dataset import Summary
    from dp_sinkhorn.data.grid import draw_first
    from dp_sinkhorn.data.sources import open_data
    from dp_sinkhorn.sampling.outputs import check_free
    from dp_sinkhorn.settings import make_settings

    if out is not None:
        if out.suffix.lower() != ".png":
            raise InputError(f"{out} ends in {out.suffix!r}; give a .png file")
        check_free(out)
    facts: dict[str, Any] = dict.fromkeys(Summary.keys())
    try:
        how = make_settings({}, None, {"reading": _published(reading, classes_are_public)}).reading
        found = open_data(data, how)
        records = found.load("train")
        summary = found.summary()
        facts = summary.as_json()
        if out is not None:
            picture = io.BytesIO()
            draw_first(records).save(picture, "PNG")
            with _writing(out):
                write_whole(out, picture.getvalue(), mode=0o600)
        if not as_json:
            show_inspection(summary)
        found.check_names()
    except InputError as error:
        if as_json:
            print_json({**facts, "error": str(error)})
        raise
    if as_json:
        print_json(facts)
        return
    print("\nIf this is what you meant:")
    show_next(("train", data, *words_of(_published(reading, classes_are_public)), "--out", "runs/mine"))


@app.command()
@reads_data
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to make for the run, e.g. runs/mine.")],
    epsilon: Epsilon = None,
    delta: Delta = None,
    allow_large_delta: AllowLargeDelta = False,
    recipe: Recipe = None,
    set_: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print all settings, ε and the expected time, and stop.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether the data were read as meant.")] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the progress here, for TensorBoard.")
    ] = None,
    classes_are_public: ClassesArePublic = False,
    as_json: Json = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Train on private images. The folder release in --out is what you may hand out."""
    from dp_sinkhorn.data.sources import open_data
    from dp_sinkhorn.method import STAGES, resolve, settings_of
    from dp_sinkhorn.privacy.plan import budget_warnings
    from dp_sinkhorn.release.card import NOT_PRIVATE
    from dp_sinkhorn.training import run_folder as runs
    from dp_sinkhorn.training.progress import LiveView
    from dp_sinkhorn.training.speed import check_memory
    from dp_sinkhorn.training.tensorboard import TensorBoard

    overrides = _overrides(epsilon, delta, allow_large_delta, set_, _published(reading, classes_are_public))
    if resume and recipe is not None:
        raise InputError(f"--recipe {recipe} and --resume exclude each other; a run keeps its settings: leave it out")
    if resume and dry_run:
        raise InputError("--dry-run and --resume exclude each other; read the run's config.toml instead")
    settings = runs.stored_config(out, STAGES).settings if resume else settings_of(recipe, overrides)
    if not resume and not dry_run:
        runs.check_new(out)
    found = open_data(data, settings.reading)
    records = found.load("train")
    summary = found.summary(all_splits=False)
    for line in summary.lines():
        print(line, file=sys.stderr)
    warn(*summary.warnings)
    found.check_names()
    if not resume:
        config = resolve(settings, runs.facts_of(data, records))
    warned = budget_warnings(settings.target_epsilon, settings.target_delta, len(records))
    warn(*warned, None if settings.test_seed is None else NOT_PRIVATE)
    if not resume:
        check_memory(config, STAGES)
        if dry_run:
            show_dry_run(config, as_json)
            return
        show_time(config)
        if summary.attention and not yes:
            _confirm("Train on what was read?")
    views: list[LiveView | TensorBoard] = [LiveView(stderr)]
    if tensorboard is not None:
        views.append(TensorBoard(tensorboard, out))
    try:
        with ExitStack() as shown:
            for view in views:
                shown.enter_context(view)
            if resume:
                result = runs.resume(records, out, overrides, STAGES, views)
            else:
                result = runs.start(records, config, out, STAGES, views)
    except KeyboardInterrupt:
        _fail(f"interrupted; {runs.resume_hint(out)}", _INTERRUPTED)
    card = result.card
    warn(*(line for line in card.warnings if line not in (NOT_PRIVATE, *warned)))
    facts = {
        "run": str(out),
        "release": str(out / "release"),
        "epsilon": card.epsilon,
        "delta": card.delta,
        "private": card.private,
        "seconds": round(result.seconds, 1),
        "peak_memory_bytes": result.peak_memory_bytes,
    }
    if as_json:
        print_json(facts)
        warn(None if card.private else card.statement())
        return
    show_trained(card, data, out, result.seconds)
    following = [("evaluate", "synthetic.npz", "--real", data, "--out", "evaluation")] if found.evaluation_split else []
    report_on = ("report", out, "--curator", "--evaluation", "evaluation") if following else ("report", out)
    show_next(("sample", out, "--num", 1000, "--out", "synthetic.npz"), *following, report_on)


@app.command()
def sample(
    release: Release,
    num: Annotated[int, typer.Option(help="Number of images.")],
    out: Annotated[Path, typer.Option(help="New .npz or .parquet file, folder (PNG files by class) or .png picture.")],
    labels: Annotated[str | None, typer.Option(help="Only these classes, e.g. 0,1.")] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="All classes equally often. (default: about as often as in the data)")
    ] = False,
    relabel: Annotated[
        bool, typer.Option("--relabel", help="Let the classifier in the release label the images.")
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Add the classifier's probability of each class (.npz, .parquet)."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Equal seeds draw equal images.")] = 0,
    layout: Annotated[
        str | None, typer.Option(metavar="NAME", help="dpimagebench: a folder for the benchmark DPImageBench.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw synthetic images. Any number of them costs no privacy."""
    from dp_sinkhorn.method import STAGES
    from dp_sinkhorn.privacy.plan import delta_warning
    from dp_sinkhorn.release.weights import load_release
    from dp_sinkhorn.sampling.draw import draw
    from dp_sinkhorn.sampling.outputs import check_output

    write = check_output(out, layout, probabilities=probabilities)
    card, generator = load_release(release, STAGES)
    warn(delta_warning(card.delta, card.num_records) if card.private else card.statement())
    draws = draw(card, generator, num, _label_list(labels), seed, balanced, relabel, probabilities)
    with _writing(out):
        write(draws)
    facts = {
        "out": str(out),
        "num": num,
        "epsilon": card.epsilon,
        "delta": card.delta,
        "private": card.private,
    }
    if as_json:
        print_json(facts)
        return
    covered = f" You may hand them out: ε = {card.epsilon:.6g} at δ = {card.delta:g} covers them."
    what = "A grid of images is" if out.suffix == ".png" else f"{num:,} images are"
    print(f"{what} in {out}." + (covered if card.private else ""))
    if layout is None and out.suffix != ".png":
        show_next(("evaluate", out, "--real", "DATA", "--out", "evaluation"))


@app.command()
def export(
    release: Release,
    onnx: Annotated[Path, typer.Option(help="ONNX file to write.")],
    as_json: Json = False,
) -> None:
    """Write the network as an ONNX file, which draws images without PyTorch. Costs no privacy."""
    import hashlib

    from dp_sinkhorn.io.safe_read import listed
    from dp_sinkhorn.method import STAGES
    from dp_sinkhorn.release.export import as_onnx
    from dp_sinkhorn.sampling.outputs import check_free

    if onnx.suffix != ".onnx":
        raise InputError(f"{onnx} ends in {onnx.suffix!r}; give an .onnx file")
    check_free(onnx)
    network = as_onnx(release, STAGES)
    card = network.card
    warn(None if card.private else card.statement())
    with _writing(onnx):
        write_whole(onnx, network.content)
    facts = {
        "file": str(onnx),
        "sha256": hashlib.sha256(network.content).hexdigest(),
        "latent_dim": network.latent_dim,
        "image_shape": card.image_shape,
        "class_names": card.class_names if as_json else listed(card.class_names, 10),
    }
    show(facts, as_json)


@app.command()
@reads_data
def evaluate(
    synthetic: Annotated[
        str, typer.Argument(callback=existing_data, help="Sampled .npz or .parquet, or a folder of images by class.")
    ],
    real: Annotated[
        str, typer.Option(callback=existing_data, help="The real images, with a test split; as DATA of train.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder in which to write evaluation.json.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the classifiers that are trained.")] = 0,
    extractor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Network whose features are compared: efficientnet-lite0, inception:FILE or none."
        ),
    ] = None,
    features: Annotated[int, typer.Option(help="Compare the features of at most so many images.")] = 5000,
    memorisation: Annotated[
        bool, typer.Option("--memorisation", help="Compare with the training records; the result is private.")
    ] = False,
    release: Annotated[
        Path | None, typer.Option(callback=existing, help="Run or release whose ε bounds the attack.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|none", help="Folder that keeps the features of real images. (default: ~/.cache/dp-sinkhorn)"
        ),
    ] = None,
    as_json: Json = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Say how useful synthetic images are: train classifiers on them, and test these on real images."""
    from dp_sinkhorn.data.sources import open_data, open_synthetic
    from dp_sinkhorn.evaluation.cache import check_not_in_release, default_folder
    from dp_sinkhorn.evaluation.extractors import find_extractor
    from dp_sinkhorn.evaluation.score_tables import tables
    from dp_sinkhorn.evaluation.suite import evaluate as evaluate_images
    from dp_sinkhorn.settings import make_settings

    if out is not None:
        check_not_in_release(out)
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is not a folder; give a folder for evaluation.json")
    if release is not None and not memorisation:
        raise InputError(f"--release {release} bounds the membership attack; add --memorisation")
    found, no_extractor = find_extractor(extractor)
    images, stored = open_synthetic(synthetic)
    _, height, width = images.shape
    same_side = {"side": height} if height == width else {}
    how = make_settings({}, None, {"reading": {**stored, **same_side, **reading}}).reading
    found_real = open_data(real, how)
    tested_on = found_real.evaluation_split
    if tested_on is None:
        raise InputError(f"{real} has no test split; add a folder test, or arrays test_images and test_labels")
    if tested_on == "validation":
        warn(f"{real} has no test split; the validation split takes its place")
    real_train, real_test = found_real.load("train"), found_real.load(tested_on)
    with stderr.status("evaluating") as status:
        result = evaluate_images(
            images,
            real_train,
            real_test,
            seed,
            status.update,
            extractor=found,
            num_features=features,
            cache=None if cache == "none" else Path(cache) if cache else default_folder(),
            memorised=memorisation,
            bound=_bound(release, len(real_train)),
            no_extractor=no_extractor,
        )
    text = json.dumps(result.to_json_dict(), indent=2, allow_nan=False)
    if out is not None:
        with _writing(out, "a folder"):
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / "evaluation.json", f"{text}\n".encode())
    warn(*result.warnings)
    if as_json:
        print(text)
        return
    for table in tables(result):
        stdout.print(table)
    print("Keep these figures to yourself: they were computed from real records, and ε does not cover them.")
    if out is not None:
        show_next(("report", "RUN", "--curator", "--evaluation", out))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(callback=existing, help="Run folder, finished.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file. (default: RUN/report.html; --curator: RUN/private/report.html)")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="DIR|FILE", help="Evaluation of this run, from evaluate --out.")
    ] = None,
    curator: Annotated[
        bool, typer.Option("--curator", help="Include figures that ε does not cover: not for handing out.")
    ] = False,
    test_set_is_public: Annotated[
        bool, typer.Option("--test-set-is-public", help="You declare that the test images are not private.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Leave out figures that ε does not cover. (default)")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page: is the run private, is it good, where is it bad, and what may be handed out."""
    from dp_sinkhorn.method import STAGES
    from dp_sinkhorn.report import write_report

    if public and curator:
        raise InputError("--public and --curator exclude each other; give one of them")
    path = write_report(run, out, evaluation, stages=STAGES, curator=curator, test_is_public=test_set_is_public)
    if evaluation is not None and not (curator or test_set_is_public):
        warn(
            "the evaluation is left out of this edition; add --curator for one of your own, or --test-set-is-public if "
            "the test images are not private"
        )
    if as_json:
        edition = "curator: not for handing out" if curator else "public"
        print_json({"report": str(path), "edition": edition, "bytes": path.stat().st_size})
        return
    may = "Do not hand it out: it holds figures that ε does not cover." if curator else "You may hand it out."
    print(f"The report is in {path}: open it in a browser. {may}")


@app.command()
def verify(
    release: Release,
    ledger: Annotated[Path | None, typer.Option(help="The run's ledger. (default: that of RUN)")] = None,
    public_key: Annotated[Path | None, typer.Option(help="PEM file: the key that must have signed the card.")] = None,
    as_json: Json = False,
) -> None:
    """Check a release: recompute ε, compare card, weights, ledger and signature, and bound every attack."""
    from dp_sinkhorn.method import STAGES
    from dp_sinkhorn.release.explain import show
    from dp_sinkhorn.release.verify import verify as verify_release

    result = verify_release(release, STAGES, ledger, public_key)
    print_json(result.to_json_dict()) if as_json else show(result, stdout)
    if not result.ok:
        raise typer.Exit(2)


@app.command()
def budget(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, finished or not.", show_default=False)],
    delta: Annotated[
        float | None, typer.Option(help="δ of all together. (default: the largest of the runs)", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Add up what several runs on the same records spent, by their ledgers."""
    from dp_sinkhorn.method import STAGES
    from dp_sinkhorn.training.total_budget import total_budget

    total = total_budget(runs, STAGES, delta)
    if as_json:
        print_json(total.to_json_dict())
        return
    rows = [*((one.run, one.epsilon, one.delta) for one in total.runs), ("together", total.epsilon, total.delta)]
    width = max(len(name) for name, *_ in rows)
    for name, epsilon, at in rows:
        print(f"{name:<{width}}  epsilon {epsilon:.6g} at delta {at:g}")
    print(
        "\nThis holds for a record that all these runs saw. Count every run on these records, also those that you\n"
        "stopped or threw away, and every other private release of them."
    )


@app.command()
def audit(
    run: Annotated[Path | None, typer.Argument(callback=existing, help="Run folder.", show_default=False)] = None,
    recipe: Recipe = None,
    set_: Set = None,
    draws: Annotated[int, typer.Option(help="Answers on each of two neighbouring data sets.")] = 1000,
    steps: Annotated[int, typer.Option(help="Maximum number of steps of the run with canaries.")] = 1000,
    canaries: Annotated[int, typer.Option(help="Number of canaries; a coin decides which are records.")] = 500,
    as_json: Json = False,
) -> None:
    """Attack the code with the settings of a run on public images, and measure a lower bound on ε."""
    import secrets

    from dp_sinkhorn.audit.audit import Effort, audit_run, audit_settings
    from dp_sinkhorn.method import STAGES, settings_of

    effort = Effort(draws, steps, canaries)
    if (run is None) == (recipe is None):
        raise InputError("give either a run folder or --recipe NAME|FILE")
    if run is not None and set_:
        raise InputError(f"--set {set_[0]} cannot change a run, which keeps its own settings; leave it out")
    seed = secrets.randbits(40)
    with stderr.status("audit") as status:
        if run is not None:
            result = audit_run(run, effort, seed, status.update, STAGES)
        else:
            settings = settings_of(recipe, _overrides(None, None, False, set_))
            result = audit_settings(settings, effort, seed, status.update, STAGES)
    if as_json:
        print_json(result.to_json_dict())
    else:
        show_audit(result)
    if not result.passed:
        raise typer.Exit(2)


@app.command()
def sign(
    release: Release,
    key: Annotated[Path, typer.Option(callback=existing, help="PEM file with your Ed25519 private key.")],
    as_json: Json = False,
) -> None:
    """Verify a release, then sign its card: writes card.sig beside it."""
    from dp_sinkhorn.method import STAGES
    from dp_sinkhorn.release.sign import sign_release

    signed = sign_release(release, key, STAGES, _passphrase)
    warn(signed.warning)
    show({"signature": str(signed.path), "public_key_sha256": signed.public_key_sha256}, as_json)


def main() -> None:
    """Run the command line: exit code 0, 2 with one line on stderr, or 130 where it was interrupted."""
    # Imports make hundreds of thousands of objects that stay until the end. To search them for garbage while they are
    # made, and once more at the end, takes half a second.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    signal.signal(signal.SIGTERM, _interrupt)
    warnings.showwarning = lambda message, *rest, **more: warn(str(message))
    try:
        code = app(standalone_mode=False, prog_name="dp-sinkhorn")
        if code == _INTERRUPTED:  # typer has caught Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
    except InputError as error:
        _fail(str(error))
    except TyperException as error:
        if not (message := _usage(error)):
            sys.exit(0)  # without a verb: the help has been printed
        _fail(one_line(message))
    except OSError as error:
        # A terminal or pipe is gone, or no file system accepts a path.
        where = f" {error.filename}" if error.filename else ""
        _fail(one_line(f"cannot read or write{where}: {error.strerror or error}"))
    except KeyboardInterrupt:
        _fail("interrupted", _INTERRUPTED)
    sys.exit(code or 0)


def _interrupt(number: int, frame: object) -> None:
    """Treat SIGTERM like Ctrl-C: half-written files are removed."""
    raise KeyboardInterrupt


def _fail(message: str, code: int = 2) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:
        # The rest of stdout cannot be written. Without this, Python would try again and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _usage(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    see = f"see {context.command_path if context else 'dp-sinkhorn'} --help"
    if hasattr(error, "possibilities"):  # an option that does not exist
        option = str(getattr(error, "option_name", ""))
        known = [] if context is None else [name for one in context.command.params for name in one.opts]
        setting = "; settings are changed by --set KEY=VALUE" if "--set" in known else ""
        return f"{option} is not an option; {see}{setting}{did_you_mean(option, known)}"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return message and f"{message.rstrip('.')}{_given(error)}; {see}"


def _given(error: TyperException) -> str:
    """The value that did not fit: typer names only the option."""
    options = getattr(getattr(error, "param", None), "opts", [])
    words = [part for word in sys.argv for part in word.split("=", 1)]
    return next((f" (given: {value})" for option, value in reversed([*pairwise(words)]) if option in options), "")


def _passphrase() -> str | None:
    """The passphrase of a private key, from the environment or asked for in a terminal."""
    given = os.environ.get("DP_SINKHORN_KEY_PASSPHRASE")
    if given or not sys.stdin.isatty():
        return given
    return str(typer.prompt("passphrase of the private key", hide_input=True, err=True))


def _overrides(
    epsilon: float | None,
    delta: float | None,
    allow_large_delta: bool,
    pairs: list[str] | None,
    reading: dict[str, Any] | None = None,
) -> dict[str, Any]:
    from dp_sinkhorn.settings import parse_overrides

    given: dict[str, Any] = dict(parse_overrides(pairs or []))
    if reading:
        given["reading"] = {**_table(given, "reading"), **reading}
    given |= {} if epsilon is None else {"target_epsilon": epsilon}
    given |= {} if delta is None else {"target_delta": delta}
    given |= {"allow_large_delta": True} if allow_large_delta else {}
    return given


def _table(given: dict[str, Any], name: str) -> dict[str, Any]:
    table = given.get(name) or {}
    if not isinstance(table, dict):
        raise InputError(f"--set {name}={table} is a group of settings; write {name}.SETTING=VALUE")
    return table


def _label_list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _published(reading: dict[str, Any], classes_are_public: bool) -> dict[str, Any]:
    return {**reading, "classes_are_public": True} if classes_are_public else reading


def _confirm(question: str) -> None:
    """Ask on a terminal; anywhere else the warnings have been printed.

    Raises:
        InputError: The answer is not yes.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        return
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:  # the end of the input
        print(file=sys.stderr)
    if answer.strip().lower() not in ("y", "yes"):
        raise InputError("not started, and nothing was spent; change the data or the options, or give --yes")


def _bound(release: Path | None, num_records: int) -> Any:
    """Bounds by the release's ε on membership attacks on these records."""
    from dp_sinkhorn.evaluation.attack import Bound
    from dp_sinkhorn.privacy.tradeoff import attack_bounds
    from dp_sinkhorn.release.card import PrivacyCard
    from dp_sinkhorn.release.weights import CARD, find_release

    if release is None:
        return None
    card = PrivacyCard.from_file(find_release(release) / CARD)
    if not card.private:
        warn(f"the attack has no bound: {card.statement()}")
        return None
    if card.num_records != num_records:
        raise InputError(
            f"{release} was trained on {card.num_records} records, the training split has {num_records}; "
            "give the release of this data"
        )
    most = attack_bounds(card.charges)
    return Bound(epsilon=card.epsilon, delta=card.delta, auc=most.auc, tpr_at_fpr=most.tpr_at_fpr)


@contextmanager
def _writing(path: Path, remedy: str = "a path with room") -> Iterator[None]:
    """Turn a failed write into one line.

    Raises:
        InputError: Something cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give {remedy} that can be written") from None
