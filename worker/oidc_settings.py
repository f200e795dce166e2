"""Settings of access tokens: whose are believed, and what in them says who may do what."""

from __future__ import annotations

from typing import Final

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

ASYMMETRIC: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
    "EdDSA", "Ed25519",
)  # fmt: skip
"""Algorithms that can be allowed: whoever can check a signature by them cannot make one."""


class OidcSettings(BaseSettings):
    """The part of a process's settings that is about OpenID Connect."""

    oidc_issuer: str | None = Field(
        None,
        max_length=1000,
        pattern=r"^https?://[^@?#\s]+$",
        description="Issuer whose access tokens the API accepts beside its keys; unset: none's.",
    )
    oidc_audience: str | None = Field(
        None, max_length=1000, description="What names this RIS in the `aud` of such tokens."
    )
    oidc_algorithms: str = Field(
        "RS256,PS256,ES256,EdDSA",
        description="Algorithms that tokens may be signed by, separated by commas.",
    )
    oidc_roles_claim: str = Field(
        "groups",
        min_length=1,
        max_length=200,
        description="Claim that lists a person's roles; `a.b`: b inside of a.",
    )
    oidc_hosts: str | None = Field(
        None,
        description="Hosts that the issuer's keys are fetched from: names, *.suffixes, networks,"
        " separated by commas. Unset: those with an address that the whole internet has.",
    )
    oidc_timeout_s: float = Field(
        5.0, ge=0.1, le=60, description="The issuer has told its keys after this long."
    )
    oidc_keys_s: float = Field(
        3600.0,
        ge=60,
        le=86_400,
        description="Keys of an issuer that does not answer any more are believed this long.",
    )

    @field_validator("oidc_algorithms")
    @classmethod
    def _check_algorithms(cls, given: str) -> str:
        named = [name.strip() for name in given.split(",")]
        if unknown := [name for name in named if name not in ASYMMETRIC]:
            raise ValueError(f"{unknown[0][:20]!r} is none of {', '.join(ASYMMETRIC)}")
        return ",".join(named)
