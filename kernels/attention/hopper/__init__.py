"""Interval attention for NVIDIA's Hopper (sm_90) in Gluon: tiles come by TMA, asked for by a warp of their own, products are
asynchronous and warpgroups have roles (FlashAttention-3, arXiv 2407.08608, has the same frame for softmax).

    choice.py            whether a call runs here or in the kernels that every GPU has
    gpu.py               what these kernels can compute, and their launches
    plan.py              units of work, one record each; triton_walks.py makes the records
    gluon_forward.py     out
    gluon_query.py       dQ
    gluon_key.py         dK and dV
    gluon_tiles.py       what they are made of; gluon_bias.py: relative biases

Each sum has one owner and one order, as in the other kernels: results repeat to the bit.
"""
