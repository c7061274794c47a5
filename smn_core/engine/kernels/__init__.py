"""Triton kernels: what a mask does to a backbone, on a GPU, without a copy of the weights for every mask.

    unpack  theta' of a whole mask, from packed bits, in one launch
    linear  a linear layer for rows of many masks in one launch: from bits, or the shared base with corrections
    table   the spans of a batch as these read them
    choice  whether they work here

How they read a mask is kernelmask.py. The modules with kernels import triton, which is not everywhere: import them
where they are used.
"""
