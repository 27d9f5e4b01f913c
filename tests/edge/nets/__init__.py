"""Whole nets in torch, small enough for tests: the ones that boards and federations are measured with.

`python -m tests.edge.nets [NAME ...]` exports each, compiles it in every profile and prints how far it is from torch.
"""

from tests.edge.nets import dense, federated, mobile, tiny

NETS = {net.name: net for net in (*tiny.NETS, *federated.NETS, *mobile.NETS, *dense.NETS)}
