"""Backbone adapter: the only importer of torch and transformers."""
