"""An OpenID Connect issuer on loopback, whose keys and answers a test chooses."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from tests import web_server
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.keys import create_key
from worker.config import Settings
from worker.context import Context

AUDIENCE = "ris"
DISCOVERY = "/realms/home/.well-known/openid-configuration"
JWKS = "/keys"


def new_key(kind: str = "RSA", kid: str | None = "one") -> Key:
    named: Any = {} if kid is None else {"kid": kid}
    if kind == "EC":
        return ECKey.generate_key("P-256", named)
    return (
        RSAKey.generate_key(2048, named) if kind == "RSA" else OKPKey.generate_key("Ed25519", named)
    )


@dataclass
class Issuer:
    """``key`` signs what is not said otherwise."""

    web: web_server.Web
    key: Key = field(default_factory=new_key)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.web.port}/realms/home"

    def settings(self, **changes: Any) -> dict[str, Any]:
        given = {"oidc_issuer": self.url, "oidc_audience": AUDIENCE, "oidc_hosts": "127.0.0.0/8"}
        return given | changes

    def publish(self, *keys: Key, **changes: Any) -> None:
        told = {"issuer": self.url, "jwks_uri": f"http://127.0.0.1:{self.web.port}{JWKS}"}
        self.web.answers[DISCOVERY] = in_json(told | changes)
        self.list_keys([key.as_dict(private=False) for key in keys or (self.key,)])

    def list_keys(self, keys: Any) -> None:
        self.web.answers[JWKS] = in_json({"keys": keys})

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Right ones; None takes one out."""
        now = int(time.time())
        right = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "248289761001",
            "iat": now,
            "exp": now + 300,
            "groups": [],
        }
        return {name: value for name, value in (right | changes).items() if value is not None}

    def token(
        self, *, key: Key | None = None, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        key = self.key if key is None else key
        alg = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA", "oct": "HS256"}[key.key_type]
        signed = {"alg": alg, "kid": key.kid, "typ": "at+jwt"} | (header or {})
        signed = {name: value for name, value in signed.items() if value is not None}
        return jwt.encode(signed, self.claims(**claims), key, algorithms=[signed["alg"]])

    def asked(self) -> int:
        """How often its keys were asked for."""
        return sum(path == DISCOVERY for path, _ in self.web.asked)


def in_json(told: Any) -> web_server.Answer:
    return web_server.content(json.dumps(told).encode(), Content_Type="application/json")


@contextmanager
def issuing() -> Iterator[Issuer]:
    with web_server.serving() as web:
        issuer = Issuer(web)
        issuer.publish()
        yield issuer


def new_role(context: Context, *actions: str, **given: Any) -> str:
    """A role of its own, which opens this."""
    role = f"ris-{uuid.uuid4().hex}"
    made = {"name": "test", "actions": actions or ("view",), "role": role, **given}
    with context.db.transaction() as session:
        create_key(session, COMMAND_LINE, **made)
    return role


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def oidc_settings(issuer: Issuer, settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update=issuer.settings(**changes))
