"""Kernels: compiled twins of slow core references. The only importer of numba.

Importing this package or ``region_growing`` does not load numba; the first call does.
"""
