"""Two-bin optimal transport: which share of each unit's mass is kept. Tensors in, tensors out; no nn.Module.

Letters follow the literature (Peyré and Cuturi, "Computational Optimal Transport", 2019):

==============  ======================================================================================================
a_i             source mass of unit i; the a_i of a problem are proportional to what the units cost
b = (1-B, B)    target masses of the two bins, pruned (0) and kept (1)
s_i             score of unit i, trainable
C_ij            transport cost (s_i - j)^2, so that C_i0 - C_i1 = 2 s_i - 1
epsilon         weight of the entropy
P               transport plan, shape (n, 2), rows sum to a_i
m_i             mask, P_i1 / a_i, in [0, 1]
x_i             logit 2 s_i / epsilon
t               threshold, the difference of the two dual potentials of the bins: m_i = sigmoid(x_i - t)
==============  ======================================================================================================
"""

from dtp_deploy.transport.annealing import entropy_bits, epsilon_for_softness, softness
from dtp_deploy.transport.blocks import BlockProblem, BlockResult, epsilon_for_block_softness, solve_blocks
from dtp_deploy.transport.exact import budget_price, solve_exact
from dtp_deploy.transport.problem import Floors, LinearCost, MaskCost, MaskCount, TransportProblem
from dtp_deploy.transport.reference import solve_sinkhorn
from dtp_deploy.transport.result import TransportResult
from dtp_deploy.transport.sinkhorn import sinkhorn_step

__all__ = [
    "BlockProblem",
    "BlockResult",
    "Floors",
    "LinearCost",
    "MaskCost",
    "MaskCount",
    "TransportProblem",
    "TransportResult",
    "budget_price",
    "entropy_bits",
    "epsilon_for_block_softness",
    "epsilon_for_softness",
    "sinkhorn_step",
    "softness",
    "solve_blocks",
    "solve_exact",
    "solve_sinkhorn",
]
