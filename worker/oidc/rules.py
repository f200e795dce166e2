"""Which issuer is believed, by the settings, and what its tokens come to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from worker.config import Settings
from worker.errors import InputInvalid, SetupFailed
from worker.video.address import AddressRules


@dataclass(frozen=True, slots=True)
class Person:
    """Whom a checked access token speaks of: ``subject`` is the issuer's own name for them."""

    issuer: str
    subject: str
    roles: tuple[str, ...]
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class IssuerRules:
    """``addresses``: where its keys may be fetched from, all within ``timeout_s``. Keys of an
    issuer that is away are believed for ``kept_s``."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    roles_claim: str
    addresses: AddressRules
    timeout_s: float
    kept_s: float


def issuer_rules(settings: Settings) -> IssuerRules | None:
    """None where no issuer is set. Raises :class:`InputInvalid` for settings that do not go
    together, and :class:`SetupFailed` when joserfc is missing."""
    issuer = settings.oidc_issuer
    if issuer is None:
        return None
    if settings.oidc_audience is None:
        raise InputInvalid(
            "RIS_OIDC_ISSUER is set and RIS_OIDC_AUDIENCE is not: without it tokens for other"
            " services would be accepted"
        )
    hosts = [host.strip() for host in (settings.oidc_hosts or "").split(",") if host.strip()]
    secure = issuer.startswith("https:")
    if not secure and not hosts:
        raise InputInvalid(
            "RIS_OIDC_ISSUER is an http: address, which anybody on the way can answer for: use"
            " https:, or list its host in RIS_OIDC_HOSTS"
        )
    _require_package()
    return IssuerRules(
        issuer,
        settings.oidc_audience,
        tuple(settings.oidc_algorithms.split(",")),
        settings.oidc_roles_claim,
        AddressRules(
            schemes=("https",) if secure else ("https", "http"),
            hosts=hosts,
            files_dir=None,
            private=False,
            setting="RIS_OIDC_HOSTS",
        ),
        settings.oidc_timeout_s,
        settings.oidc_keys_s,
    )


def _require_package() -> None:
    try:
        import joserfc  # noqa: F401
    except ImportError as error:
        raise SetupFailed(
            "RIS_OIDC_ISSUER is set and the package joserfc is missing: install the extra oidc"
            " (python -m pip install joserfc)"
        ) from error
