"""Privacy masks end to end: nothing that is recorded tells of what lies under them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from models.repositories import index as index_record
from tests.conftest import Services
from tests.parts import HANDLERS, fresh_context, job, loaded, run_jobs, sql, with_settings
from tests.searching import flip
from worker.accepting.cameras import create_camera, set_mask
from worker.accepting.desk import COMMAND_LINE
from worker.backbones.base import Backbone
from worker.context import Context
from worker.core.backbone_spec import BackboneSpec
from worker.core.masking import PrivacyMask, hidden_cells
from worker.core.sampling import IntervalPolicy
from worker.core.search_params import SearchParams
from worker.core.types import Box, Descriptors, ImageArray, SizePx
from worker.describe import describe_query
from worker.errors import MaskChanged, RoiInvalid
from worker.generations import ensure_live_generation
from worker.ingest import submit_file
from worker.jobs import run_job
from worker.pinning import pin_shards, spec_of
from worker.reindex import submit_reindex
from worker.repair import repair_index
from worker.verify import verify_index

START = datetime(2026, 5, 1, 8, tzinfo=UTC)
AREA = Box(0.5, 0.25, 1, 0.75)
SIZE = SizePx(240, 320)
FRAMES = 3


def lossless(path: Path, secret: int) -> Path:
    """Three pictures of noise whose masked part alone depends on ``secret``."""
    chance = np.random.default_rng(5)
    hidden = np.random.default_rng(secret)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(1))
        stream.width, stream.height, stream.pix_fmt = SIZE.w_px, SIZE.h_px, "yuv420p"
        for at in range(FRAMES):
            img = np.kron(
                chance.integers(0, 256, (15, 20, 3)), np.ones((16, 16, 1), dtype=int)
            ).astype(np.uint8)
            img[60:180, 160:] = hidden.integers(0, 256, (120, 160, 3))
            frame = av.VideoFrame.from_ndarray(img, format="rgb24").reformat(format="yuv420p")
            frame.pts = at
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def tiny(context: Context) -> Context:
    """A fresh context whose backbone is small and fast."""
    return loaded(with_settings(context, backbone="tiny-a"))


@pytest.fixture(scope="module")
def indexed(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    """Two cameras with the default backbone whose footage differs under their masks only."""
    folder = tmp_path_factory.mktemp("masked")
    with fresh_context(services.database_url, template_database, folder / "var") as made:
        for secret, name in ((1, "one"), (2, "other")):
            masked_camera(made, name)
            clip = lossless(folder / f"{name}.mkv", secret)
            submit_file(made, clip, name, IntervalPolicy(1.0), START)
        run_jobs(made)
        yield made


def masked_camera(context: Context, name: str) -> int:
    with context.db.transaction() as session:
        camera = create_camera(session, COMMAND_LINE, name)
        set_mask(session, COMMAND_LINE, camera.id, [AREA])
        return camera.id


def stored(context: Context, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """Global and patch descriptors of a camera in the live generation, in order of time."""
    generation = ensure_live_generation(context)
    (camera_id,) = sql(context, f"select id from cameras where name = '{camera}'")[0]
    with context.db.transaction() as session:
        shards = pin_shards(
            session,
            context.index,
            context.f_maps,
            generation,
            SearchParams(camera_ids=(camera_id,)),
        )
    (shard,) = shards
    at = list(range(shard.blocks))
    return shard.read("global", at), shard.read("patch", at)


def hidden(context: Context) -> np.ndarray:
    spec = spec_of(ensure_live_generation(context))
    return hidden_cells(PrivacyMask(0, (AREA,)), spec.grid, spec.input_size, SIZE)


def test_descriptors_and_pictures_do_not_depend_on_what_is_masked(indexed: Context) -> None:
    one, other = stored(indexed, "one"), stored(indexed, "other")
    cells = hidden(indexed)
    assert one[1].shape[0] == FRAMES and 30 < len(cells) < 120
    np.testing.assert_array_equal(one[0], other[0])
    seen = np.delete(np.arange(one[1].shape[1]), cells)
    np.testing.assert_array_equal(one[1][:, seen], other[1][:, seen])
    assert np.abs(one[1][0] - one[1][1])[seen].max() > 0.1  # frames do differ
    # Under the mask: the same at all times, and like nothing that was seen.
    assert (one[1][:, cells] == one[1][:1, cells]).all()
    assert np.abs(one[1][0, cells] @ one[1][0, seen].T).max() < 0.45
    hashes = [
        sql(
            indexed,
            "select picture_sha256 from frames f join cameras c on c.id = f.camera_id"
            f" where c.name = '{name}' order by t_utc",
        )
        for name in ("one", "other")
    ]
    assert hashes[0] == hashes[1] and len(hashes[0]) == FRAMES
    shown = indexed.pictures.load(hashes[0][0][0])
    assert shown[60:180, 160:].max() < 12  # black, as JPEG has it
    assert shown[:40].max() > 200


def test_a_query_drawn_on_the_mask_is_refused_and_beside_it_not(indexed: Context) -> None:
    generation = ensure_live_generation(indexed)
    (frame_id,) = sql(indexed, "select min(id) from frames")[0]
    with pytest.raises(RoiInvalid, match="privacy mask"):
        describe_query(
            indexed, generation, Box(0.6, 0.35, 0.9, 0.6), SearchParams(), frame_id=frame_id
        )
    found = describe_query(
        indexed, generation, Box(0.2, 0.3, 0.9, 0.6), SearchParams(), frame_id=frame_id
    )
    grid = spec_of(generation).grid
    ids = found.cells[:, 0] * grid.w + found.cells[:, 1]
    assert len(ids) > 0 and not set(ids) & set(hidden(indexed))


def test_what_is_made_anew_from_kept_pictures_is_masked_too(indexed: Context) -> None:
    before = stored(indexed, "one")[1]
    cells = hidden(indexed)
    generation = ensure_live_generation(indexed)
    with indexed.db.transaction() as session:
        shards = pin_shards(session, indexed.index, indexed.f_maps, generation, SearchParams())
    flip(shards[0].layout.path("patch"), 5000)
    assert verify_index(indexed).problems
    assert repair_index(indexed).frames == 1
    assert (stored(indexed, "one")[1][:, cells] == before[:, cells]).all()
    submit_reindex(indexed, "efficientnet-lite0", compare=False)
    run_jobs(indexed)
    assert ensure_live_generation(indexed).id != generation.id
    assert (stored(indexed, "one")[1][:, cells] == before[:, cells]).all()
    assert verify_index(indexed).problems == ()


class SetsAMask:
    """A real backbone under whose first batch the camera gets a mask."""

    def __init__(self, real: Backbone, context: Context, camera_id: int) -> None:
        self.real, self.context, self.camera_id, self.times = real, context, camera_id, 0

    @property
    def spec(self) -> BackboneSpec:
        return self.real.spec

    def embed(self, pictures: Sequence[ImageArray]) -> Descriptors:
        self.times += 1
        if self.times == 1:
            with self.context.db.transaction() as session:
                set_mask(session, COMMAND_LINE, self.camera_id, [AREA])
        return self.real.embed(pictures)


def test_a_mask_set_under_a_batch_covers_it(tiny: Context, tmp_path: Path) -> None:
    """No frame is recorded unmasked after the order, and no picture of one stays."""
    with tiny.db.transaction() as session:
        camera_id = create_camera(session, COMMAND_LINE, "gate").id
    setting = SetsAMask(tiny.backbone("tiny-a"), tiny, camera_id)
    context = replace(tiny, backbone=lambda _name: setting)
    clip = lossless(tmp_path / "clip.mkv", 1)
    made = submit_file(context, clip, "gate", IntervalPolicy(1.0), START)
    run_job(context, uuid.UUID(made.job_id), HANDLERS)
    assert job(context, made.job_id).retry_code == MaskChanged.code
    assert sql(context, "select count(*) from frames") == [(0,)]
    run_jobs(context)
    assert job(context, made.job_id).state == "done"
    assert sql(context, "select count(*), min(mask_id), max(mask_id) from frames") == [(3, 1, 1)]
    hashes = {sha256 for (sha256,) in sql(context, "select picture_sha256 from frames")}
    kept = {path.stem for path in (context.settings.data_dir / "pictures").rglob("*.jpg")}
    assert kept == hashes
    assert all(context.pictures.load(sha256)[60:180, 160:].max() < 12 for sha256 in hashes)


def test_a_mask_taken_away_leaves_frames_as_they_are(tiny: Context, tmp_path: Path) -> None:
    camera_id = masked_camera(tiny, "gate")
    clip = lossless(tmp_path / "clip.mkv", 1)
    submit_file(tiny, clip, "gate", IntervalPolicy(1.0), START)
    run_jobs(tiny)
    with tiny.db.transaction() as session:
        assert set_mask(session, COMMAND_LINE, camera_id, []) is None
    again = lossless(tmp_path / "again.mkv", 2)
    submit_file(tiny, again, "gate", IntervalPolicy(1.0), START.replace(hour=9))
    run_jobs(tiny)
    assert sql(tiny, "select mask_id, count(*) from frames group by 1 order by 1") == [
        (1, 3),
        (None, 3),
    ]
    acts = sql(tiny, "select act, details->'mask_id' from audit_entries where act = 'camera.mask'")
    assert acts == [("camera.mask", 1), ("camera.mask", None)]
    with tiny.db.transaction() as session:
        assert index_record.live_generation(session) is not None
