"""Kernels: compiled twins of slow core references. The only importer of numba, and for search on a
device of torch.

Importing this package or ``region_growing`` does not load numba; the first call does. ``device_*``
never loads it.
"""
