"""Access tokens of an issuer: what they open, and every way in which they open nothing."""

from __future__ import annotations

import base64
import hmac
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from joserfc import jws
from joserfc.jwk import KeySet, OctKey, RSAKey

from api.app import make_app
from api.desk import Pace, open_tokens
from ris_client import RisApiError, RisClient
from tests import web_server
from tests.api.conftest import STREET_START, Api, serving
from tests.conftest import REPO
from tests.feeding import until
from tests.issuer import (
    AUDIENCE,
    DISCOVERY,
    JWKS,
    Issuer,
    bearer,
    in_json,
    issuing,
    new_key,
    new_role,
    oidc_settings,
)
from tests.parts import sql
from worker.accepting.audit import check_chain
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.keys import create_key, revoke_key
from worker.config import Settings
from worker.errors import (
    AlreadyThere,
    InputInvalid,
    IssuerUnavailable,
    SetupFailed,
    Unauthenticated,
)
from worker.oidc import signing_keys
from worker.oidc.provider import MAX_BYTES, fetch_keys
from worker.oidc.rules import issuer_rules
from worker.oidc.signing_keys import AGAIN_S, FRESH_S, SigningKeys
from worker.oidc.tokens import MAX_TOKEN_CHARS

NOW = int(time.time())


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with issuing() as made:
        yield made


@contextmanager
def accepting(api: Api, issuer: Issuer, **changes: Any) -> Iterator[TestClient]:
    """An application that accepts the issuer's tokens and knows none of its keys yet."""
    settings = oidc_settings(issuer, api.desk.settings, **changes)
    tokens = open_tokens(settings)
    with serving(replace(api.desk, settings=settings, tokens=tokens)) as client:
        yield client


@pytest.fixture(scope="module")
def client(api: Api, issuer: Issuer) -> Iterator[TestClient]:
    issuer.publish()
    with accepting(api, issuer) as client:
        yield client


@pytest.fixture(scope="module")
def role(api: Api) -> str:
    return new_role(api.context, "view", "search")


def told(client: TestClient, token: str) -> tuple[int, str]:
    reply = client.get("/v1/me", headers=bearer(token))
    return reply.status_code, reply.json().get("code", "")


REFUSED = (401, "unauthenticated")
AWAY = (503, "issuer_unavailable")


@pytest.mark.parametrize("kind", ["RSA", "EC", "Ed25519"])
def test_a_right_token_opens_what_its_role_does(api: Api, kind: str):
    with issuing() as issuer:
        issuer.key = new_key(kind)
        issuer.publish()
        given = {"camera_ids": [api.camera("street")], "footage_from_utc": STREET_START}
        role = new_role(api.context, "view", **given)
        with accepting(api, issuer) as client:
            ends = int(time.time()) + 250
            token = issuer.token(groups=["others", role], exp=ends)
            me = client.get("/v1/me", headers=bearer(token)).json()
            cameras = client.get("/v1/cameras", headers=bearer(token)).json()["items"]
            assert [camera["name"] for camera in cameras] == ["street"]
            assert (me["actions"], me["camera_ids"]) == (["view"], given["camera_ids"])
            assert me["footage_from_utc"].startswith("2026-01-01T12:00:00")
            expires = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(ends))}Z"
            assert me["expires_at"].replace("+00:00", "Z") == expires
            wanted = {"frame_id": api.frame("street"), "roi": {"box": [0, 0, 1, 1]}}
            refused = client.post("/v1/queries", json=wanted, headers=bearer(token))
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
            challenge = 'Bearer realm="ris", error="insufficient_scope"'
            assert refused.headers["WWW-Authenticate"] == challenge
            assert issuer.asked() == 1  # for all of these


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["other", AUDIENCE]},
        {"iat": None},
        {"nbf": NOW - 5},
        {"exp": 1e300},
    ],
    ids=["audiences", "no iat", "nbf", "endless"],  # NOW differs from process to process
)
@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "application/at+jwt", None])
def test_what_a_right_token_may_look_like(
    issuer: Issuer, client: TestClient, role: str, claims: dict[str, Any], typ: str | None
):
    header = {"typ": typ, "x5t": "abc", "unknown": 1}
    signed = {"alg": "RS256", "kid": "one", **header}
    signed = {name: value for name, value in signed.items() if value is not None}
    payload = json.dumps(issuer.claims(groups=[role], **claims))
    registry = jws.JWSRegistry(algorithms=["RS256"], strict_check_header=False)
    token = jws.serialize_compact(signed, payload, issuer.key, registry=registry)
    assert told(client, token) == (200, "")


