"""An issuer's keys as one process knows them: fetched beside requests, one fetch at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

import structlog
from joserfc.jwk import KeySet

from worker.errors import IssuerUnavailable, Unauthenticated

log = structlog.get_logger()

FRESH_S: Final = 300.0
"""After this long they are fetched again, while those at hand go on being used."""
AGAIN_S: Final = 5.0
"""Between two fetches, whatever tokens say and however the last one went."""
_AWAY: Final = "the issuer of access tokens does not tell its keys now: ask again soon"


@dataclass(frozen=True, slots=True)
class Fetch:
    """One that is under way: ``done`` has no result; worth waiting for ``left_s`` at most."""

    done: Future[None]
    left_s: float


class SigningKeys:
    """Keys by ``fetch``, which takes ``patience_s``; they are believed for ``kept_s`` after they
    were last told. Used by several threads; nobody waits here."""

    def __init__(
        self,
        fetch: Callable[[], KeySet],
        patience_s: float,
        kept_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch, self._patience_s = fetch, patience_s
        self._kept_s, self._clock = kept_s, clock
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._told_s = self._begun_s = float("-inf")
        self._under_way: Future[None] | None = None
        self._away = False

    def wanted(self, kid: str | None) -> Fetch | None:
        """What to wait for before :meth:`at_hand` is asked for this key; None: for nothing."""
        with self._lock:
            now_s = self._clock()
            believed = self._believed(now_s)
            age_s = now_s - self._told_s
            lacking = believed is None or (kid is not None and not _has(believed, kid))
            if (lacking or age_s > FRESH_S) and self._under_way is None:
                self._begin(now_s)
            # Where no token came for long, the first one may be signed with what was withdrawn.
            waits = lacking or (age_s > 2 * FRESH_S and not self._away)
            left_s = self._begun_s + self._patience_s - now_s
            if not waits or self._under_way is None or left_s <= 0:
                return None
            return Fetch(self._under_way, left_s)

    def at_hand(self, kid: str | None) -> KeySet:
        """Keys with this one among them. Raises :class:`IssuerUnavailable` where it cannot be said
        whether the issuer has it, and :class:`Unauthenticated` where it has not."""
        with self._lock:
            believed = self._believed(self._clock())
            if believed is None:
                raise IssuerUnavailable(_AWAY)
            if kid is None or _has(believed, kid):
                return believed
            if self._away or self._under_way is not None:
                raise IssuerUnavailable(_AWAY)
        raise Unauthenticated(
            "this access token is signed with a key that its issuer does not list"
        )

    def _believed(self, now_s: float) -> KeySet | None:
        return self._keys if now_s - self._told_s <= self._kept_s else None

    def _begin(self, now_s: float) -> None:
        if now_s - self._begun_s < AGAIN_S:
            return
        self._begun_s, self._under_way = now_s, Future()
        self._under_way.set_running_or_notify_cancel()  # who waits for it cannot take it back
        # No pool: what hangs in the system's look-up of names must not hold up the process's end.
        try:
            threading.Thread(target=self._run, args=(self._under_way,), daemon=True).start()
        except RuntimeError as error:  # no more threads: the next token tries again
            log.warning("issuer_unavailable", detail=str(error))
            self._under_way, self._away = None, True

    def _run(self, under_way: Future[None]) -> None:
        found: KeySet | None = None
        try:
            found = self._fetch()
        except IssuerUnavailable as error:
            log.warning("issuer_unavailable", detail=str(error))
        except Exception:  # whatever an issuer tells, the next fetch is made
            log.exception("issuer_keys_unreadable")
        with self._lock:
            self._under_way, self._away = None, found is None
            if found is not None:
                self._keys, self._told_s = found, self._clock()
        under_way.set_result(None)


def _has(keys: KeySet, kid: str) -> bool:
    return any(key.kid == kid for key in keys)
