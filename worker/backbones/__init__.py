"""Backbones: pictures in, unit descriptors out. The only importer of torch and transformers.

Importing this package or ``registry`` loads neither; they are loaded when a backbone is.
"""
