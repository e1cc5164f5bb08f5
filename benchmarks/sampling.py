"""Measure the cost of drawing an image: the whole released network beside its bare generator.

    python benchmarks/sampling.py [RUN ...] [--num 4000] [--rounds 5] [--threads 1] [--json]

Without RUN it takes untrained networks of the default sizes, with an affine map of 128 dimensions, for 28×28 grey and
32×32 RGB images in ten classes. For each network it prints `milliseconds_per_image` and `bare_milliseconds_per_image`
(CPU time, medians over rounds in which both take turns) and their `ratio`.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.spec import DEFAULT_SIZES, GeneratorSpec
from dp_sinkhorn.generators.tuned import TunedGenerator
from dp_sinkhorn.io.errors import InputError, one_line
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.stages.fine_tuning import TEXTURE_CHANNELS

SHAPES = ((1, 28, 28), (3, 32, 32))
_CLASSES, _DIMENSIONS, _LATENTS, _CHUNK = 10, 128, 16, 1000


def default_network(shape: tuple[int, int, int]) -> Generator:
    """An untrained network of the default sizes."""
    width, channels = DEFAULT_SIZES["conv"]
    spec = GeneratorSpec(
        name="conv",
        latent_dim=_LATENTS,
        width=width,
        channels=channels,
        latent_choice=True,
        affine_dimensions=_DIMENSIONS,
        texture_channels=TEXTURE_CHANNELS,
    )
    return build_generator(spec, shape, _CLASSES).eval()


def seconds_of(generator: Generator, num: int) -> float:
    """CPU seconds for `num` images."""
    random = torch.Generator().manual_seed(0)
    start = time.process_time()
    with torch.no_grad():
        for labels in (torch.arange(num) % generator.num_classes).split(_CHUNK):
            generator.sample(labels, random)
    return time.process_time() - start


def measure(generator: Generator, num: int, rounds: int) -> dict[str, float]:
    """Medians over the rounds, after one to warm up."""
    bare = generator.generator if isinstance(generator, TunedGenerator) else generator
    pairs = [(seconds_of(generator, num), seconds_of(bare, num)) for _ in range(rounds + 1)][1:]
    whole, inner = (1000.0 * statistics.median(times) / num for times in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    return {"milliseconds_per_image": whole, "bare_milliseconds_per_image": inner, "ratio": ratio}


def main() -> None:
    """Read the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--num", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {}
    try:
        if min(arguments.num, arguments.rounds, arguments.threads) < 1:
            raise InputError("--num, --rounds and --threads must be at least 1; give larger numbers")
        networks = {str(run): load_release(run, STAGES)[1] for run in arguments.runs}
    except InputError as error:
        parser.exit(2, f"error: {one_line(str(error))}\n")
    for name, network in (networks or {"×".join(map(str, shape)): default_network(shape) for shape in SHAPES}).items():
        found[name] = measure(network, arguments.num, arguments.rounds)
        if not arguments.json:
            print(name, *(f"{key} {value:.3f}" for key, value in found[name].items()))
    if arguments.json:
        print(json.dumps({"processor": torch.backends.cpu.get_cpu_capability(), **found}))


if __name__ == "__main__":
    main()
