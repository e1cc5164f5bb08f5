"""Compiled CPU loops for costs q‖x−y‖² + m‖x−y‖₁: one pass over the pixels, no tensor of size n·m·d.

With e = x_i − y_j the cost is the sum of q e² + m|e| over pixels; its gradient has the terms 2q e + m sign(e). Both
loops keep a small tile of images in registers. Threads share the rows; the order of operations, and so the result, does
not depend on their number.
"""

import functools
import importlib
import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dp_sinkhorn.transport.compiled import compiled

DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
ROWS = 4  # images x in a tile of the matrix, unrolled by hand in `_matrix`
SLICES = 4  # pieces of work per thread, so that a busy core does not delay the others
SEQUENTIAL = 1 << 20  # pixel differences (some 0.1 ms); for fewer, waking a thread costs more than it saves


def serves(x: Tensor) -> bool:
    """Whether the loops support the tensor: float32 or float64 on the CPU."""
    return x.device.type == "cpu" and x.dtype in DTYPES


def cost_matrix(
    x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"], square_weight: float, l1_weight: float
) -> Float[Tensor, "*k n m"]:
    """square_weight · ‖x_i − y_j‖² + l1_weight · ‖x_i − y_j‖₁; leading dimensions broadcast without copies."""
    lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    n, m, d = x.shape[-2], y.shape[-2], x.shape[-1]
    out = x.new_empty(math.prod(lead), n, m)
    arguments = (*_points(x, lead), *_points(y, lead), *_scalars(x, square_weight, l1_weight), out.numpy())
    units = out.shape[0] * (-(-n // ROWS))
    run_shared(_compiled("matrix", x.dtype), arguments, units, pixels=out.numel() * d)
    return out.view(*lead, n, m)


def cost_gradient(
    weights: Float[Tensor, "*k n m"],
    x: Float[Tensor, "*#k n d"],
    y: Float[Tensor, "*#k m d"],
    square_weight: float,
    l1_weight: float,
) -> Float[Tensor, "*k n d"]:
    """Σ_j weights_ij (2 square_weight (x_i − y_j) + l1_weight sign(x_i − y_j)), sign(0) = 0.

    A pair of weight exactly 0 is skipped.
    """
    lead = weights.shape[:-2]
    n, m, d = *weights.shape[-2:], x.shape[-1]
    out = x.new_empty(math.prod(lead), n, d)
    mass = weights.detach().reshape(out.shape[0], n, m).numpy()
    arguments = (mass, *_points(x, lead), *_points(y, lead), *_scalars(x, square_weight, l1_weight), out.numpy())
    run_shared(_compiled("gradient", x.dtype), arguments, out.shape[0] * n, pixels=mass.size * d)
    return out.view(*lead, n, d)


def _points(points: Tensor, lead: tuple[int, ...]) -> tuple[Any, Any]:
    """The points as one contiguous stack, and the index into the stack of each problem."""
    own = points.shape[:-2]
    stack = points.detach().reshape(math.prod(own), *points.shape[-2:]).contiguous()
    entry = torch.arange(stack.shape[0]).view(own).expand(lead).reshape(-1)
    return stack.numpy(), entry.contiguous().numpy()


def _scalars(like: Tensor, *values: float) -> tuple[Any, ...]:
    """Numbers in the points' precision: a float64 among float32 slows the loop."""
    return tuple(DTYPES[like.dtype](value) for value in values)


@no_type_check
def _matrix(x, x_entry, y, y_entry, square_weight, l1_weight, out, start, stop):
    """Tiles `start` to `stop` of the matrices: four images x by two points y; edges repeat the last one."""
    n, m, d = x.shape[1], y.shape[1], x.shape[2]
    tiles = (n + ROWS - 1) // ROWS
    zero = square_weight - square_weight
    # Constant, so the compiler makes two loops; the one for ‖x−y‖² alone has half the operations.
    plain = square_weight == 1 and l1_weight == 0
    for unit in range(start, stop):
        k, i0 = unit // tiles, ROWS * (unit % tiles)
        i1, i2, i3 = min(i0 + 1, n - 1), min(i0 + 2, n - 1), min(i0 + 3, n - 1)
        xk, yk = x[x_entry[k]], y[y_entry[k]]
        x0, x1, x2, x3 = xk[i0], xk[i1], xk[i2], xk[i3]
        for j0 in range(0, m, 2):
            j1 = min(j0 + 1, m - 1)
            y0, y1 = yk[j0], yk[j1]
            s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = zero
            for p in range(d):
                e00, e01 = abs(x0[p] - y0[p]), abs(x0[p] - y1[p])
                e10, e11 = abs(x1[p] - y0[p]), abs(x1[p] - y1[p])
                e20, e21 = abs(x2[p] - y0[p]), abs(x2[p] - y1[p])
                e30, e31 = abs(x3[p] - y0[p]), abs(x3[p] - y1[p])
                s00 += e00 * (e00 if plain else square_weight * e00 + l1_weight)
                s01 += e01 * (e01 if plain else square_weight * e01 + l1_weight)
                s10 += e10 * (e10 if plain else square_weight * e10 + l1_weight)
                s11 += e11 * (e11 if plain else square_weight * e11 + l1_weight)
                s20 += e20 * (e20 if plain else square_weight * e20 + l1_weight)
                s21 += e21 * (e21 if plain else square_weight * e21 + l1_weight)
                s30 += e30 * (e30 if plain else square_weight * e30 + l1_weight)
                s31 += e31 * (e31 if plain else square_weight * e31 + l1_weight)
            out[k, i0, j0], out[k, i0, j1] = s00, s01
            out[k, i1, j0], out[k, i1, j1] = s10, s11
            out[k, i2, j0], out[k, i2, j1] = s20, s21
            out[k, i3, j0], out[k, i3, j1] = s30, s31


@no_type_check
def _gradient(weights, x, x_entry, y, y_entry, square_weight, l1_weight, out, start, stop):
    """Rows `start` to `stop` of the gradients, four points y of non-zero weight at a time."""
    n, m, d = x.shape[1], y.shape[1], x.shape[2]
    zero = square_weight - square_weight
    slope = square_weight + square_weight
    used = np.empty(m, np.int64)
    for unit in range(start, stop):
        k, i = unit // n, unit % n
        xi, yk, w, o = x[x_entry[k], i], y[y_entry[k]], weights[k, i], out[k, i]
        count = 0
        for j in range(m):
            if w[j] != zero:
                used[count] = j
                count += 1
        for p in range(d):
            o[p] = zero
        for h in range(0, count, 4):
            # Past the end, repeat the first of the four with weight 0.
            j0 = used[h]
            j1 = used[h + 1] if h + 1 < count else j0
            j2 = used[h + 2] if h + 2 < count else j0
            j3 = used[h + 3] if h + 3 < count else j0
            w0 = w[j0]
            w1 = w[j1] if h + 1 < count else zero
            w2 = w[j2] if h + 2 < count else zero
            w3 = w[j3] if h + 3 < count else zero
            y0, y1, y2, y3 = yk[j0], yk[j1], yk[j2], yk[j3]
            for p in range(d):
                s = o[p]
                e0, e1, e2, e3 = xi[p] - y0[p], xi[p] - y1[p], xi[p] - y2[p], xi[p] - y3[p]
                # A NaN e is not equal to 0 and reaches s through slope · e, even with slope = 0.
                s = s + w0 * (slope * e0 + math.copysign(l1_weight, e0)) if e0 != zero else s
                s = s + w1 * (slope * e1 + math.copysign(l1_weight, e1)) if e1 != zero else s
                s = s + w2 * (slope * e2 + math.copysign(l1_weight, e2)) if e2 != zero else s
                s = s + w3 * (slope * e3 + math.copysign(l1_weight, e3)) if e3 != zero else s
                o[p] = s


_LOOPS: dict[str, Callable[..., None]] = {"matrix": _matrix, "gradient": _gradient}


@functools.cache
def _compiled(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """The compiled loop. Importing numba takes some 0.3 s and compiling 1 s, so both happen on first use."""
    numba = importlib.import_module("numba")
    number = getattr(numba, np.dtype(DTYPES[dtype]).name)
    stack, entry = number[:, :, ::1], numba.int64[::1]
    arguments = (stack, entry, stack, entry, number, number, stack, numba.int64, numba.int64)
    # Weights may be transposed: each is read once per d pixels.
    signature = numba.void(*arguments) if name == "matrix" else numba.void(number[:, :, :], *arguments)
    # Allows vectorised sums. Full fastmath would assume that there is no NaN.
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
    return compiled(_LOOPS[name], signature, **options)


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of one process; a forked child needs threads of its own."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix=f"dp-sinkhorn-{process}")


def run_shared(loop: Callable[..., None], arguments: tuple[Any, ...], units: int, pixels: int) -> None:
    """Run the loop over all units, on as many threads as PyTorch uses.

    Args:
        loop: Called with `arguments`, the first unit and the unit after the last.
        units: Number of units of work.
        pixels: Pixel differences of all units, an estimate of the work.
    """
    threads = 1 if pixels < SEQUENTIAL else min(torch.get_num_threads(), units)
    if threads == 1:
        return loop(*arguments, 0, units)
    bounds = [units * piece // (SLICES * threads) for piece in range(SLICES * threads + 1)]
    pieces = iter(list(itertools.pairwise(bounds)))

    def work() -> None:
        for start, stop in pieces:  # each thread takes the next piece
            loop(*arguments, start, stop)

    helpers = [_pool(os.getpid()).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # a thread that did not start in time has no work left
            helper.result()
    return None
