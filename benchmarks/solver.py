"""Time entropic transport of many small problems, value and gradient: ours beside geomloss and POT.

    python benchmarks/solver.py [--json] [--repeats 15] [--quick | --shape 64,50,784]

Fairness    All contestants solve with the same strength `reg` in float32. Each makes as many iterations as it needs for
            the same mean marginal error of the plan that gives its gradient.
Points      MNIST images from $DP_SINKHORN_DATA. Without it, and for d = 3,072, synthetic images: bright blobs on black.
Times       Contestants take turns; figures are medians and quartiles.
Memory      Peak of one call in a separate process, above what the process held before the call.
floor       Only the product of ‖x−y‖² and the product of its gradient.
--quick     The first shape only, without memory.
--shape     Another shape in place of all: problems, points of each, numbers of a point.
"""

import argparse
import dataclasses
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import geomloss
import numpy as np
import ot
import torch
from torch import Tensor

from dp_sinkhorn.data.sources import load_images
from dp_sinkhorn.transport.costs import MixedCost, SquaredEuclidean
from dp_sinkhorn.transport.divergence import entropic_ot
from dp_sinkhorn.transport.sinkhorn import Sinkhorn

TARGET = 1e-2  # of ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁, mean over the problems
SHAPES = {"64×50×50, d=784": (64, 50, 784), "8×500×500, d=784": (8, 500, 784), "64×50×50, d=3,072": (64, 50, 3072)}
MAIN = next(iter(SHAPES))
REG, SMALL_REG = 0.02, 0.005  # of the mean cost
COSTS = {"L2²": SquaredEuclidean(), "L2²+L1": MixedCost(1.0)}
MOST_ITERATIONS = 1 << 13
SLOW = 500.0  # ms; a slower contestant takes part in every fifth round only

Loss = Callable[[Tensor, Tensor], Tensor]


def by_cdist(x: Tensor, y: Tensor) -> Tensor:
    """‖x−y‖² + ‖x−y‖₁ by PyTorch's fastest functions."""
    squares = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2) - 2.0 * x @ y.mT
    return squares + torch.cdist(x, y, p=1.0)


def by_broadcast(x: Tensor, y: Tensor) -> Tensor:
    """‖x−y‖² + ‖x−y‖₁ by broadcasting."""
    difference = x.unsqueeze(-2) - y.unsqueeze(-3)
    return difference.square().sum(-1) + difference.abs().sum(-1)


