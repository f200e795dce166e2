"""Where Postgres and Redis are: the settings' URLs, else the data folder's embedded services."""

from __future__ import annotations

from worker.config import Settings
from worker.embedded.state import read_state
from worker.errors import ServiceUnavailable


def database_url(settings: Settings) -> str:
    """Raises :class:`ServiceUnavailable` when no URL is set and nothing runs on the data folder."""
    if settings.database_url:
        return settings.database_url
    return _embedded(settings, "database_url")


def broker_url(settings: Settings) -> str:
    """Raises :class:`ServiceUnavailable` when no URL is set and nothing runs on the data folder."""
    if settings.broker_url:
        return settings.broker_url
    return _embedded(settings, "broker_url")


def _embedded(settings: Settings, name: str) -> str:
    state = read_state(settings.data_dir)
    url = getattr(state, name) if state is not None else None
    if not url:
        raise ServiceUnavailable(
            f"RIS is not running on {settings.data_dir.resolve()}: start it with `ris up`,"
            f" or set RIS_{name.upper()}"
        )
    return str(url)
