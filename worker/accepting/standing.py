"""Standing queries: a query that new frames are compared with as they come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from models.repositories import index as index_record
from models.repositories import search as search_record
from models.repositories import standing as standing_record
from models.repositories.scope import EVERYTHING, FootageScope
from models.session import Session
from models.standing import StandingQuery
from worker.accepting.audit import brief, record_act
from worker.accepting.desk import Actor, Desk
from worker.accepting.names import checked_name
from worker.accepting.queries import AcceptedQuery, QueryOrder, record_query, require_known
from worker.accepting.scope import limited_params
from worker.core.bounds import check_float
from worker.core.roi_json import roi_to_json
from worker.core.search_params import Strategy
from worker.errors import AlreadyThere, InputInvalid, NotFound, TooManyRequests

DEFAULT_FALSE_PER_DAY: Final = 1.0
DEFAULT_COOL_DOWN_S: Final = 60.0
MAX_COOL_DOWN_S: Final = 86_400.0 * 7
STRATEGIES: Final = (
    Strategy.DEFAULT, Strategy.FUSED, Strategy.GROW_RIGID, Strategy.GROW_ELASTIC,
)  # fmt: skip
"""Those whose likeness is compared with chance."""


@dataclass(frozen=True, slots=True)
class StandingOrder:
    """A standing query whose own fields are right. ``backfill``: search what is there as well."""

    name: str
    query: QueryOrder
    max_false_per_day: float = DEFAULT_FALSE_PER_DAY
    cool_down_s: float = DEFAULT_COOL_DOWN_S
    expires_at: datetime | None = None
    backfill: bool = False

    def __post_init__(self) -> None:
        """Raises :class:`InputInvalid`."""
        checked_name("name", self.name)
        check_float("max_false_per_day", self.max_false_per_day, 1e-6, 1e6)
        check_float("cool_down_s", self.cool_down_s, 0.0, MAX_COOL_DOWN_S)
        params = self.query.params
        if params.strategy not in STRATEGIES or params.tau is not None:
            allowed = ", ".join(one.value for one in STRATEGIES)
            raise InputInvalid(
                f"a standing query is compared with chance, by the strategies {allowed} without tau"
            )
        if self.expires_at is not None and self.expires_at <= datetime.now(UTC):
            raise InputInvalid(f"expiry {self.expires_at.isoformat()} is past: name a time to come")


@dataclass(frozen=True, slots=True)
class AcceptedStanding:
    """A recorded standing query, and the query on what is there already, to ring for after the
    commit."""

    standing_id: int
    backfill: AcceptedQuery | None


def record_standing(
    desk: Desk,
    session: Session,
    order: StandingOrder,
    actor: Actor,
    scope: FootageScope = EVERYTHING,
) -> AcceptedStanding:
    """Record a standing query in the caller's transaction: every frame that is committed after it
    is seen. ``scope``: the footage that exists for the actor, as in
    :func:`worker.accepting.queries.record_query`, which also says what is raised; and
    :class:`TooManyRequests`.
    """
    most = desk.settings.standing_queries
    if standing_record.count_open(session, actor.key_id) >= most:
        raise TooManyRequests(
            f"{actor.name} has {most} standing queries (RIS_STANDING_QUERIES): end one first"
        )
    # Batches under way end first; later ones see that a standing query runs.
    index_record.lock_generations(session, exclusive=True)
    query = order.query
    require_known(session, query.frame_id, query.params, scope)
    params = limited_params(scope, query.params)
    picture_sha256 = None
    if query.picture is not None:
        search_record.lock_uploads(session, exclusive=False)
        desk.uploads.require_free(desk.settings.min_free_bytes)
        picture_sha256 = desk.uploads.put(query.picture)
    standing = standing_record.add(
        session,
        name=order.name.strip(),
        key_id=actor.key_id,
        frame_id=query.frame_id,
        picture_sha256=picture_sha256,
        roi=roi_to_json(query.roi),
        params=params.to_json(),
        max_false_per_day=order.max_false_per_day,
        cool_down_s=order.cool_down_s,
        expires_at=order.expires_at,
    )
    backfill = None
    if order.backfill:
        backfill = record_query(desk, session, query, actor, scope)
    record_act(
        session,
        actor,
        "standing.create",
        standing_query_id=standing.id,
        frame_id=query.frame_id,
        picture_sha256=picture_sha256,
        roi=brief(roi_to_json(query.roi)),
        params={name: brief(value) for name, value in params.to_json().items()},
        max_false_per_day=order.max_false_per_day,
    )
    return AcceptedStanding(standing.id, backfill)


def known_standing(session: Session, owner: int | None, standing_id: int) -> StandingQuery:
    """A standing query of that key, or with None of whomever. Raises :class:`NotFound`."""
    found = None
    if 0 < standing_id < 2**63:
        found = standing_record.find(session, standing_id, owner)
    if found is None:
        raise NotFound(f"standing query {standing_id} is not known")
    return found


def set_running(
    session: Session, actor: Actor, owner: int | None, standing_id: int, *, running: bool
) -> None:
    """Pause it, or have it see new frames again; those that came meanwhile it does not see. Raises
    :class:`NotFound`, and :class:`AlreadyThere` for one that has ended."""
    standing = known_standing(session, owner, standing_id)
    state = "running" if running else "paused"
    if standing.state == state:
        return
    if running:
        index_record.lock_generations(session, exclusive=True)
    if not standing_record.set_state(session, standing_id, state):
        raise AlreadyThere(
            f"standing query {standing_id} has ended ({standing.ended_code}): make another one"
        )
    act = "standing.resume" if running else "standing.pause"
    record_act(session, actor, act, standing_query_id=standing_id)


def remove_standing(
    session: Session, actor: Actor, owner: int | None, standing_id: int
) -> str | None:
    """Forget it with its alerts; returns its upload, for
    :func:`worker.accepting.queries.discard_uploads` after the commit. Raises :class:`NotFound`."""
    standing = known_standing(session, owner, standing_id)
    standing_record.remove(session, standing_id)
    record_act(session, actor, "standing.remove", standing_query_id=standing_id)
    return standing.picture_sha256
