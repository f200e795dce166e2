"""Standing queries: every frame that is committed is seen once, and alerts are told and erased."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.repositories import standing as standing_record
from models.repositories import videos as video_record
from models.session import DatabaseUnavailable
from models.video import VideoSegment
from tests.conftest import Services
from tests.parts import fresh_context, ingested, run_jobs, sql, with_settings
from tests.receiver import receiving
from worker.accepting import standing as accepting
from worker.accepting import webhooks
from worker.accepting.desk import COMMAND_LINE, Actor
from worker.accepting.keys import create_key, revoke_key
from worker.accepting.queries import checked_order, discard_uploads
from worker.accepting.standing import StandingOrder
from worker.accepting.webhooks import AT_COMMAND_LINE
from worker.context import Context
from worker.core.examples import Example
from worker.core.search_params import SearchParams, Strategy
from worker.core.types import Box, ImageArray
from worker.delivering import deliver_due
from worker.erasure import camera_span, submit_erasure
from worker.errors import AlreadyThere, InputInvalid, NotFound, TooManyRequests
from worker.generations import backbone_of, ensure_live_generation
from worker.recording import PictureBatch, PreparedBatch, prepare_batch, record_batch
from worker.reindex import submit_reindex
from worker.runtime import make_context
from worker.standing_subjects import WatchMemory
from worker.standing_watch import Watcher, clean_up, end_over, see_batch
from worker.verify import verify_index

BOX = Box(0.25, 0.25, 0.75, 0.75)
START = datetime(2026, 1, 1, tzinfo=UTC)
SIDE = 64


@pytest.fixture
def context(services: Services, template_database: str, tmp_path: Path) -> Iterator[Context]:
    with fresh_context(
        services.database_url, template_database, tmp_path, backbone="tiny-a", codec="fp32"
    ) as made:
        yield made


def scene(number: int, *, subject: bool = False) -> ImageArray:
    """A still scene with a little noise; with the subject, a pattern of its own in the middle."""
    rng = np.random.default_rng(number)
    img_hwc = np.full((SIDE, SIDE, 3), 90, np.int16)
    img_hwc[: SIDE // 2] += 40
    img_hwc += rng.integers(-3, 4, img_hwc.shape, dtype=np.int16)
    if subject:
        pattern = np.random.default_rng(7).integers(0, 256, (32, 32, 3), dtype=np.int16)
        img_hwc[16:48, 16:48] = pattern
    return img_hwc.clip(0, 255).astype(np.uint8)


def segment(context: Context, camera: str) -> VideoSegment:
    with context.db.transaction() as session:
        made = video_record.ensure_camera(session, camera)
        found, _ = video_record.ensure_segment(
            session,
            {
                "camera_id": made.id,
                "source_path": "test",
                "content_sha256": "0" * 64,
                "start_utc": START,
                "start_source": "given",
                "policy": {},
                "policy_key": "test",
            },
        )
    return found


def prepared(context: Context, numbers: list[int], showing: set[int]) -> PreparedBatch:
    backbone = backbone_of(context, ensure_live_generation(context))
    imgs_hwc = [scene(number, subject=number in showing) for number in numbers]
    times = [START + timedelta(seconds=10 * number) for number in numbers]
    return prepare_batch(context, backbone, PictureBatch(times, numbers, imgs_hwc, imgs_hwc))


def record(
    context: Context, camera: str, numbers: list[int], showing: set[int] | None = None
) -> list[int]:
    """Frames of a camera at 10 s each, by number; those ``showing`` the subject."""
    generation = ensure_live_generation(context)
    batch = prepared(context, numbers, showing or set())
    with ExitStack() as held, context.db.transaction() as session:
        return record_batch(context, session, segment(context, camera), generation, batch, held)


def stand(context: Context, frame_id: int | None = None, **given: Any) -> int:
    """A standing query on a frame, or on an upload; returns its id."""
    params = given.pop("params", SearchParams())
    actor = given.pop("actor", COMMAND_LINE)
    picture = given.pop("picture", None)
    order = StandingOrder(
        "coat", checked_order(context, BOX, params, frame_id=frame_id, picture=picture), **given
    )
    with context.db.transaction() as session:
        return accepting.record_standing(context, session, order, actor).standing_id


def alerts(context: Context) -> list[tuple[Any, ...]]:
    return sql(
        context,
        "select standing_query_id, (extract(epoch from t_utc - %s) / 10)::int, false_per_day"
        " from alerts order by id",
        START,
    )


def numbers_of(context: Context) -> list[int]:
    return [row[1] for row in alerts(context)]


def states(context: Context) -> list[tuple[Any, ...]]:
    return sql(context, "select state, ended_code from standing_queries order by id")


def shown_once(context: Context) -> int:
    """A camera of 60 still frames, the last of which shows the subject; that frame's id."""
    return record(context, "yard", list(range(60)), {59})[-1]