def test_clocks_may_differ_by_a_little(issuer: Issuer, client: TestClient, role: str):
    now = int(time.time())
    differing: list[dict[str, Any]] = [{"exp": now - 5}, {"nbf": now + 40}, {"iat": now + 40}]
    for claims in differing:
        assert told(client, issuer.token(groups=[role], **claims)) == (200, "")


@pytest.mark.parametrize(
    ("setting", "claims"),
    [
        ("roles", {"roles": "ROLE"}),
        ("realm_access.roles", {"realm_access": {"roles": ["ROLE"]}}),
        ("https://home.example/roles", {"https://home.example/roles": ["ROLE"]}),
    ],
)
def test_where_roles_stand(api: Api, issuer: Issuer, role: str, setting: str, claims: Any):
    issuer.publish()
    placed = json.loads(json.dumps(claims).replace("ROLE", role))
    with accepting(api, issuer, oidc_roles_claim=setting) as client:
        assert told(client, issuer.token(**placed)) == (200, "")
        assert told(client, issuer.token(groups=[role])) == (403, "forbidden")


WRONG_CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"iss": "http://127.0.0.1:1/realms/home"}, "another issuer"),
    ({"iss": None}, "no claim iss"),
    ({"iss": ["a"]}, "another issuer"),
    ({"aud": "other"}, "another audience"),
    ({"aud": ["other", "more"]}, "another audience"),
    ({"aud": None}, "no claim aud"),
    ({"aud": {"ris": 1}}, "another audience"),
    ({"exp": NOW - 120}, "expired"),
    ({"exp": None}, "no claim exp"),
    ({"exp": "2099-01-01"}, "exp"),
    ({"exp": float("nan")}, "exp"),
    ({"exp": True}, "exp"),
    ({"nbf": NOW + 86_400}, "not valid yet"),
    ({"iat": NOW + 86_400}, "in the future"),
    ({"sub": None}, "no claim sub"),
    ({"sub": ""}, "sub"),
    ({"sub": "a\nkey 1"}, "sub"),
    ({"sub": "a" * 256}, "sub"),
    ({"sub": 7}, "sub"),
]


@pytest.mark.parametrize(("claims", "says"), WRONG_CLAIMS, ids=range(len(WRONG_CLAIMS)))
def test_claims_that_are_refused(
    issuer: Issuer, client: TestClient, role: str, claims: dict[str, Any], says: str
):
    reply = client.get("/v1/me", headers=bearer(issuer.token(groups=[role], **claims)))
    assert (reply.status_code, reply.json()["code"]) == REFUSED
    assert says in reply.json()["detail"]
    assert reply.headers["WWW-Authenticate"] == 'Bearer realm="ris", error="invalid_token"'
    assert reply.headers["Content-Type"] == "application/problem+json"


def part(told: Any) -> str:
    raw = told if isinstance(told, bytes) else json.dumps(told).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(issuer: Issuer, role: str, header: Any, *, signature: str = "") -> str:
    return f"{part(header)}.{part(issuer.claims(groups=[role]))}.{signature}"


