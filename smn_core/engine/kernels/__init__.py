"""Triton kernels: what a mask does to a backbone, on a GPU, without a copy of the weights for every mask.

    unpack      theta' of a whole mask, from packed bits, in one launch
    linear      a linear layer for rows of many masks in one launch: from bits, or the shared base with corrections
    devicemask  a mask as these read it
    table       the segments of a batch as these read them

The modules with kernels import triton, which is not everywhere: import them where they are used.
"""
