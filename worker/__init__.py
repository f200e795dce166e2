"""RIS worker: ingest, search and administration (see docs/architecture.md)."""