def test_a_new_frame_that_shows_it_raises_an_alert_and_others_do_not(context: Context):
    frame_id = shown_once(context)
    standing_id = stand(context, frame_id)
    assert Watcher().watch(context) == 0, "frames of before are not new"
    record(context, "yard", list(range(100, 120)), {110})
    assert Watcher().watch(context) == 20
    ((found, number, false_per_day),) = alerts(context)
    assert (found, number) == (standing_id, 110)
    assert false_per_day <= 1.0
    row = sql(context, "select judged_frames, unjudged_frames from standing_queries")
    assert row == [(20, 0)]
    ((box, cells),) = sql(context, "select box, region_cell_index from alerts")
    assert len(box) == 4 and cells
    assert Watcher().watch(context) == 0


def test_the_same_thing_on_another_camera_that_nobody_knows_yet(context: Context):
    """A camera with too few frames of its own is judged by those of all."""
    stand(context, shown_once(context))
    record(context, "gate", [200, 201, 202], {201})
    assert Watcher().watch(context) == 3
    assert numbers_of(context) == [201]


def test_with_too_few_frames_anywhere_nothing_is_judged_and_that_is_told(context: Context):
    stand(context, record(context, "yard", list(range(8)), {7})[-1])
    record(context, "yard", [20, 21], {21})
    assert Watcher().watch(context) == 2
    assert alerts(context) == []
    row = sql(context, "select judged_frames, unjudged_frames from standing_queries")
    assert row == [(0, 2)]


def test_a_batch_that_commits_late_is_seen_although_higher_ids_were(context: Context):
    """Ids are given before the commit: a watermark of ids would pass these frames by."""
    stand(context, shown_once(context))
    generation, watcher = ensure_live_generation(context), Watcher()
    early = prepared(context, [100, 101], {101})
    own = segment(context, "yard")
    with ExitStack() as held, context.db.transaction() as session:
        ids = record_batch(context, session, own, generation, early, held)
        later = record(context, "gate", [300, 301], {301})
        assert max(ids) < min(later)
        assert watcher.watch(context) == 2
        assert numbers_of(context) == [301]
    assert watcher.watch(context) == 2
    assert numbers_of(context) == [301, 101]


def test_a_batch_under_way_when_it_is_made_is_of_before_or_seen(context: Context):
    """Making one waits for batches under way: what commits after it is seen."""
    frame_id = shown_once(context)
    generation = ensure_live_generation(context)
    batch = prepared(context, [100, 101], {101})
    own = segment(context, "yard")
    hasty = context.settings.model_copy(update={"lock_timeout_ms": 200})
    other = make_context(hasty, str(hasty.database_url), application_name="ris tests")
    with ExitStack() as held, context.db.transaction() as session:
        record_batch(context, session, own, generation, batch, held)
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            stand(other, frame_id)
    other.db.close()
    assert states(context) == []


def test_a_worker_that_dies_before_it_records_finds_the_same_again(context: Context):
    stand(context, shown_once(context), cool_down_s=0.0)
    record(context, "yard", list(range(100, 104)), {101, 103})
    with context.db.transaction() as session:
        (batch,) = standing_record.take_frames(session, 60.0, 10)
    assert Watcher().watch(context) == 0, "somebody has it"
    sql(context, "update new_frames set held_until = now() - interval '1 second'")
    assert Watcher().watch(context) == 4
    assert numbers_of(context) == [101, 103]
    with pytest.raises(Exception, match="taken over"):
        see_batch(context, WatchMemory(), batch)  # the first one wakes up
    assert numbers_of(context) == [101, 103]