def hostile(issuer: Issuer, role: str) -> dict[str, str]:
    """Tokens that hold the right claims."""
    right = issuer.token(groups=[role])
    head, payload, signature = right.split(".")
    own = new_key()
    header = {"alg": "RS256", "kid": "one"}
    with_own = {"jwk": own.as_dict(private=False)}
    elsewhere = {"jku": f"{issuer.url}/evil"}
    signed = partial_token(issuer, role)
    return {
        "alg none": forged(issuer, role, {"alg": "none", "kid": "one"}),
        "alg None, signed": forged(issuer, role, {"alg": "None", "kid": "one"}, signature="YQ"),
        "no alg": forged(issuer, role, {"kid": "one"}, signature=signature),
        "alg a list": forged(issuer, role, {"alg": ["RS256"], "kid": "one"}, signature="YQ"),
        "HS256 with the public key": keyed_with_the_public_key(issuer, role),
        "alg not allowed": signed({"alg": "RS512", "kid": "one"}, issuer.key),
        "another key of that kid": issuer.token(key=own, groups=[role]),
        "a key of its own": signed(header | with_own, own),
        "a key from elsewhere": signed(header | elsewhere, own),
        "unknown kid": signed({"alg": "RS256", "kid": "two"}, own),
        "kid a list": forged(issuer, role, {"alg": "RS256", "kid": ["one"]}, signature=signature),
        "EC alg for an RSA key": forged(issuer, role, {"alg": "ES256", "kid": "one"}),
        "crit": signed(header | {"crit": ["kid"]}, issuer.key),
        "crit b64": forged(issuer, role, header | {"crit": ["b64"], "b64": False}),
        "typ of a logout": signed(header | {"typ": "logout+jwt"}, issuer.key),
        "signature cut": right[:-4],
        "no signature": f"{head}.{payload}.",
        "other claims": f"{head}.{part(issuer.claims(groups=[role, 'x']))}.{signature}",
        "two parts": f"{head}.{payload}",
        "encrypted": f"{part({'alg': 'RSA-OAEP', 'enc': 'A256GCM'})}.a.b.c.d",
        "header a list": f"{part(['alg'])}.{payload}.{signature}",
        "header no JSON": f"{part(b'x')}.{payload}.{signature}",
        "header deep": f"{part(b'[' * 1500)}.{payload}.{signature}",
        "nested": nested(right, issuer),
        "claims a list": nested("[]", issuer),
        "oversized": issuer.token(groups=[role, "x" * MAX_TOKEN_CHARS]),
        "blanks": "a.b .c",
        "dots": "...",
        "a dot": ".",
    }


def keyed_with_the_public_key(issuer: Issuer, role: str) -> str:
    """What fools a check that takes the algorithm from the token."""
    unsigned = forged(issuer, role, {"alg": "HS256", "kid": "one"})
    assert isinstance(issuer.key, RSAKey)
    public = issuer.key.as_pem(private=False)
    return unsigned + part(hmac.digest(public, unsigned[:-1].encode(), "sha256"))


def partial_token(issuer: Issuer, role: str) -> Callable[[dict[str, Any], Any], str]:
    payload = json.dumps(issuer.claims(groups=[role]))

    def signed(header: dict[str, Any], key: Any) -> str:
        registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
        registry.max_header_length = 4096
        return jws.serialize_compact(header, payload, key, registry=registry)

    return signed


def nested(payload: str, issuer: Issuer) -> str:
    header = {"alg": "RS256", "kid": "one", "cty": "JWT"}
    return jws.serialize_compact(header, payload, issuer.key, algorithms=["RS256"])


def test_hostile_tokens_are_refused(issuer: Issuer, client: TestClient, role: str):
    issuer.publish()
    assert told(client, issuer.token(groups=[role])) == (200, "")
    found = {name: told(client, token) for name, token in hostile(issuer, role).items()}
    assert found == dict.fromkeys(found, REFUSED)
    assert "/realms/home/evil" not in [path for path, _ in issuer.web.asked]
    assert told(client, issuer.token(groups=[role])) == (200, "")


def test_header_bytes_that_are_no_text(client: TestClient):
    reply = client.get("/v1/me", headers={b"Authorization": b"Bearer \xff.\xfe.\x80"})
    assert (reply.status_code, reply.json()["code"]) == REFUSED


def test_what_is_no_token_is_a_key(api: Api, client: TestClient):
    nothing = client.get("/v1/me")
    assert (nothing.status_code, nothing.headers["WWW-Authenticate"]) == (401, 'Bearer realm="ris"')
    unknown = client.get("/v1/me", headers=bearer("opaque-token"))
    assert "API key is not known" in unknown.json()["detail"]
    assert client.get("/v1/me", headers=api.key("view")).status_code == 200


def test_without_an_issuer_no_token_is_read(api: Api, issuer: Issuer, role: str):
    assert told(api.client, issuer.token(groups=[role])) == REFUSED


@pytest.mark.parametrize(
    "groups", [[], None, ["other"], [7, None, {"a": 1}, "\x00", "a" * 300], {"ROLE": 1}, 7]
)
def test_who_has_no_role_is_forbidden(issuer: Issuer, client: TestClient, groups: Any):
    reply = client.get("/v1/me", headers=bearer(issuer.token(groups=groups)))
    assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")


