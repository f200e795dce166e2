"""Whether an access token is the issuer's, is meant for this RIS, and holds now."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from joserfc import jws
from joserfc.errors import (
    ClaimError,
    ExpiredTokenError,
    JoseError,
    MissingClaimError,
    SecurityWarning,
)
from joserfc.jws import CompactSignature, JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from worker.errors import Unauthenticated
from worker.oidc.provider import fetch_keys
from worker.oidc.rules import IssuerRules, Person
from worker.oidc.signing_keys import Fetch, SigningKeys

# Of EdDSA, whose name RFC 9864 replaced: issuers sign by it all the same.
warnings.simplefilter("ignore", SecurityWarning)

MAX_TOKEN_CHARS: Final = 16 * 1024
LEEWAY_S: Final = 60
_MAX_HEADER_CHARS: Final = 2048
_MAX_SUBJECT_CHARS: Final = 255
_MOST_ROLES: Final = 1000
_MAX_ROLE_CHARS: Final = 200
_TYPES: Final = ("jwt", "at+jwt", "application/at+jwt")
_MALFORMED: Final = (JoseError, ValueError, TypeError, AttributeError, RecursionError)
_WRONG: Final = {
    "iss": "is of another issuer",
    "aud": "is for another audience: RIS_OIDC_AUDIENCE is not in it",
    "nbf": "is not valid yet",
    "iat": "was issued in the future: do the clocks agree?",
}


class TokenChecker:
    """Checks tokens by the keys at hand; waits for nobody. Used by several threads."""

    def __init__(self, rules: IssuerRules, keys: SigningKeys) -> None:
        self._rules, self._keys = rules, keys
        # Headers that are not known are to be ignored (RFC 7515); `crit` is looked at here.
        self._registry = JWSRegistry(algorithms=rules.algorithms, strict_check_header=False)
        self._registry.max_header_length = _MAX_HEADER_CHARS

    def fetch_wanted(self, token: str) -> Fetch | None:
        """What to wait for before :meth:`person_of`; None: for nothing."""
        try:
            signed = self._parsed(token)
        except Unauthenticated:
            return None
        return self._keys.wanted(signed.headers().get("kid"))

    def person_of(self, token: str) -> Person:
        """Raises :class:`Unauthenticated`, and :class:`IssuerUnavailable` where the key that it is
        signed with is not at hand."""
        signed = self._parsed(token)
        keys = self._keys.at_hand(signed.headers().get("kid"))
        try:
            right = jws.validate_compact(signed, keys, registry=self._registry)
        except _MALFORMED:
            right = False
        if not right:
            raise Unauthenticated("this access token's signature is not one of its issuer's")
        return self._person(self._claims(signed.payload))

    def _parsed(self, token: str) -> CompactSignature:
        """With a header that is in order; nothing in it is believed yet."""
        if len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated(f"this access token is longer than {MAX_TOKEN_CHARS} characters")
        try:
            signed = jws.extract_compact(token.encode("ascii"), registry=self._registry)
            header = dict(signed.headers())
        except _MALFORMED:
            raise Unauthenticated(
                "this is neither an API key (ris_...) nor a signed JWT of three parts"
            ) from None
        if trouble := self._trouble(header):
            raise Unauthenticated(f"this access token's header {trouble}")
        return signed

    def _trouble(self, header: Mapping[str, Any]) -> str | None:
        if header.get("alg") not in self._rules.algorithms:
            allowed = ", ".join(self._rules.algorithms)
            return f"names no algorithm that is allowed here ({allowed}; RIS_OIDC_ALGORITHMS)"
        if "crit" in header or "b64" in header:
            return "demands what is not understood here (crit)"
        if not isinstance(header.get("kid"), str | None):
            return "has a kid that is no text"
        if str(header.get("typ", "JWT")).lower() not in _TYPES:
            return "says that it is something else (typ)"
        return None

    def _claims(self, payload: bytes | None) -> Mapping[str, Any]:
        rules = self._rules
        checks = JWTClaimsRegistry(
            now=int(time.time()),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": rules.issuer},
            aud={"essential": True, "value": rules.audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        try:
            claims = json.loads(payload or b"")
            checks.validate(claims)
        except ExpiredTokenError:
            raise Unauthenticated("this access token has expired: ask its issuer anew") from None
        except MissingClaimError as error:
            raise Unauthenticated(f"this access token has no claim {error.claim}") from None
        except ClaimError as error:
            why = _WRONG.get(error.claim, f"has a claim {error.claim} that is malformed")
            raise Unauthenticated(f"this access token {why}") from None
        except _MALFORMED:
            raise Unauthenticated("this access token holds no claims") from None
        return dict(claims)

    def _person(self, claims: Mapping[str, Any]) -> Person:
        subject = claims["sub"]
        if not 1 <= len(subject) <= _MAX_SUBJECT_CHARS or not subject.isprintable():
            raise Unauthenticated("this access token has a claim sub that is malformed")
        roles = _roles(claims, self._rules.roles_claim)
        return Person(self._rules.issuer, subject, roles, _moment(claims["exp"]))


def _roles(claims: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Texts of a claim, or of one inside of others where the name has dots and no claim is named
    just so. What can be no role is passed over."""
    found: Any = claims.get(name)
    if found is None:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    listed = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return tuple(one for one in listed[:_MOST_ROLES] if isinstance(one, str) and _may_be_role(one))


def _may_be_role(text: str) -> bool:
    return 1 <= len(text) <= _MAX_ROLE_CHARS and text.isprintable()


def _moment(epoch_s: float) -> datetime:
    try:
        return datetime.fromtimestamp(epoch_s, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.max.replace(tzinfo=UTC)


def token_checker(rules: IssuerRules) -> TokenChecker:
    """One that asks the issuer of the rules, once the first token comes."""
    keys = SigningKeys(partial(fetch_keys, rules), rules.timeout_s, rules.kept_s)
    return TokenChecker(rules, keys)
