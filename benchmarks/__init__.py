"""Benchmarks: each prints one JSON object per figure, with a peer measured in the same run."""