def test_a_revoked_or_expired_role_opens_nothing_from_the_next_request_on(
    api: Api, issuer: Issuer, client: TestClient
):
    for column in ("revoked_at", "expires_at"):
        role = new_role(api.context)
        token = issuer.token(groups=[role])
        assert told(client, token) == (200, "")
        sql(api.context, f"update api_keys set {column} = now() where role = %s", role)
        assert told(client, token) == (403, "forbidden")


def test_of_several_roles_the_one_made_first_counts(api: Api, issuer: Issuer, client: TestClient):
    first, second = new_role(api.context, "view"), new_role(api.context, "view", "search")
    token = issuer.token(groups=[second, first])
    assert client.get("/v1/me", headers=bearer(token)).json()["actions"] == ["view"]
    sql(api.context, "update api_keys set revoked_at = now() where role = %s", first)
    assert client.get("/v1/me", headers=bearer(token)).json()["actions"] == ["search", "view"]


def test_a_role_has_one_key_at_a_time(api: Api):
    role = new_role(api.context)
    given: dict[str, Any] = {"name": "again", "actions": ["view"], "role": role}
    with pytest.raises(AlreadyThere), api.context.db.transaction() as session:
        create_key(session, COMMAND_LINE, **given)
    admin = api.key("admin")
    reply = api.client.post("/v1/keys", json=given, headers=admin)
    assert (reply.status_code, reply.json()["code"]) == (409, "already_there")
    with api.context.db.transaction() as session:
        (key_id,) = sql(api.context, "select id from api_keys where role = %s", role)[0]
        revoke_key(session, COMMAND_LINE, key_id)
    made = api.client.post("/v1/keys", json=given, headers=admin)
    assert (made.status_code, made.json()["secret"], made.json()["role"]) == (201, None, role)
    blank = api.client.post("/v1/keys", json=given | {"role": " "}, headers=admin)
    assert (blank.status_code, blank.json()["code"]) == (422, "input_invalid")


def test_the_audit_names_the_person(api: Api, issuer: Issuer, client: TestClient):
    role = new_role(api.context, "admin")
    key = sql(api.context, "select id from api_keys where role = %s", role)[0][0]
    for subject in ("f:7:ann", "x of http://evil.example"):
        headers = bearer(issuer.token(sub=subject, groups=[role]))
        given = {"name": uuid.uuid4().hex}
        assert client.post("/v1/cameras", json=given, headers=headers).status_code == 201
        (newest,) = client.get("/v1/audit?limit=1", headers=headers).json()["items"]
        assert newest["actor"] == f"key {key}, subject {subject} of {issuer.url}"
        assert newest["actor"].rsplit(" of ", 1)[1] == issuer.url
    sql(api.context, "delete from cameras where name not in ('street', 'car')")
    with api.context.db.snapshot() as session:
        assert check_chain(session).problems == ()


def test_a_rotated_key_is_fetched_and_the_former_one_forgotten(
    api: Api, role: str, monkeypatch: pytest.MonkeyPatch
):
    with issuing() as issuer, accepting(api, issuer, oidc_timeout_s=30.0) as client:
        former = issuer.token(groups=[role])
        assert told(client, former) == (200, "")
        issuer.key = new_key("EC", "two")
        issuer.publish()
        token = issuer.token(groups=[role])
        monkeypatch.setattr(signing_keys, "AGAIN_S", 1e9)
        assert told(client, token) == REFUSED  # asked before, in that time
        assert issuer.asked() == 1
        monkeypatch.setattr(signing_keys, "AGAIN_S", 0.0)
        until(lambda: told(client, token) == (200, ""), what="the new key")
        monkeypatch.setattr(signing_keys, "AGAIN_S", 1e9)
        assert issuer.asked() == 2
        assert told(client, former) == REFUSED


def test_an_issuer_of_one_key_without_kid(api: Api, role: str):
    with issuing() as issuer, accepting(api, issuer) as client:
        issuer.key = new_key("RSA", None)
        issuer.list_keys([issuer.key.as_dict(private=False)])
        token = issuer.token(groups=[role], header={"kid": None})
        assert told(client, token) == (200, "")
    with issuing() as issuer, accepting(api, issuer) as client:
        issuer.publish(issuer.key, new_key("RSA", "two"))
        assert told(client, issuer.token(groups=[role], header={"kid": None})) == REFUSED


