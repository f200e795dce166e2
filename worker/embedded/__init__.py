"""Embedded services: Postgres and Redis from their wheels, and the supervisor of `ris up`."""
