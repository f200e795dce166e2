"""The keys that an issuer signs with, fetched from where its discovery document says."""

from __future__ import annotations

import json
import ssl
import time
from http.client import HTTPException
from typing import Any, Final

from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, KeySet, RSAKey

from worker.errors import AddressRefused, FeedFailed, IssuerUnavailable
from worker.oidc.rules import IssuerRules
from worker.video.address import looked_up
from worker.video.pinned_http import PinnedConnection, cut_off_after

MAX_BYTES: Final = 256 * 1024
_MOST_KEYS: Final = 100
_RSA_BITS: Final = range(2048, 8193)
_KINDS: Final = ("RSA", "EC", "OKP")
_PUBLIC: Final = ("kty", "use", "key_ops", "alg", "kid", "n", "e", "crv", "x", "y")


def fetch_keys(rules: IssuerRules) -> KeySet:
    """Ask the issuer. Raises :class:`IssuerUnavailable`, which says why."""
    until_s = time.monotonic() + rules.timeout_s
    where = rules.issuer.rstrip("/") + "/.well-known/openid-configuration"
    told = _document(where, rules, until_s, "discovery document")
    if told.get("issuer") != rules.issuer:
        raise IssuerUnavailable(
            f"the issuer calls itself {str(told.get('issuer'))[:200]!r}, and RIS_OIDC_ISSUER is"
            f" {rules.issuer!r}: they must be the same to the letter"
        )
    keys_at = told.get("jwks_uri")
    if not isinstance(keys_at, str):
        raise IssuerUnavailable("the issuer's discovery document has no jwks_uri")
    listed = _document(keys_at, rules, until_s, "list of keys").get("keys")
    keys = [key for one in _at_most(listed) if (key := _usable(one)) is not None]
    if not keys:
        raise IssuerUnavailable("the issuer lists no key that tokens can be checked by")
    return KeySet(keys)


def _at_most(listed: Any) -> list[Any]:
    return listed[:_MOST_KEYS] if isinstance(listed, list) else []


def _usable(told: Any) -> Key | None:
    """A public key for signatures; whatever else an issuer lists is passed over."""
    if not isinstance(told, dict) or told.get("kty") not in _KINDS:
        return None
    if told.get("use") not in (None, "sig"):
        return None
    try:
        key = JWKRegistry.import_key({name: told[name] for name in _PUBLIC if name in told})
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAKey) and key.public_key.key_size not in _RSA_BITS:
        return None
    return key


def _document(url: str, rules: IssuerRules, until_s: float, what: str) -> dict[str, Any]:
    """A JSON object. No redirect is followed."""
    left_s = until_s - time.monotonic()
    try:
        target = looked_up(url, rules.addresses)
        connection = PinnedConnection(target, max(left_s, 0.01), ssl.create_default_context())
        with cut_off_after(connection, left_s):
            headers = {"Accept": "application/json", "User-Agent": "RIS", "Connection": "close"}
            connection.request("GET", target.path, headers=headers)
            answer = connection.getresponse()
            body = answer.read(MAX_BYTES + 1)
    except (AddressRefused, FeedFailed) as error:
        raise IssuerUnavailable(f"the issuer's {what}: {error}") from error
    except TimeoutError:
        raise IssuerUnavailable(
            f"the issuer's {what} did not come within {rules.timeout_s:g} s (RIS_OIDC_TIMEOUT_S)"
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise IssuerUnavailable(
            f"the issuer's certificate is not believed ({error.verify_message})"
        ) from None
    except (OSError, HTTPException, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise IssuerUnavailable(f"the issuer's {what} cannot be fetched: {why}") from None
    return _read(answer.status, body, what)


def _read(status: int, body: bytes, what: str) -> dict[str, Any]:
    if status != 200:
        also = ": redirects are not followed" if 300 <= status < 400 else ""
        raise IssuerUnavailable(f"the issuer's {what} is answered with HTTP {status}{also}")
    if len(body) > MAX_BYTES:
        raise IssuerUnavailable(f"the issuer's {what} is larger than {MAX_BYTES} bytes")
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise IssuerUnavailable(f"the issuer's {what} is no JSON object")
    return told
