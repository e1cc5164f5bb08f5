"""The figures that documents state of default runs are what the code computes, rounded up."""

import math
import re
from functools import cache
from pathlib import Path

import pytest

from dp_sinkhorn.privacy.accounting import Charge, epsilon_pld
from dp_sinkhorn.privacy.groups import epsilon_of_several
from dp_sinkhorn.privacy.tradeoff import AttackBounds, attack_bounds, tpr_bound

DOCS = Path(__file__).parents[2] / "docs"
PRIVACY, VERIFY = "explanation/privacy.md", "how-to/verify.md"
OFFICERS = "explanation/privacy-officers.md"
DELTA = 1e-5
RECORDS = 60_000

# What `dp-sinkhorn plan --num-records 60000 --epsilon E` prints: of all records the noise multipliers, and of Poisson
# subsamples (noise multiplier, sample rate, how many).
ONCE = {
    10.0: (4.999, 4.999, 2.886, 0.9998, 2.236, 1.581),
    1.0: (37.31, 37.31, 21.54, 7.461, 16.68, 11.8),
    0.2: (163.0, 163.0, 94.13, 32.61, 72.91, 23.11),
}
SUBSAMPLED = {
    10.0: {"label_classifier": (1.952, 0.1, 200), "transport_steps": (2.63, 0.1, 1000)},
    1.0: {"label_classifier": (13.64, 0.1, 200), "transport_steps": (18.77, 0.1, 1000)},
    0.2: {"label_classifier": (59.54, 0.1, 200)},  # the mode is "embedding"
}
NAMES = ("class_counts", "first_moments", "second_moment", "class_moments", "class_features", "class_embedding")


def charges(epsilon: float) -> list[Charge]:
    once = [Charge(name=name, noise_multiplier=noise) for name, noise in zip(NAMES, ONCE[epsilon], strict=True)]
    subsampled = [
        Charge(name=name, noise_multiplier=noise, sample_rate=rate, count=count)
        for name, (noise, rate, count) in SUBSAMPLED[epsilon].items()
    ]
    return [*once, *subsampled]


@cache
def bounds(epsilon: float) -> AttackBounds:
    return attack_bounds(charges(epsilon))


def table(document: str, first_column: str) -> list[list[str]]:
    """Header and rows of the table whose first heading begins like this."""
    lines = (DOCS / document).read_text().splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(f"| {first_column}"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def number(cell: str) -> float:
    return float(re.sub("[ %]", "", cell))


def is_rounded_up(stated: str, exact: float) -> bool:
    """Not below the exact value, and above it by less than one unit of the last digit that is stated."""
    digits = re.sub("[ %]", "", stated)
    unit = 10.0 ** -len(digits.partition(".")[2])
    return exact <= float(digits) < exact + unit * (1.0 + 1e-9)


def test_rounding_up_and_rounding_down_are_distinguished() -> None:
    assert is_rounded_up("36.5 %", 36.47)
    assert not is_rounded_up("36.4 %", 36.47)
    assert not is_rounded_up("36.6 %", 36.47)


@pytest.mark.parametrize("epsilon", [10.0, 1.0, 0.2])
def test_the_charges_are_those_of_a_plan_for_that_epsilon(epsilon: float) -> None:
    assert 0.99 * epsilon <= epsilon_pld(charges(epsilon), DELTA) <= epsilon


@pytest.mark.parametrize("document", [PRIVACY, OFFICERS, VERIFY])
def test_documented_bounds_on_attacks_are_those_of_the_code(document: str) -> None:
    header, *rows = table(document, "ε of the default run")
    assert header[1:3] == ["found at 1 % false accusations", "found at 0.1 %"]
    assert [number(row[0]) for row in rows] == [10.0, 1.0, 0.2]
    for row in rows:
        found = bounds(number(row[0]))
        assert is_rounded_up(row[1], 100.0 * found.tpr_at_1_percent), row
        assert is_rounded_up(row[2], 100.0 * found.tpr_at_01_percent), row


def test_documented_bounds_of_epsilon_and_delta_are_those_of_the_code() -> None:
    header, *rows = table(VERIFY, "ε of the default run")
    assert header[3] == "from (ε, δ) alone, at 1 %"
    for row in rows:
        assert is_rounded_up(row[3], 100.0 * tpr_bound(0.01, number(row[0]), DELTA)), row


def test_documented_epsilons_of_several_records_are_computed() -> None:
    header, *rows = table(PRIVACY, "ε of one record")
    several = [int(cell.removeprefix("of ")) for cell in header[1:]]
    assert several == [2, 3, 5]
    assert [number(row[0]) for row in rows] == [10.0, 1.0, 0.2]
    for row in rows:
        epsilon = number(row[0])
        for records, stated in zip(several, row[1:], strict=True):
            exact = epsilon_of_several(charges(epsilon), DELTA, records)
            assert is_rounded_up(stated, exact), (epsilon, records, exact)
            # "more than k times as large"
            assert exact > records * epsilon_pld(charges(epsilon), DELTA)


@pytest.mark.parametrize("document", [PRIVACY, OFFICERS, VERIFY])
def test_documents_say_what_the_default_run_is(document: str) -> None:
    assert f"{RECORDS:,} records, δ = 1e-5" in (DOCS / document).read_text()


def test_the_officers_example_of_five_images_agrees() -> None:
    """With the table of several records: ε = 1 of one image, and of five."""
    header, *rows = table(PRIVACY, "ε of one record")
    (row,) = (row for row in rows if number(row[0]) == 1.0)
    stated = row[header.index("of 5")]
    assert f"five images of one person ε = 1 becomes {stated} " in (DOCS / OFFICERS).read_text()


def test_the_largest_counts_of_records_that_rounding_is_proved_for() -> None:
    """2·(c + N/c + 3)·2⁻⁵³·N ≤ 1e-6 less the grid's 2 %: chunks of c records, added one after the other."""
    header, *rows = table(PRIVACY, "chunk of")
    assert header[1:] == ["largest sum at a room of 1e-6", "at 1e-5", "at 1e-4"]
    for row in rows:
        chunk = int(row[0].replace(",", ""))
        for room, stated in zip((1e-6, 1e-5, 1e-4), row[1:], strict=True):
            largest = float(stated.replace(",", ""))
            spent = [2.0 * (chunk + size / chunk + 3.0) * 2.0**-53 * size for size in (largest, 1.1 * largest)]
            assert spent[0] <= 0.98 * room < spent[1], row


def test_the_rounding_of_large_numbers_of_numbers() -> None:
    """√n numbers of 2⁻³⁴ sensitivities."""
    _, *rows = table(PRIVACY, "numbers in a release")
    for row in rows:
        power = re.match(r"2\^(\d+)", row[0])
        count = 2.0 ** int(power[1]) if power else float(row[0].split(" ")[0].replace(",", ""))
        assert is_rounded_up_to(row[1], math.sqrt(count) * 2.0**-34), row


def is_rounded_up_to(stated: str, exact: float) -> bool:
    """In scientific notation, of as many digits as are stated."""
    mantissa, _, exponent = stated.partition("e")
    unit = 10.0 ** (int(exponent) - len(mantissa.partition(".")[2]))
    return exact <= float(stated) < exact + unit
