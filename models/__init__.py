"""Persistence: SQLAlchemy tables and the only SQL of RIS. Imports nothing of ours."""