def test_keys_that_are_none_are_passed_over(api: Api, role: str):
    with issuing() as issuer, accepting(api, issuer) as client:
        right = issuer.key.as_dict(private=False)
        shared = OctKey.import_key(b"a" * 32, {"kid": "oct"})
        small = {**right, "kid": "small", "n": right["n"][:100]}
        strange = [7, {}, {"kty": "AKP", "kid": "pq"}, {"kty": "EC", "crv": "P-256", "x": 7}, small]
        encrypting = {**right, "use": "enc", "kid": "enc"}
        others = [*strange, shared.as_dict(private=True), encrypting]
        issuer.list_keys([*others, {**right, "kid": "pad", "extra": {}}, right])
        assert told(client, issuer.token(groups=[role])) == (200, "")
        for kid in ("oct", "small", "enc", "pq"):
            token = issuer.token(groups=[role], header={"kid": kid})
            assert told(client, token) == REFUSED
        assert told(client, issuer.token(key=shared, groups=[role])) == REFUSED


def drip(handler: web_server.Handler) -> None:
    """An answer that never ends, and is never silent for long."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(400):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def huge(handler: web_server.Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'{"keys": ["' + b"a" * (MAX_BYTES + 10))


def silent(_handler: web_server.Handler) -> None:
    time.sleep(3)


TROUBLES: dict[str, Callable[[Issuer], None]] = {
    "down": lambda i: i.web.answers.clear(),
    "slow": lambda i: i.web.answers.update({JWKS: drip}),
    "silent": lambda i: i.web.answers.update({DISCOVERY: silent}),
    "huge": lambda i: i.web.answers.update({JWKS: huge}),
    "redirect": lambda i: i.web.answers.update({DISCOVERY: web_server.sends_to(i.url + "/x")}),
    "no JSON": lambda i: i.web.answers.update({DISCOVERY: web_server.content(b"<html>")}),
    "deep": lambda i: i.web.answers.update({JWKS: web_server.content(b"[" * 100_000)}),
    "another issuer": lambda i: i.publish(issuer="http://127.0.0.1/other"),
    "no jwks_uri": lambda i: i.publish(jwks_uri=None),
    "keys elsewhere": lambda i: i.publish(jwks_uri="http://10.255.255.1/keys"),
    "keys in a file": lambda i: i.publish(jwks_uri="file:///etc/passwd"),
    "keys by metadata": lambda i: i.publish(jwks_uri="http://169.254.169.254/keys"),
    "no keys": lambda i: i.list_keys([]),
    "keys no list": lambda i: i.list_keys({"kty": "RSA"}),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_an_issuer_in_trouble_is_a_503_and_keys_work_on(api: Api, role: str, trouble: str):
    with issuing() as issuer, accepting(api, issuer, oidc_timeout_s=0.5) as client:
        token = issuer.token(groups=[role])
        TROUBLES[trouble](issuer)
        reply = client.get("/v1/me", headers=bearer(token))
        assert (reply.status_code, reply.json()["code"]) == AWAY
        assert reply.headers["Retry-After"] == "5"
        assert issuer.url not in reply.text and "127.0.0.1" not in reply.text
        assert client.get("/v1/me", headers=api.key("view")).status_code == 200
        assert told(client, token) == AWAY


def test_a_fetch_is_over_in_time_though_the_answer_never_ends(api: Api):
    with issuing() as issuer:
        issuer.web.answers[JWKS] = drip  # for twenty seconds
        rules = issuer_rules(oidc_settings(issuer, api.desk.settings, oidc_timeout_s=0.5))
        assert rules is not None
        began_s = time.monotonic()
        with pytest.raises(IssuerUnavailable, match="did not come within"):
            fetch_keys(rules)
        assert time.monotonic() - began_s < 15


def test_many_tokens_of_a_silent_issuer_hold_up_no_key(api: Api, role: str):
    """More than there are threads for requests."""
    with issuing() as issuer:
        issuer.web.answers[DISCOVERY] = lambda _handler: time.sleep(9)
        settings = oidc_settings(issuer, api.desk.settings, oidc_timeout_s=8.0)
        desk = replace(
            api.desk, settings=settings, tokens=open_tokens(settings), pace=Pace(100_000.0)
        )
        with listening(desk) as url:
            port = int(url.rsplit(":", 1)[1])
            token = issuer.token(groups=[role])
            asked = f"GET /v1/me HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
            waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
            for one in waiting:
                one.sendall(asked.encode())
            time.sleep(0.3)
            key = api.key("view")["Authorization"].split()[1]
            assert len(RisClient(url, key).cameras()) == 2
            answered = select.poll()
            for one in waiting:
                answered.register(one, select.POLLIN)
            assert answered.poll(0) == [], "all of them wait"
            answers = {one.recv(64).split(b"\r\n")[0] for one in waiting}
            assert answers == {b"HTTP/1.1 503 Service Unavailable"}
            for one in waiting:
                one.close()


@contextmanager
def listening(desk: Any) -> Iterator[str]:
    configured = uvicorn.Config(make_app(desk), port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(configured)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, what="the server")
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def test_the_python_client_takes_a_token_as_it_is(api: Api, issuer: Issuer, role: str):
    issuer.publish()
    settings = oidc_settings(issuer, api.desk.settings)
    with listening(replace(api.desk, settings=settings, tokens=open_tokens(settings))) as url:
        assert len(RisClient(url, issuer.token(groups=[role])).cameras()) == 2
        with pytest.raises(RisApiError) as refused:
            RisClient(url, issuer.token(groups=[role], exp=NOW - 500)).cameras()
        assert refused.value.code == "unauthenticated"


def test_the_certificate_of_an_issuer_must_be_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root, tls = web_server.make_authority(tmp_path, "localhost")
    with web_server.serving(tls) as web:
        at = f"https://localhost:{web.port}"
        given = {"oidc_issuer": at, "oidc_audience": "a", "oidc_hosts": "127.0.0.0/8,::1/128"}
        rules = issuer_rules(settings_with(**given))
        assert rules is not None
        where = "/.well-known/openid-configuration"
        web.answers[where] = in_json({"issuer": at, "jwks_uri": f"{at}{JWKS}"})
        web.answers[JWKS] = in_json({"keys": [new_key().as_dict(private=False)]})
        with pytest.raises(IssuerUnavailable, match="certificate is not believed"):
            fetch_keys(rules)
        monkeypatch.setenv("SSL_CERT_FILE", str(root))
        assert len(fetch_keys(rules).keys) == 1
        web.answers[where] = in_json({"issuer": at, "jwks_uri": f"http://localhost:{web.port}/"})
        with pytest.raises(IssuerUnavailable, match="http kind are not allowed"):
            fetch_keys(rules)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def asked_for(keys: SigningKeys, kid: str | None) -> KeySet:
    """As a request does, one that waits for any fetch."""
    fetch = keys.wanted(kid)
    if fetch is not None:
        fetch.done.result(20)
    return keys.at_hand(kid)


def test_keys_are_kept_while_the_issuer_is_away_and_not_for_ever():
    clock, right, asked = Clock(), KeySet([new_key("EC")]), []
    answers: list[KeySet | None] = [right]

    def fetch() -> KeySet:
        asked.append(clock())
        if (told := answers[-1]) is None:
            raise IssuerUnavailable("away")
        return told

    keys = SigningKeys(fetch, patience_s=5.0, kept_s=3600.0, clock=clock)
    assert asked_for(keys, "one") is right
    clock.now_s += FRESH_S
    assert asked_for(keys, "one") is right and len(asked) == 1
    answers.append(None)
    for _ in range(10):
        clock.now_s += FRESH_S
        assert keys.wanted("one") is None  # nobody waits for a refresh
        until(lambda: keys.wanted("one") is None and keys._under_way is None, what="the fetch")
        assert keys.at_hand("one") is right
    assert len(asked) == 11
    with pytest.raises(IssuerUnavailable):  # it cannot be said whether there is such a key
        keys.at_hand("two")
    clock.now_s = 1000.0 + 3601
    with pytest.raises(IssuerUnavailable):
        asked_for(keys, "one")
    answers.append(right)
    clock.now_s += AGAIN_S
    assert asked_for(keys, "one") is right


def test_a_withdrawn_key_is_not_believed_after_a_pause():
    clock, listed = Clock(), [KeySet([new_key("EC")])]
    keys = SigningKeys(lambda: listed[-1], patience_s=5.0, kept_s=3600.0, clock=clock)
    assert asked_for(keys, "one") is listed[0]
    listed.append(KeySet([new_key("EC", "two")]))
    clock.now_s += 2 * FRESH_S + 1
    with pytest.raises(Unauthenticated):
        asked_for(keys, "one")


def test_whatever_tokens_say_the_issuer_is_not_asked_often():
    clock, asked = Clock(), []
    right = KeySet([new_key("EC")])

    def fetch() -> KeySet:
        asked.append(clock())
        return right

    keys = SigningKeys(fetch, patience_s=5.0, kept_s=3600.0, clock=clock)
    asked_for(keys, "one")
    for number in range(100):
        clock.now_s += 0.1
        with pytest.raises(Unauthenticated):
            asked_for(keys, f"made up {number}")
    assert len(asked) == 1 + 10.0 // AGAIN_S


def settings_with(**given: Any) -> Settings:
    return Settings(database_url="postgresql://nowhere/ris", **given)


def test_settings_that_do_not_go_together():
    assert issuer_rules(settings_with()) is None
    with pytest.raises(InputInvalid, match="RIS_OIDC_AUDIENCE"):
        issuer_rules(settings_with(oidc_issuer="https://id.example"))
    with pytest.raises(InputInvalid, match="RIS_OIDC_HOSTS"):
        issuer_rules(settings_with(oidc_issuer="http://id.example", oidc_audience="a"))
    rules = issuer_rules(settings_with(oidc_issuer="https://id.example", oidc_audience="a"))
    assert rules is not None and rules.addresses.schemes == ("https",)
    for wrong in ("none", "HS256", "RS256,HS512", "", "RS256,", "ES256K"):
        with pytest.raises(ValueError, match="none of RS256"):
            settings_with(oidc_algorithms=wrong)
    with pytest.raises(ValueError, match="pattern"):
        settings_with(oidc_issuer="https://user:password@id.example")


def ris(api: Api, *given: str, before: str = "pass", **env: str) -> Any:
    """A command of its own process."""
    code = f"import sys; {before}; from worker.admin.cli import main; main()"
    settings = api.context.settings
    named = {"DATABASE_URL": settings.database_url, "DATA_DIR": settings.data_dir}
    return subprocess.run(
        [sys.executable, "-c", code, *given],
        env=os.environ | {f"RIS_{name}": str(value) for name, value in named.items()} | env,
        cwd=REPO,
        check=False,
        capture_output=True,
        text=True,
    )


def test_a_missing_package_is_named(api: Api, monkeypatch: pytest.MonkeyPatch):
    env = {"RIS_OIDC_ISSUER": "https://id.example", "RIS_OIDC_AUDIENCE": "ris"}
    without = "sys.modules['joserfc'] = None"
    said = ris(api, "up", before=without, **env)
    assert said.returncode == 1
    assert "setup_failed" in said.stderr and "joserfc" in said.stderr
    monkeypatch.setitem(sys.modules, "joserfc", None)
    with pytest.raises(SetupFailed, match="extra oidc"):
        open_tokens(settings_with(oidc_issuer="https://id.example", oidc_audience="ris"))
    assert open_tokens(settings_with()) is None


def test_the_command_line_makes_and_lists_roles_and_doctor_asks_the_issuer(api: Api):
    role = f"desk-{uuid.uuid4().hex}"
    made = ris(api, "keys", "--create", "desks", "--role", role, "--action", "view")
    assert made.returncode == 0 and f"for access tokens with the role '{role}'" in made.stdout
    listed = {key["role"]: key for key in json.loads(ris(api, "keys", "--json").stdout)}
    assert listed[role]["actions"] == ["view"] and "secret" not in listed[role]
    alone = ris(api, "keys", "--role", role)
    assert alone.returncode == 1 and "--create" in alone.stderr
    with issuing() as issuer:
        named = {f"RIS_{name.upper()}": value for name, value in issuer.settings().items()}

        def issuer_check() -> dict[str, Any]:
            checks = json.loads(ris(api, "doctor", "--json", **named).stdout)
            return next(check for check in checks if check["check"] == "issuer")

        assert issuer_check() == {
            "check": "issuer",
            "ok": True,
            "detail": f"{issuer.url} tells 1 keys",
        }
        issuer.web.answers[DISCOVERY] = in_json({"issuer": "https://other.example"})
        found = issuer_check()
        assert not found["ok"] and "to the letter" in found["detail"]
