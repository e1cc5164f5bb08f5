"""Read a release's privacy card and its run's ledger, and recompute ε from the charges.

python examples/read_card.py RUN
"""

import json
import sys
from pathlib import Path

from dp_sinkhorn import verify
from dp_sinkhorn.privacy.accounting import Charge, epsilon_pld

run = Path(sys.argv[1])
card = json.loads((run / "release" / "card.json").read_text())
print(
    f"claim: ε = {card['epsilon']:.4g} at δ = {card['delta']:g}, for one record more or less of {card['num_records']}"
)

# A ledger is one JSON object a line: a header first, then the charges in the order of the queries.
entries = [json.loads(line)["entry"] for line in (run / "ledger.jsonl").read_text().splitlines()]
charges = [Charge.model_validate(entry) for entry in entries if "noise_multiplier" in entry]
for name in dict.fromkeys(charge.name for charge in charges):
    of_name = [charge for charge in charges if charge.name == name]
    first, count = of_name[0], sum(charge.count for charge in of_name)
    print(
        f"  {name}: {count} queries, noise multiplier {first.noise_multiplier:.4g}, sample rate {first.sample_rate:g}"
    )

epsilon = epsilon_pld(charges, card["delta"])
print(f"recomputed from the ledger: ε = {epsilon:.4g}")

# `verify` makes this comparison and many more.
result = verify(run)
print("verify: " + ("passed" if result.ok else "; ".join(result.problems)))
