"""Persistence: SQLAlchemy tables and the only SQL of RIS. Imports nothing of ours."""

NEWER_SCHEMA_EXIT = 4
"""Exit status of a migration that meets a database which a newer RIS has migrated."""