def pot_costs(x: Tensor, y: Tensor, cost: str, l1: str) -> Tensor:
    """Costs by POT's functions; L1 by POT's broadcast or by PyTorch's `cdist`."""
    squares = ot.batch.dist_batch(x, y, metric="sqeuclidean")
    if cost == "L2²":
        return squares
    return squares + (torch.cdist(x, y, p=1.0) if l1 == "cdist" else ot.batch.dist_batch(x, y, "minkowski", p=1))


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A solver with all its constants, as plain data that a separate process can read.

    `start`: the strength at which the schedule begins, which falls to `reg`. None: no schedule.
    """

    library: str
    how: str
    l1: str
    cost: str
    reg: float
    start: float | None = None
    iterations: int = 0

    @property
    def name(self) -> str:
        """Name in the tables."""
        return " ".join(filter(None, (self.library, self.how, self.l1 if self.cost == "L2²+L1" else "")))

    def solver(self) -> Sinkhorn:
        """Our solver."""
        return Sinkhorn(self.reg, self.iterations, start_reg=self.start)

    def geomloss(self, cost: Loss | None, half: float) -> geomloss.SamplesLoss:
        """geomloss' solver at reg = blur². It makes four iterations besides those of the schedule."""
        blur, diameter = math.sqrt(half * self.reg), math.sqrt(half * (self.start or 1.001 * self.reg))
        scaling = (blur / diameter) ** (1.0 / (max(self.iterations, 5) - 4.5))
        arguments = {"blur": blur, "diameter": diameter, "scaling": scaling, "cost": cost}
        return geomloss.SamplesLoss("sinkhorn", p=2, debias=False, backend="tensorized", **arguments)

    def pot(self, costs: Tensor) -> Any:
        """POT's solution by the method `how`, without a graph of the iterations, which the gradient does not need."""
        return ot.batch.solve_batch(
            costs.detach(), reg=self.reg, max_iter=self.iterations, tol=0.0, method=self.how, grad="detach"
        )

    def loss(self) -> Loss:
        """Return a function for W(X, Y) of every problem, differentiable in x."""
        if self.library == "ours":
            return lambda x, y: entropic_ot(x, y, COSTS[self.cost], self.solver())
        if self.library == "geomloss":
            # geomloss' own p = 2 cost has a factor ½; a given cost has none.
            own = {"cdist": by_cdist, "broadcast": by_broadcast}[self.l1]
            solve = self.geomloss(None, 0.5) if self.cost == "L2²" else self.geomloss(own, 1.0)
            factor = 2.0 if self.cost == "L2²" else 1.0
            if self.how == "batched":
                return lambda x, y: factor * solve(x, y)
            return lambda x, y: factor * torch.stack([solve(a, b) for a, b in zip(x, y, strict=True)])

        def pot_loss(x: Tensor, y: Tensor) -> Tensor:
            costs = pot_costs(x, y, self.cost, self.l1)
            solved = self.pot(costs)
            # Envelope theorem: only ⟨P, C⟩ depends on C. KL(P ‖ a⊗b) is POT's negative entropy and a constant.
            entropy = self.reg * math.log(costs.shape[1] * costs.shape[2])
            return ot.batch.loss_linear_batch(costs, solved.plan) + (solved.value - solved.value_linear + entropy)

        return pot_loss

    def plan(self, costs: Tensor) -> Tensor:
        """The transport plan that gives the gradient."""
        if self.library == "ours":
            return self.solver()(costs).plan
        if self.library == "pot":
            return self.pot(costs).plan
        leaf = costs.detach().requires_grad_()
        answers = iter((leaf, costs.mT))
        points = costs.new_zeros(*costs.shape[:2], 1)
        value = self.geomloss(lambda x, y: next(answers), 1.0)(points, points)
        return torch.autograd.grad(value.sum(), leaf)[0]


def contestants(cost: str, reg: float, diameter: float, everything: bool) -> list[tuple[list[Contestant], list[Any]]]:
    """List the solvers: for each the schedules to choose from, and the ways (`how`, `l1`) to run the chosen one.

    `everything`: also L1 by broadcasting, which is slow and takes gigabytes.
    """
    ways = ["cdist", "broadcast"] if everything and cost == "L2²+L1" else ["cdist"]
    starts = (None, 2.0 * reg, 5.0 * reg, 20.0 * reg)
    looped = [{"how": how, "l1": l1} for l1 in ways for how in ("looped", "batched")]
    theirs = (*starts, diameter**2)  # the last is geomloss' default
    return [
        ([Contestant("ours", "", "", cost, reg, start) for start in starts], [{}]),
        ([Contestant("geomloss", "batched", "", cost, reg, start) for start in theirs], looped),
        *(
            ([Contestant("pot", method, "", cost, reg)], [{"l1": l1} for l1 in ways])
            for method in ("log_sinkhorn", "sinkhorn")
        ),
    ]


def marginal_error(plan: Tensor) -> float:
    """Mean over the problems of ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ for uniform a and b."""
    rows, columns = plan.sum(2) - 1.0 / plan.shape[1], plan.sum(1) - 1.0 / plan.shape[2]
    return float((rows.abs().sum(1) + columns.abs().sum(1)).mean())