def test_a_batch_that_kills_its_worker_is_given_up_and_counted(context: Context):
    stand(context, shown_once(context))
    record(context, "yard", [100, 101], {101})
    sql(context, "update new_frames set attempts = 5")
    assert Watcher().watch(context) == 0
    assert sql(context, "select count(*) from new_frames") == [(0,)]
    assert sql(context, "select unjudged_frames from standing_queries") == [(2,)]


def test_the_cool_down_is_of_one_camera_and_goes_by_the_frames_times(context: Context):
    stand(context, shown_once(context), cool_down_s=25.0)
    record(context, "yard", list(range(100, 108)), set(range(100, 108)))
    record(context, "gate", [101], {101})
    Watcher().watch(context)
    assert sorted(numbers_of(context)) == [100, 101, 103, 106]
    record(context, "yard", [90, 98], {90, 98})  # late, and 98 within the cool-down of 100
    Watcher().watch(context)
    assert sorted(numbers_of(context)) == [90, 100, 101, 103, 106]


def test_paused_ended_expired_and_revoked_ones_see_nothing(context: Context):
    frame_id = shown_once(context)
    with context.db.transaction() as session:
        key, _ = create_key(session, COMMAND_LINE, name="k", actions=["search"])
    paused, expired, revoked = (
        stand(context, frame_id),
        stand(context, frame_id, expires_at=datetime.now(UTC) + timedelta(hours=1)),
        stand(context, frame_id, actor=Actor(f"key {key.id}", key.id)),
    )
    with context.db.transaction() as session:
        accepting.set_running(session, COMMAND_LINE, None, paused, running=False)
        revoke_key(session, COMMAND_LINE, key.id)
    sql(context, "update standing_queries set expires_at = now() where id = %s", expired)
    record(context, "gate", [100], {100})
    Watcher().watch(context)
    assert alerts(context) == []
    assert states(context) == [("paused", None), ("ended", "expired"), ("ended", "unauthenticated")]
    with context.db.transaction() as session:
        accepting.set_running(session, COMMAND_LINE, None, paused, running=True)
        with pytest.raises(AlreadyThere, match="unauthenticated"):
            accepting.set_running(session, COMMAND_LINE, None, revoked, running=True)
    record(context, "yard", [200], {200})
    Watcher().watch(context)
    assert [(row[0], row[1]) for row in alerts(context)] == [(paused, 200)]


def test_what_it_fired_on_does_not_become_chance(context: Context):
    """A process that starts anew learns chance from frames that show the subject as well."""
    stand(context, shown_once(context), cool_down_s=0.0)
    for number in (100, 200, 300):
        record(context, "yard", list(range(number, number + 10)), {number + 5})
        assert Watcher().watch(context) == 10
    assert numbers_of(context) == [105, 205, 305]


def test_what_the_camera_showed_all_day_is_chance(context: Context):
    record(context, "yard", list(range(60)), set(range(0, 60, 4)))
    stand(context, record(context, "gate", [70], {70})[0])
    record(context, "yard", [100], {100})
    assert Watcher().watch(context) == 1
    assert alerts(context) == []
    assert sql(context, "select judged_frames from standing_queries") == [(1,)]


def test_nothing_is_put_on_the_list_when_nothing_runs(context: Context):
    frame_id = shown_once(context)
    standing_id = stand(context, frame_id)
    with context.db.transaction() as session:
        accepting.set_running(session, COMMAND_LINE, None, standing_id, running=False)
    record(context, "yard", [100], {100})
    assert sql(context, "select count(*) from new_frames") == [(0,)]


