"""RIS worker: ingest, search and administration (see docs/architecture.md)."""

VERSION = "0.1.0"
"""Of RIS, as pyproject.toml says: a checkout that runs in place is not an installed package."""
