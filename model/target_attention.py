"""DIN's activation unit (Zhou et al., KDD 2018, arXiv:1706.06978): how much an event weighs for a candidate.

v_U(A) = sum_j a(e_j, v_A) e_j (equation 3), the weights not normalised.
"""

from __future__ import annotations

from torch import Tensor, nn


class ActivationUnit(nn.Module):
    """a(e, v): an MLP over [e, v, e - v, e * v] (figure 2). Over P pairs only e * v is multiplied by weights: the other inputs
    are linear in e and in v, which are projected once each and gathered."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.of_event = nn.Linear(dim, hidden)
        self.of_candidate = nn.Linear(dim, hidden, bias=False)
        self.of_product = nn.Linear(dim, hidden, bias=False)
        self.activation = nn.PReLU()
        self.weight = nn.Linear(hidden, 1)

    def forward(self, candidate: Tensor, events: Tensor, of: Tensor, rows: Tensor) -> Tensor:
        """[C, dim], [N, dim], pairs (candidate [P], row [P]) -> [P, dim]: each pair's event times its weight."""
        event = events[rows]
        hidden = self.of_event(events)[rows] + self.of_candidate(candidate)[of] + self.of_product(event * candidate[of])
        weighed: Tensor = self.weight(self.activation(hidden)) * event
        return weighed
