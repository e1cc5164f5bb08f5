"""The solver of `sinkhorn.py` as compiled loops, for float32 on the CPU, one problem after the other.

A problem of 50×50 fits the innermost cache, so its iterations cost little more than their arithmetic. Importing this
module imports numba and compiles, which takes some seconds; later processes read the cache. So only a solve that needs
it imports it. `sinkhorn.solve_anywhere` makes the same steps by tensor operations; tests compare the two.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np

from dp_sinkhorn.transport.compiled import compiled

numba: Any = importlib.import_module("numba")

REACH = 12.0  # bound on |log| of scaling factors, so that their products stay in the range of float32
ROWS = 64  # rows of a plan that stay in the cache for a second read

_ZERO, _ONE, _LOWEST = np.float32(0.0), np.float32(1.0), np.float32(-np.inf)
_FACTOR, _RATIO = np.float32(math.exp(REACH)), np.float32(math.exp(2.0 * REACH))
_CUT = np.float32(-50.0)  # below it exp gives 0: the terms are less than 1e-21 of the largest one in their sum
_STEP, _STEP_RATIO = np.float32(25.0), np.float32(math.exp(25.0))
_PER_LN2, _LN2 = np.float32(1.0 / math.log(2.0)), np.float32(math.log(2.0))
# ln 2 in two parts; a small integer times the first, short one is exact.
_LN2_SHORT, _LN2_REST = np.float32(0.693359375), np.float32(math.log(2.0) - 0.693359375)
_ROUNDER = np.float32(1.5 * 2.0**23)  # adding it rounds a float32 to an integer, held in its lowest bits

# Allows vectorised and fused sums. Full fastmath would assume that there is no NaN.
_VECTOR = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
_fast = numba.njit(**_VECTOR)
# exp and log need the written order of operations.
_exact = numba.njit(error_model="numpy", fastmath={"contract"})
# A row with a NaN may give any peak, since the sum after it still holds the NaN.
_peak = numba.njit(error_model="numpy", fastmath={"nnan", "nsz", "reassoc"})


@_exact
@no_type_check
def _exp(x):
    """exp(x) for x ≤ 0, to a relative 1e-7; 0 below `_CUT`. Unlike the library's exp it vectorises."""
    bounded = _CUT if x < _CUT else x
    shifted = bounded * _PER_LN2 + _ROUNDER
    whole = shifted - _ROUNDER
    rest = bounded - whole * _LN2_SHORT
    rest = rest - whole * _LN2_REST
    series = np.float32(1.0 / 5040.0)
    series = series * rest + np.float32(1.0 / 720.0)
    series = series * rest + np.float32(1.0 / 120.0)
    series = series * rest + np.float32(1.0 / 24.0)
    series = series * rest + np.float32(1.0 / 6.0)
    series = series * rest + np.float32(0.5)
    series = series * rest + _ONE
    series = series * rest + _ONE
    power = np.int32((np.float32(shifted).view(np.int32) << np.int32(23)) + np.int32(0x3F800000)).view(np.float32)
    return _ZERO if x < _CUT else series * power


@_exact
@no_type_check
def _log(x):
    """log(x) for normal x > 0, to 1e-7; NaN for NaN."""
    bits = np.float32(x).view(np.int32)
    power = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))  # x = 2^power · [√½, √2)
    rest = np.int32(bits - np.int32(power << np.int32(23))).view(np.float32) - _ONE
    odd = rest / (np.float32(2.0) + rest)
    square = odd * odd
    series = np.float32(2.0 / 9.0)
    series = series * square + np.float32(2.0 / 7.0)
    series = series * square + np.float32(2.0 / 5.0)
    series = series * square + np.float32(2.0 / 3.0)
    series = series * square + np.float32(2.0)
    value = np.float32(power) * _LN2 + odd * series
    return value if x == x else x  # a NaN is not equal to itself


@_peak
@no_type_check
def _largest(row):
    largest = _LOWEST
    for j in range(len(row)):
        largest = max(largest, row[j])
    return largest


@_fast
@no_type_check
def _column_sums(cost, shifts, scale, peaks, sums):
    """Σ_i exp(shifts_i − cost_ij · scale) of every column as exp(peak) · sum; a column without terms has sum 0."""
    for j in range(len(sums)):
        peaks[j], sums[j] = _LOWEST, _ZERO
    for i in range(len(shifts)):
        if shifts[i] != _LOWEST:
            row, shift = cost[i], shifts[i]
            for j in range(len(peaks)):
                score = shift - row[j] * scale
                peaks[j] = score if score > peaks[j] else peaks[j]
    for j in range(len(peaks)):
        peaks[j] = _ZERO if peaks[j] == _LOWEST else peaks[j]
    for i in range(len(shifts)):
        if shifts[i] != _LOWEST:
            row, shift = cost[i], shifts[i]
            for j in range(len(sums)):
                sums[j] += _exp(shift - row[j] * scale - peaks[j])


@_fast
@no_type_check
def _row_terms(cost, shifts, scale, terms):
    """Write terms_j = exp(shifts_j − cost_j · scale − peak) of one row; return its peak and the sum of terms."""
    for j in range(len(terms)):
        terms[j] = shifts[j] - cost[j] * scale
    peak = _largest(terms)
    peak = _ZERO if peak == _LOWEST else peak
    total = _ZERO
    for j in range(len(terms)):
        term = _exp(terms[j] - peak)
        terms[j] = term
        total += term
    return peak, total