def test_filters_are_those_of_a_search(context: Context):
    frame_id = shown_once(context)
    record(context, "gate", [70])
    ((gate,),) = sql(context, "select id from cameras where name = 'gate'")
    stand(context, frame_id, params=SearchParams(camera_ids=(gate,)))
    stand(context, frame_id, params=SearchParams(zone=Box(0, 0, 0.2, 0.2)))
    until_utc = START + timedelta(seconds=1005)
    stand(context, frame_id, params=SearchParams(t_to_utc=until_utc), cool_down_s=0.0)
    record(context, "yard", [100, 101], {100, 101})
    Watcher().watch(context)
    assert [(row[0], row[1]) for row in alerts(context)] == [(3, 100)]
    counted = "select judged_frames + unjudged_frames from standing_queries order by id"
    assert sql(context, counted) == [(0,), (2,), (1,)]  # what is outside is not even counted


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"params": SearchParams(strategy=Strategy.MAX_SIM)}, "strategies"),
        ({"params": SearchParams(tau=0.5)}, "tau"),
        ({"max_false_per_day": 0.0}, "max_false_per_day"),
        ({"cool_down_s": -1.0}, "cool_down_s"),
        ({"expires_at": START}, "past"),
    ],
)
def test_what_cannot_stand_is_refused(context: Context, given: dict[str, Any], match: str):
    frame_id = record(context, "yard", [0])[0]
    with pytest.raises(InputInvalid, match=match):
        stand(context, frame_id, **given)
    with pytest.raises(NotFound):
        stand(context, 12345)
    with pytest.raises(TooManyRequests, match="RIS_STANDING_QUERIES"):
        stand(with_settings(context, standing_queries=0), frame_id)
    assert states(context) == []


def test_an_alert_is_told_once_with_where_and_when(context: Context):
    with receiving() as receiver:
        guarded = with_settings(context, webhook_hosts="127.0.0.0/8")
        with context.db.transaction() as session:
            webhooks.create_webhook(
                session, AT_COMMAND_LINE, name="a", url=receiver.url, kinds=["alert.raised"]
            )
        standing_id = stand(context, shown_once(context))
        record(context, "yard", [100, 101], {101})
        for _ in range(2):
            Watcher().watch(context)
            deliver_due(guarded)
        (got,) = receiver.got
        told = got.told["data"]
        assert (told["standing_query_id"], told["name"], told["camera"]) == (
            standing_id,
            "coat",
            "yard",
        )
        assert datetime.fromisoformat(told["t_utc"]) == START + timedelta(seconds=1010)
        assert told["path"] == f"/v1/alerts/{told['alert_id']}"
        assert len(told["box"]) == 4


def test_an_erased_frame_takes_alert_and_event_along(context: Context):
    with context.db.transaction() as session:
        webhooks.create_webhook(
            session, AT_COMMAND_LINE, name="a", url="http://127.0.0.1:1/", kinds=[]
        )
    stand(context, shown_once(context))
    record(context, "gate", [100], {100})
    record(context, "yard", [101], {101})
    Watcher().watch(context)
    assert sorted(numbers_of(context)) == [100, 101]
    submit_erasure(context, camera_span(context, "gate", None, None)[0])
    run_jobs(context)
    assert numbers_of(context) == [101]
    assert sql(context, "select data ->> 'camera' from events where kind = 'alert.raised'") == [
        ("yard",)
    ]
    submit_erasure(context, camera_span(context, "yard", None, None)[0])
    run_jobs(context)
    assert states(context) == [], "it was drawn on a frame that is erased"
    assert alerts(context) == []
    assert sql(context, "select data ->> 'code' from events where kind = 'standing.ended'") == [
        ("erased",)
    ]
    ((counted,),) = sql(context, "select queries from erasures order by id desc limit 1")
    assert counted == 1


def test_frames_that_are_erased_while_they_wait_are_not_seen(context: Context):
    stand(context, shown_once(context))
    record(context, "gate", [100], {100})
    submit_erasure(context, camera_span(context, "gate", None, None)[0])
    run_jobs(context)
    assert Watcher().watch(context) == 0
    assert sql(context, "select count(*) from new_frames") == [(0,)]
    assert alerts(context) == []


def jpeg_of(context: Context, frame_id: int) -> bytes:
    ((sha256,),) = sql(context, "select picture_sha256 from frames where id = %s", frame_id)
    return context.pictures.path(sha256).read_bytes()


