"""Span attention by softmax for NVIDIA's Hopper (sm_90) in Gluon, in the frame of `kernels.attention.hopper`: tiles by TMA, asked for by a warp of
their own, asynchronous products, warpgroups with roles (FlashAttention-3, arXiv 2407.08608).

    gpu.py               what these kernels can compute, and their launches
    plan.py              units of work, one record each; triton_walks.py makes the records
    gluon_forward.py     out and log-sum-exp
    gluon_query.py       dQ
    gluon_key.py         dK and dV
    gluon_walks.py       records and the tiles that they name

Each sum has one owner and one order, as in the other kernels: results repeat to the bit.
"""