@_fast
@no_type_check
def _move_potential(potential, reg, scale, peaks, sums, slack, factors):
    """Half-iteration in the log domain, over-relaxed; writes the over-relaxation to `factors`."""
    for j in range(len(potential)):
        target = -peaks[j] - _log(sums[j])
        step = min(max(target - potential[j] * scale, -_STEP), _STEP)
        ratio = _exp(step - _STEP) * _STEP_RATIO
        factors[j] = (ratio + slack) / (_ONE + slack * ratio)
        potential[j] = reg * (target + _log(factors[j])) if sums[j] != _ZERO else potential[j]


@_fast
@no_type_check
def _move_factors(weights, sums, factors, slack):
    """Half-iteration in the scaling domain, which moves factors · sums towards the weights."""
    for j in range(len(factors)):
        ratio = min(max(weights[j] / (sums[j] * factors[j]), _ONE / _RATIO), _RATIO)
        moved = factors[j] * ratio * (ratio + slack) / (_ONE + slack * ratio)
        factors[j] = min(max(moved, _ONE / _FACTOR), _FACTOR) if sums[j] > _ZERO else factors[j]


@_fast
@no_type_check
def _scaling_iteration(plan, a, b, u, v, row_sums, column_sums, slack):
    """Update v, then u, and read every row once; `column_sums` holds Σ_i u_i plan_ij before and after."""
    n = plan.shape[0]
    _move_factors(b, column_sums, v, slack)
    column_sums[:] = _ZERO
    for first in range(0, n, ROWS):
        last = min(first + ROWS, n)
        fours = last - (last - first) % 4
        for i in range(first, fours, 4):  # four rows at a time, to read v and the sums a quarter as often
            p0, p1, p2, p3 = plan[i], plan[i + 1], plan[i + 2], plan[i + 3]
            s0 = s1 = s2 = s3 = _ZERO
            for j in range(len(v)):
                s0 += p0[j] * v[j]
                s1 += p1[j] * v[j]
                s2 += p2[j] * v[j]
                s3 += p3[j] * v[j]
            row_sums[i], row_sums[i + 1], row_sums[i + 2], row_sums[i + 3] = s0, s1, s2, s3
        for i in range(fours, last):
            row, total = plan[i], _ZERO
            for j in range(len(v)):
                total += row[j] * v[j]
            row_sums[i] = total
        _move_factors(a[first:last], row_sums[first:last], u[first:last], slack)
        for i in range(first, fours, 4):
            p0, p1, p2, p3 = plan[i], plan[i + 1], plan[i + 2], plan[i + 3]
            u0, u1, u2, u3 = u[i], u[i + 1], u[i + 2], u[i + 3]
            for j in range(len(v)):
                column_sums[j] += u0 * p0[j] + u1 * p1[j] + u2 * p2[j] + u3 * p3[j]
        for i in range(fours, last):
            row, factor = plan[i], u[i]
            for j in range(len(v)):
                column_sums[j] += factor * row[j]


@_fast
@no_type_check
def _absorb(potential, reg, factors):
    for i in range(len(potential)):
        potential[i] += reg * _log(factors[i])


@no_type_check
def _solve(cost, a, b, regs, slacks, runs, f, g, plan, start, stop):
    """Solve problems `start` to `stop`; regs, slacks and runs are the fields of the rounds."""
    n, m = cost.shape[1], cost.shape[2]
    log_a, rows, row_peaks, row_sums, u = np.empty((5, n), np.float32)
    log_b, columns, column_peaks, column_sums, v = np.empty((5, m), np.float32)
    for k in range(start, stop):
        for i in range(n):
            log_a[i], f[k, i] = np.float32(math.log(a[k, i])), _ZERO
        for j in range(m):
            log_b[j], g[k, j] = np.float32(math.log(b[k, j])), _ZERO
        for r in range(len(regs)):
            reg, scale, slack = np.float32(regs[r]), np.float32(1.0 / regs[r]), np.float32(slacks[r])
            for i in range(n):
                rows[i] = f[k, i] * scale + log_a[i]
            _column_sums(cost[k], rows, scale, column_peaks, column_sums)
            _move_potential(g[k], reg, scale, column_peaks, column_sums, slack, v)
            for j in range(m):
                columns[j] = g[k, j] * scale + log_b[j]
            for i in range(n):
                row_peaks[i], row_sums[i] = _row_terms(cost[k, i], columns, scale, plan[k, i])
            _move_potential(f[k], reg, scale, row_peaks, row_sums, slack, u)
            # The terms are a row of the plan up to a factor.
            for i in range(n):
                factor = a[k, i] * u[i] / row_sums[i] if row_sums[i] != _ZERO else _ZERO
                row = plan[k, i]
                for j in range(m):
                    row[j] *= factor
            if runs[r] > 0:
                u[:], v[:], column_sums[:] = _ONE, _ONE, _ZERO
                for i in range(n):
                    row = plan[k, i]
                    for j in range(m):
                        column_sums[j] += row[j]
                for _ in range(runs[r]):
                    _scaling_iteration(plan[k], a[k], b[k], u, v, row_sums, column_sums, slack)
                _absorb(f[k], reg, u)
                _absorb(g[k], reg, v)


def _compiled() -> Callable[..., None]:
    """The compiled `_solve`."""
    single, double = numba.float32, numba.float64[::1]
    signature = numba.void(
        *(single[:, :, ::1], single[:, ::1], single[:, ::1]),
        *(double, double, numba.int64[::1]),
        *(single[:, ::1], single[:, ::1], single[:, :, ::1]),
        *(numba.int64, numba.int64),
    )
    return compiled(_solve, signature, **_VECTOR)


solve = _compiled()