def test_an_uploaded_picture_stands_and_goes_with_it(context: Context):
    record(context, "yard", list(range(60)))
    stored = io.BytesIO()
    Image.fromarray(scene(999, subject=True)).save(stored, "JPEG", quality=95)
    stand(context, picture=stored.getvalue())
    ((sha256,),) = sql(context, "select picture_sha256 from standing_queries")
    assert discard_uploads(context, [sha256]) == 0, "it is asked on"
    record(context, "gate", [100], {100})
    Watcher().watch(context)
    assert numbers_of(context) == [100]
    assert verify_index(context).problems == ()
    sql(
        context,
        "update standing_queries set state = 'ended', ended_code = 'expired',"
        " ended_at = now() - interval '40 days'",
    )
    clean_up(context)
    assert states(context) == []
    assert sha256 not in set(context.uploads.names(time.time()))


def test_an_erased_picture_takes_uploads_of_it_along(context: Context):
    shown = shown_once(context)
    stand(context, picture=jpeg_of(context, shown))
    ((sha256,),) = sql(context, "select picture_sha256 from standing_queries")
    submit_erasure(context, camera_span(context, "yard", None, None)[0])
    run_jobs(context)
    assert states(context) == []
    assert sha256 not in set(context.uploads.names(time.time()))


def test_it_survives_another_backbone_and_says_why_when_it_cannot(context: Context):
    watcher = Watcher()
    stand(context, shown_once(context), cool_down_s=0.0)
    record(context, "yard", [100], {100})
    watcher.watch(context)
    submit_reindex(context, "tiny-b", compare=False)
    run_jobs(context)
    assert sql(context, "select backbone from index_generations where state = 'live'") == [
        ("tiny-b",)
    ]
    record(context, "yard", [200, 201], {201})
    watcher.watch(context)
    assert numbers_of(context) == [100, 201]
    generations = sql(context, "select generation_id from alerts order by id")
    assert generations[0] != generations[1]


def test_one_whose_example_is_gone_ends_and_says_why(context: Context):
    shown = shown_once(context)
    example = record(context, "gate", [70], {70})[0]
    stand(context, shown, params=SearchParams(more=(Example(example, BOX),)))
    stand(context, shown)
    submit_erasure(context, camera_span(context, "gate", None, None)[0])
    run_jobs(context)
    record(context, "yard", [100], {100})
    Watcher().watch(context)
    assert states(context) == [("ended", "not_found"), ("running", None)]
    ((detail,),) = sql(context, "select ended_detail from standing_queries where state = 'ended'")
    assert str(example) in detail
    assert [row[0] for row in alerts(context)] == [2], "the other one goes on"


def test_recordings_are_watched_as_they_are_ingested(context: Context, footage: dict[str, Path]):
    stand(context, shown_once(context))
    ingested(context, footage["car"], "seat", 0.25, start_utc=START)
    ((frames,),) = sql(
        context,
        "select count(*) from frames f join cameras c on c.id = f.camera_id where c.name = 'seat'",
    )
    assert Watcher().watch(context) == frames > 10
    assert sql(context, "select judged_frames from standing_queries") == [(frames,)]


def test_damaged_frames_are_left_out_and_counted(context: Context):
    stand(context, shown_once(context), cool_down_s=0.0)
    record(context, "gate", [100, 101, 102], {101, 102})
    path = max(context.index.root.glob("g*/s*/patch.vec"), key=lambda one: one.stat().st_mtime_ns)
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(bytes(raw))
    Watcher().watch(context)
    assert numbers_of(context) == [101]
    row = sql(context, "select judged_frames, unjudged_frames from standing_queries")
    assert row == [(2, 1)]


def test_expiry_alone_ends_it(context: Context):
    stand(
        context, record(context, "yard", [0])[0], expires_at=datetime.now(UTC) + timedelta(days=1)
    )
    end_over(context)
    assert states(context) == [("running", None)]
    sql(context, "update standing_queries set expires_at = now()")
    end_over(context)
    assert states(context) == [("ended", "expired")]
