"""Triton kernels: what a mask does to a backbone, on a GPU, without a copy of the weights for every mask.

    unpack  theta' of a whole mask, from packed bits, in one launch
    linear  a linear layer for rows of many masks in one launch: from bits, or the shared base with corrections
    mask    a mask as these read it
    table   the spans of a batch as these read them
    choice  whether they work here
    costs   which of its two ways `linear` takes

The modules with kernels import triton, which is not everywhere: import them where they are used.
"""
