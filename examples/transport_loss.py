"""Train any network with a transport loss, without privacy.

    python examples/transport_loss.py

These losses are not private: the gradient depends on the real images without clipping or noise.
"""

import torch
from sklearn.datasets import load_digits

from dp_sinkhorn import Sinkhorn, SquaredEuclidean, sinkhorn_divergence

torch.manual_seed(0)
real = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1  # (1797, 64), in [-1, 1]
held_out, real = real[:300], real[300:]
network = torch.nn.Sequential(torch.nn.Linear(16, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64), torch.nn.Tanh())
optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
cost, solver = SquaredEuclidean(), Sinkhorn(reg=2.0)  # reg in units of the cost: here 0 to 256


def distance() -> float:
    """Sinkhorn divergence between generated images and real ones that the training does not see."""
    with torch.no_grad():
        return sinkhorn_divergence(network(torch.rand(300, 16)), held_out, cost, solver).item()


before = distance()
for _ in range(100):
    batch = real[torch.randint(len(real), (100,))]
    loss = sinkhorn_divergence(network(torch.rand(100, 16)), batch, cost, solver)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
after = distance()
print(f"Sinkhorn divergence to held-out images: {before:.1f} before, {after:.1f} after")