def chosen(candidates: list[Contestant], costs: Tensor) -> Contestant | None:
    """The candidate that reaches the target with the fewest iterations, to 2 %. None: no candidate reaches it."""

    def reaches(candidate: Contestant, iterations: int) -> bool:
        plan = dataclasses.replace(candidate, iterations=iterations).plan(costs)
        return marginal_error(plan) <= TARGET  # False for NaN

    best, most = None, MOST_ITERATIONS
    for candidate in candidates:
        if best is not None and not reaches(candidate, most - 1):
            continue
        least, high = 0, 8
        while not reaches(candidate, high) and high < most:
            least, high = high, 2 * high
        if high >= MOST_ITERATIONS:
            continue
        while high - least > max(1, high // 50):
            middle = (least + high) // 2
            least, high = (least, middle) if reaches(candidate, middle) else (middle, high)
        best, most = dataclasses.replace(candidate, iterations=high), high
    return best


def value_and_gradient(loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of a loss: this is what is timed."""
    x = x.detach().requires_grad_()
    value = loss(x, y)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def floor(x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return a function that makes the products of the cost and of its gradient; all else is computed before."""
    squares = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2)
    weights = torch.full_like(squares, 1.0 / squares[0].numel())

    def products() -> None:
        torch.baddbmm(squares, x, y.mT, alpha=-2.0)
        torch.baddbmm(x, weights, y, beta=2.0 / x.shape[1], alpha=-2.0)

    return products


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of every call. The calls take turns, and each round begins with another one."""

    def milliseconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)

    order = list(calls)
    slow = {name for name in order if min(milliseconds(calls[name]) for _ in range(2)) > SLOW}
    times: dict[str, list[float]] = {name: [] for name in order}
    for number in range(rounds):
        order = order[1:] + order[:1]
        for name in order:
            if name not in slow:
                calls[name]()  # warm up: the call before has left other data in the caches
            if name not in slow or number % 5 == 0:
                times[name].append(milliseconds(calls[name]))
    return {
        name: {"ms": statistics.median(values), "quartiles_ms": np.percentile(values, [25, 75]).tolist()}
        for name, values in times.items()
    }


def points(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, str]:
    """Return x and y of shape (problems, n, d) in [-1, 1], and a description of them."""
    problems, n, d = shape
    folder = Path(os.environ.get("DP_SINKHORN_DATA", "")) / "mnist"
    if d == 784 and "DP_SINKHORN_DATA" in os.environ:
        images, kind = load_images(str(folder)).subset(torch.arange(2 * problems * n)).floats(), "MNIST images"
    else:
        images, kind = blobs(2 * problems * n, d), "synthetic blobs"
    x, y = images.view(2, problems, n, d)
    return x, y, kind


def blobs(count: int, d: int) -> Tensor:
    """Make images of three bright blobs on black; d = 3,072 means 32×32 pixels in three colours."""
    channels = 3 if d == 3072 else 1
    side = math.isqrt(d // channels)
    source = torch.Generator().manual_seed(0)
    centre = 0.2 + 0.6 * torch.rand(count, 3, 2, 1, generator=source)
    colour = 0.5 + 0.5 * torch.rand(count, 3, channels, generator=source)
    waves = (-((torch.linspace(0.0, 1.0, side) - centre) ** 2) / (2 * 0.08**2)).exp()
    sums = torch.einsum("kbc,kbi,kbj->kcij", colour, waves[:, :, 0], waves[:, :, 1]).flatten(1)
    return 2.0 * torch.where(sums < 0.05, 0.0, sums).clamp(max=1.0) - 1.0


def compare(
    shape: str, sizes: tuple[int, ...], cost: str, share: float, rounds: int, *, everything: bool, memory: bool
) -> list[dict[str, Any]]:
    """Return one row for each contestant and, for L2², the floor."""
    x, y, kind = points(sizes)
    costs = COSTS[cost].matrix(x, y)
    reg = share * float(costs.mean())
    corners = torch.stack([x.amax((0, 1)), y.amax((0, 1)), -x.amin((0, 1)), -y.amin((0, 1))]).view(2, 2, -1).amax(1)
    solver = Sinkhorn(reg, 1_000, start_reg=10.0 * reg)
    _, exact = value_and_gradient(lambda x, y: entropic_ot(x, y, COSTS[cost], solver), x.double(), y.double())
    task = {"shape": shape, "points": kind, "cost": cost, "reg": reg, "reg_share": share}
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {"floor": floor(x, y)} if cost == "L2²" else {}
    found: dict[str, Contestant] = {}
    for candidates, ways in contestants(cost, reg, float(corners.sum(0).norm()), everything):
        best = chosen(candidates, costs)
        for way in ways:
            if best is None:
                name = dataclasses.replace(candidates[0], **way).name
                rows[name] = {"contestant": name}
                continue
            contestant = dataclasses.replace(best, **way)
            call = partial(value_and_gradient, contestant.loss(), x, y)
            gradient_error = float((call()[1] - exact).norm() / exact.norm())
            # The comparison is fair only if all contestants solve the same problem.
            assert gradient_error < 0.1, (contestant, gradient_error)
            found[contestant.name], calls[contestant.name] = contestant, call
            rows[contestant.name] = {
                "contestant": contestant.name,
                **{key: getattr(contestant, key) for key in ("library", "start", "iterations")},
                "marginal_error": marginal_error(contestant.plan(costs)),
                "gradient_error": gradient_error,
            }
    for name, times in interleaved(calls, rounds).items():
        rows[name] = rows.get(name, {"contestant": name, "library": name}) | times
    if memory:
        for name, contestant in found.items():
            rows[name]["peak_memory_bytes"] = memory_of(contestant, x, y)
    return [task | row for row in rows.values()]


def memory_of(contestant: Contestant, x: Tensor, y: Tensor) -> int:
    """Peak memory of one call, in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", x.numpy())
        np.save(Path(folder) / "y.npy", y.numpy())
        words = [sys.executable, __file__, "--only", json.dumps(dataclasses.asdict(contestant)), "--points", folder]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


def only(contestant: Contestant, folder: Path) -> int:
    """Bytes of one call above what the process holds after loading and compiling; `memory_of` runs this."""
    x, y = (torch.from_numpy(np.load(folder / name)) for name in ("x.npy", "y.npy"))
    value_and_gradient(contestant.loss(), x[:1, :4], y[:1, :4])
    before = peak_memory()
    value_and_gradient(contestant.loss(), x, y)
    return peak_memory() - before


def peak_memory() -> int:
    """Peak memory of this process in bytes; from /proc if there is one, as `getrusage` includes the parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Time of the fastest contestant of each library over ours, for the first shape and the larger reg."""
    main = [row for row in rows if (row["shape"], row["reg_share"]) == (rows[0]["shape"], REG) and "ms" in row]

    def fastest(library: str, cost: str) -> float:
        return min(
            row["ms"] for row in main if row.get("library", row["contestant"]) == library and row["cost"] == cost
        )

    result = {
        f"{key}_vs_{library}": fastest(library, cost) / fastest("ours", cost)
        for key, cost in (("ratio", "L2²+L1"), ("ratio_l2", "L2²"))
        for library in ("geomloss", "pot")
    }
    return result | {"times_floor": fastest("ours", "L2²") / fastest("floor", "L2²")}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| shape | points | cost | reg, % of mean cost | contestant | iterations | marginal error | gradient error "
        "| ms (quartiles) | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["shape"], row["points"], row["cost"], f"{100 * row['reg_share']:g}", row["contestant"]]
        names = ("iterations", "marginal_error", "gradient_error")
        cells += [f"{row[name]:.3g}" if name in row else "" for name in names]
        low, high = row.get("quartiles_ms", (0.0, 0.0))
        cells += [f"{row['ms']:.1f} ({low:.1f}-{high:.1f})" if "ms" in row else f"does not reach {TARGET:g}"]
        cells += [f"{row['peak_memory_bytes'] / 2**20:.0f} MiB" if "peak_memory_bytes" in row else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shape", metavar="PROBLEMS,POINTS,NUMBERS")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--points", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(only(Contestant(**json.loads(arguments.only)), arguments.points))
        return
    rows: list[dict[str, Any]] = []
    shapes: dict[str, tuple[int, ...]] = {MAIN: SHAPES[MAIN]} if arguments.quick else dict(SHAPES)
    if arguments.shape:
        problems, n, d = map(int, arguments.shape.split(","))
        shapes = {f"{problems}×{n}×{n}, d={d:,}": (problems, n, d)}
    first = next(iter(shapes))
    for shape, sizes in shapes.items():
        for share in (REG, SMALL_REG) if shape == first else (REG,):
            for cost in COSTS:
                print(f"{shape}, {cost}, reg {100 * share:g} % of the mean cost", file=sys.stderr)
                how = {"everything": (shape, share) == (first, REG), "memory": share == REG and len(shapes) > 1}
                rows += compare(shape, sizes, cost, share, arguments.repeats, **how)
    result = ratios(rows)
    if arguments.json:
        print(json.dumps({**result, "threads": torch.get_num_threads(), "rows": rows}))
        return
    print(f"{torch.get_num_threads()} threads, medians of {arguments.repeats} rounds\n\n{table(rows)}\n")
    for name, value in result.items():
        print(f"{name:<24}{value:8.2f}")


if __name__ == "__main__":
    main()
