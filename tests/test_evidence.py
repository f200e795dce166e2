"""Evidence bundles of real searches: what they hold, what they prove, and what gives them away."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.repositories import evidence as evidence_record
from models.repositories import search as search_record
from tests.conftest import REPO, Services
from tests.parts import HANDLERS, fresh_context, ingested, job, run_jobs, sql
from worker import sealing
from worker.accepting.desk import COMMAND_LINE
from worker.accepting.evidence import KEPT_S, MAX_HITS, AcceptedExport, bundle_of, order_export
from worker.accepting.queries import submit_query
from worker.bundle.archive import read_archive, write_archive
from worker.bundle.checking import CheckedBundle, check_bundle
from worker.bundle.manifest import manifest_bytes, sealed_bundle
from worker.bundle.rematching import rematch_hits
from worker.bundle.signing import fingerprint, own_key, signing_key
from worker.bundle.terms import npy
from worker.context import Context
from worker.core.search_params import search_params_from_json
from worker.core.types import Box
from worker.erasure import camera_span, submit_erasure
from worker.errors import BackboneMismatch, EvidenceInvalid, InputInvalid, NotFound
from worker.evidence import NO_ROWS, NOT_KEPT, drop_old
from worker.evidence_check import check_matches
from worker.jobs import run_job
from worker.repair import repair_index
from worker.video.upload_store import UploadStore

CALL = datetime(2026, 3, 1, 14, tzinfo=UTC)
BOW_TIE = Box(0.44, 0.62, 0.68, 0.92)


@pytest.fixture(scope="module")
def indexed(
    services: Services,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
    footage: dict[str, Path],
) -> Iterator[Context]:
    """A phone call (a background is known of it) and a street; the default backbone."""
    folder = tmp_path_factory.mktemp("evidence")
    with fresh_context(services.database_url, template_database, folder) as made:
        ingested(made, footage["car"], "call", 0.35, start_utc=CALL)
        ingested(made, footage["bikes"], "street", 4.0, start_utc=CALL + timedelta(hours=2))
        yield made


def searched(context: Context, *, uploaded: bool = False, **params: Any) -> uuid.UUID:
    """A query for the bow tie of the man in the car, answered."""
    frame_id, sha256 = sql(
        context,
        "select f.id, picture_sha256 from frames f join cameras c on c.id = f.camera_id"
        " where c.name = 'call' order by t_utc offset 3 limit 1",
    )[0]
    query_id = submit_query(
        context,
        BOW_TIE,
        search_params_from_json({"group": "frame", "close_looks": 0, **params}),
        frame_id=None if uploaded else frame_id,
        picture=context.pictures.read(sha256) if uploaded else None,
    )
    run_jobs(context)
    return query_id


def ordered(context: Context, query_id: uuid.UUID, *ranks: int) -> AcceptedExport:
    with context.db.transaction() as session:
        query = search_record.find_query(session, query_id)
        assert query is not None
        hits = len(search_record.list_hits(session, query_id))
        return order_export(session, COMMAND_LINE, query, ranks or range(1, min(hits, 6) + 1))


def exported(context: Context, query_id: uuid.UUID, *ranks: int) -> bytes:
    accepted = ordered(context, query_id, *ranks)
    run_jobs(context)
    done = job(context, accepted.job_id)
    assert done.state == "done", (done.error_code, done.error_detail, done.retry_detail)
    with context.db.transaction() as session:
        return bundle_of(context, session, COMMAND_LINE, query_id, accepted.evidence_id)


def own_mark(context: Context) -> str:
    return fingerprint(own_key(context.settings).public_pem)


def checked(context: Context, content: bytes) -> CheckedBundle:
    return check_bundle(content, own_mark(context))


@pytest.fixture(scope="module")
def bundle(indexed: Context) -> bytes:
    return exported(indexed, searched(indexed), 1, 2, 5)


def test_a_bundle_holds_what_was_recorded(indexed: Context, bundle: bytes, tmp_path: Path):
    found = checked(indexed, bundle)
    assert (found.problems, found.signer) == ((), "trusted")
    told, files = found.manifest, found.files
    assert [hit["rank"] for hit in told["hits"]] == told["export"]["ranks"] == [1, 2, 5]
    query = told["query"]["query_id"]
    rows = sql(
        indexed,
        "select h.rank, h.score, f.picture_sha256, f.pts, s.content_sha256, s.start_source"
        " from search_hits h join frames f on f.id = h.frame_id"
        " join video_segments s on s.id = f.segment_id where query_id = %s order by rank",
        query,
    )
    by_rank = {row[0]: row[1:] for row in rows}
    for hit in told["hits"]:
        score, sha256, pts, content_sha256, source = by_rank[hit["rank"]]
        assert hashlib.sha256(files[hit["picture"]]).hexdigest() == sha256
        assert files[hit["picture"]] == indexed.pictures.read(sha256)
        assert hit["record"]["score"] == score
        frame = hit["frame"]
        assert (frame["camera_name"], frame["pts"], frame["privacy_mask"]) == ("call", pts, None)
        assert (frame["segment"]["content_sha256"], frame["segment"]["live"]) == (
            content_sha256,
            False,
        )
        assert frame["segment"]["time_source"] == source == "given"
        drawn = files[hit["picture"].replace("picture", "picture-with-match")]
        assert drawn[:3] == b"\xff\xd8\xff"
        assert drawn != files[hit["picture"]]
    assert told["index"]["codec"] == "int8"
    assert told["index"]["spec"]["weights_sha256"]
    assert [entry["act"] for entry in told["audit"]] == ["query.submit", "evidence.order"]
    assert told["query"]["asked_by"] == {"key_id": None, "label": "command line"}
    readme = files["README.txt"].decode()
    assert query in readme
    assert " ".join(readme.split()).count("(time: given)") == 3
    assert "made again the match is not" not in readme
    assert found.signed_by is not None
    assert found.signed_by in readme
    assert max(map(len, readme.splitlines())) <= 100
    acts = dict(sql(indexed, "select act, details ->> 'sha256' from audit_entries"))
    sha256 = hashlib.sha256(bundle).hexdigest()
    assert (acts["evidence.made"], acts["evidence.fetch"]) == (sha256, sha256)


def test_it_is_checked_without_ris_as_its_text_says(bundle: bytes, tmp_path: Path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    (tmp_path / "b.zip").write_bytes(bundle)
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        archive.extractall(tmp_path)
    text = (tmp_path / "README.txt").read_text().replace("\\\n", "")
    commands = [line.strip() for line in text.splitlines() if line.startswith("   openssl")]
    commands += [line.strip() for line in text.splitlines() if line.startswith("   sha256sum")]
    said = [
        subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for line in commands
    ]
    assert len(said) == 3
    assert said[0].split()[0] in text
    assert "Verified Successfully" in said[1]
    assert said[2].count(": OK") == len(said[2].splitlines()) > 10


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"strategy": "grow-elastic", "without": ["time", "whole-frame"]},
        {"strategy": "grow-rigid", "tau": 0.6},
        {"strategy": "paper-elastic"},
        {"strategy": "max-sim", "zone": {"box": [0, 0, 0.7, 1]}},
        {"strategy": "whole-frame"},
        {"strategy": "vote-weighted"},
        {"top_n": 8, "uploaded": True},
    ],
    ids=str,
)
def test_every_match_is_made_again_to_the_bit(indexed: Context, params: dict[str, Any]):
    """The same bits as the manifest has; and region and score as recorded by the search."""
    found = checked(indexed, exported(indexed, searched(indexed, **params)))
    assert found.problems == ()
    hits = rematch_hits(found.files, found.manifest)
    assert len(hits) > 2
    for hit, told in zip(hits, found.manifest["hits"], strict=True):
        assert hit.is_same
        assert told["rematch"]["same_region"] is True
        assert told["rematch"]["pairs"]
        is_vote = params.get("strategy") == "vote-weighted"
        assert told["rematch"]["same_score"] is (None if is_vote else True)
        near = abs(told["rematch"]["similarity"] - told["record"]["similarity"])
        assert near < 4e-6
    report = check_matches(found, None)
    assert all(hit.remade and hit.is_record for hit in report.hits)


def test_marks_are_in_it(indexed: Context):
    """A confirmed hit and a wrong one are part of the score, and of the bundle."""
    frames = [row[0] for row in sql(indexed, "select id from frames order by t_utc")]
    box = [0.4, 0.5, 0.7, 0.9]
    marks: dict[str, Any] = {
        "more": [{"frame_id": frames[6], "box": box}],
        "less": [{"frame_id": frames[-1], "box": box}],
    }
    found = checked(indexed, exported(indexed, searched(indexed, **marks)))
    exemplars = found.manifest["search"]["terms"]["exemplars"]
    assert [one["frame_id"] for one in exemplars if one["against"]] == [frames[-1]]
    assert frames[6] in [one["frame_id"] for one in exemplars if one["share"] == 1.0]
    assert all(hit["rematch"]["same_score"] for hit in found.manifest["hits"])


AGAIN = """
import sys
from worker.bundle.checking import check_bundle
from worker.bundle.rematching import rematch_hits
found = check_bundle(open(sys.argv[1], "rb").read(), None)
print(all(hit.is_same for hit in rematch_hits(found.files, found.manifest)))
"""


def test_another_processor_gets_the_same_bits(bundle: bytes, tmp_path: Path):
    """As far as one machine can tell: NumPy and its BLAS without their newer instructions."""
    (tmp_path / "b.zip").write_bytes(bundle)
    older = {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL", "OPENBLAS_CORETYPE": "Nehalem"}
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AGAIN, str(tmp_path / "b.zip")],
        env=os.environ | {"PYTHONPATH": str(REPO)} | older,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stdout.strip() == "True", said.stderr


def test_pictures_and_descriptors_belong_together(indexed: Context, bundle: bytes):
    found = checked(indexed, bundle)
    report = check_matches(found, indexed.backbone)
    assert report.problems == ()
    for hit in report.hits:
        assert hit.picture is not None
        assert hit.picture.mean_cosine > 0.93
        assert hit.picture.score_difference == pytest.approx(0, abs=0.05)
    # The picture of the street in the place of a hit's, signed with the same key.
    street = sql(indexed, "select picture_sha256 from frames order by t_utc desc limit 1")[0][0]
    name = found.manifest["hits"][0]["picture"]
    forged = resealed(indexed, found, {name: indexed.pictures.read(street)})
    assert forged.problems == ()
    assert forged.signer == "trusted"
    (problem,) = check_matches(forged, indexed.backbone).problems
    assert problem.startswith("hit 1: its descriptors are not those of its picture")
    # Two pictures of one camera, swapped.
    names = [hit["picture"] for hit in found.manifest["hits"]]
    swapped = {names[0]: found.files[names[2]], names[2]: found.files[names[0]]}
    problems = check_matches(resealed(indexed, found, swapped), indexed.backbone).problems
    assert "hit 1: its picture is nearer to the descriptors of hit 5 than to its own" in problems
    assert "hit 5: its picture is nearer to the descriptors of hit 1 than to its own" in problems


def resealed(
    context: Context,
    found: CheckedBundle,
    files: Mapping[str, bytes] | None = None,
    **told: Any,
) -> CheckedBundle:
    """The bundle with other files, or other words, signed anew by the right key."""
    kept = {
        name: content
        for name, content in found.files.items()
        if "/" in name  # the others are made anew
    }
    made = sealed_bundle(
        {**found.manifest, **told},
        {**kept, **(files or {})},
        found.files["README.txt"].decode(),
        own_key(context.settings),
    )
    return checked(context, made)


def test_what_was_forged_with_the_right_key_does_not_match_again(indexed: Context, bundle: bytes):
    found = checked(indexed, bundle)
    folder = "hits/0001/"
    raw = rematch_hits(found.files, found.manifest)[0].stored
    assert raw is not None
    others = npy(np.roll(raw.patches_cd, 5, axis=0))
    moved = resealed(indexed, found, {f"{folder}stored-patches.npy": others})
    (problem,) = check_matches(moved, None).problems
    assert problem == "hit 1: matching again does not give what the manifest says"
    hits = json.loads(json.dumps(found.manifest["hits"]))
    hits[0]["rematch"]["score"] += 1e-15
    assert check_matches(resealed(indexed, found, hits=hits), None).problems == (problem,)
    senseless: list[dict[str, Any]] = [
        {"hits": [{}]},
        {"search": {"terms": {}}},
        {"index": {"codec": "int3"}},
    ]
    for wrong in senseless:
        with pytest.raises(EvidenceInvalid):
            check_matches(resealed(indexed, found, **wrong), None)
    audit = json.loads(json.dumps(found.manifest["audit"]))
    audit[0]["actor"] = "key 7"
    (problem,) = resealed(indexed, found, audit=audit).problems
    assert problem.startswith("audit entry")


def test_live_cameras_and_privacy_masks_are_told(indexed: Context):
    """Of a live camera there is no file to have a hash; what is black is said to be."""
    query_id = searched(indexed)
    segment = "(select segment_id from frames join search_hits h on h.frame_id = frames.id"
    segment += " where query_id = %s and rank = 1)"
    path = sql(indexed, f"select source_path from video_segments where id = {segment}", query_id)
    areas = json.dumps([{"box": [0, 0, 0.2, 0.2]}])
    mask = "insert into privacy_masks (camera_id, areas) values (1, %s) returning id"
    (mask_id,) = sql(indexed, mask, areas)[0]
    hit_frame = "(select frame_id from search_hits where query_id = %s and rank = 1)"
    sql(indexed, f"update frames set mask_id = %s where id = {hit_frame}", mask_id, query_id)
    live = f"update video_segments set source_path = %s where id = {segment}"
    sql(indexed, live, "feed:call", query_id)
    try:
        (hit,) = checked(indexed, exported(indexed, query_id, 1)).manifest["hits"]
    finally:
        sql(indexed, live, path[0][0], query_id)
        sql(indexed, f"update frames set mask_id = null where id = {hit_frame}", query_id)
    frame = hit["frame"]
    assert (frame["segment"]["live"], frame["segment"]["content_sha256"]) == (True, None)
    assert frame["privacy_mask"] == {"mask_id": mask_id, "areas": json.loads(areas)}


def test_a_disk_that_takes_nothing_costs_the_match_and_not_the_answer(
    indexed: Context, tmp_path: Path
):
    (tmp_path / "file").write_text("no folder")
    broken = replace(indexed, uploads=UploadStore(tmp_path / "file" / "uploads"))
    query_id = searched(broken)
    (hit,) = checked(indexed, exported(indexed, query_id, 1)).manifest["hits"]
    assert hit["why_no_rematch"] == NOT_KEPT


def test_a_bundle_is_not_checked_with_another_backbone(indexed: Context, bundle: bytes):
    found = checked(indexed, bundle)
    with pytest.raises(BackboneMismatch):
        check_matches(found, lambda _name: indexed.backbone("tiny-a"))


def test_another_key_is_told_apart(indexed: Context, bundle: bytes, tmp_path: Path):
    assert check_bundle(bundle, None).signer == "not checked"
    assert check_bundle(bundle, "0" * 64).signer == "other"
    found = checked(indexed, bundle)
    other = signing_key(tmp_path / "key", make=True)
    kept = {name: content for name, content in found.files.items() if "/" in name}
    forged = check_bundle(sealed_bundle(found.manifest, kept, "", other), own_mark(indexed))
    assert (forged.problems, forged.signer) == ((), "other")
    swapped = dict(found.files) | {"public_key.pem": other.public_pem}
    told = check_bundle(write_archive(swapped), own_mark(indexed))
    assert told.signer == "other"
    assert any("signature does not fit" in problem for problem in told.problems)


def test_every_changed_byte_is_found_and_named(bundle: bytes):
    """Each byte of signature, key, headers and directory; of the rest one now and then."""
    files, _ = read_archive(bundle)
    large = set()
    for content in files.values():
        if len(content) > 400:
            start = bundle.index(content)
            large |= set(range(start + 9, start + len(content) - 9))
    tried = 0
    for at in range(len(bundle)):
        if at in large and at % 997:
            continue
        damaged = bytearray(bundle)
        damaged[at] ^= 1 << at % 8
        tried += 1
        try:
            found = check_bundle(bytes(damaged), None)
        except EvidenceInvalid as error:
            assert "byte" in str(error)
            continue
        assert found.problems, at
        assert any(name in " ".join(found.problems) for name in [*files, "archive:"])
    assert tried > 3000


def test_files_that_are_missing_or_too_many_are_named(bundle: bytes):
    files, _ = read_archive(bundle)
    gone = {name: content for name, content in files.items() if name != "hits/0002/picture.jpg"}
    assert check_bundle(write_archive(gone), None).problems == ("hits/0002/picture.jpg is missing",)
    more = write_archive({**files, "note.txt": b"trust me"})
    assert check_bundle(more, None).problems == ("note.txt is not in the manifest",)
    for name in ("manifest.json", "manifest.sig", "public_key.pem"):
        without = {one: content for one, content in files.items() if one != name}
        assert f"{name} is missing" in check_bundle(write_archive(without), None).problems
    for wrong in (b"", b"[]", b"{", b"[" * 100_000, manifest_bytes({"format": "x", "files": {}})):
        assert check_bundle(write_archive({**files, "manifest.json": wrong}), None).problems


def test_a_query_of_an_older_version_is_exported_without_the_match(indexed: Context):
    query_id = searched(indexed)
    sql(indexed, "update search_queries set terms_sha256 = null where id = %s", query_id)
    found = checked(indexed, exported(indexed, query_id, 1))
    assert found.problems == ()
    (hit,) = found.manifest["hits"]
    assert (hit["rematch"], hit["why_no_rematch"]) == (None, NOT_KEPT)
    assert f"cannot be made again: {NOT_KEPT}" in " ".join(
        found.files["README.txt"].decode().split()
    )
    (said,) = check_matches(found, indexed.backbone).hits
    assert (said.remade, said.picture, said.detail) == (None, None, NOT_KEPT)


def test_what_cannot_be_exported_is_refused(indexed: Context):
    query_id = searched(indexed, limit=3)
    for ranks, words in (((0,), "from 1"), (range(1, MAX_HITS + 2), "1 to 50"), ((), "1 to 50")):
        with indexed.db.transaction() as session, pytest.raises(InputInvalid, match=words):
            query = search_record.find_query(session, query_id)
            assert query is not None
            order_export(session, COMMAND_LINE, query, list(ranks))
    with pytest.raises(NotFound, match="no hit 40"):
        ordered(indexed, query_id, 1, 40)
    waiting = submit_query(
        indexed, BOW_TIE, search_params_from_json({}), frame_id=sql(indexed, FIRST)[0][0]
    )
    with pytest.raises(InputInvalid, match="is queued: hits can be exported once it is done"):
        ordered(indexed, waiting, 1)
    run_jobs(indexed)


FIRST = "select min(id) from frames"


def test_old_bundles_are_forgotten(indexed: Context):
    query_id = searched(indexed)
    accepted = ordered(indexed, query_id, 1)
    with indexed.db.transaction() as session, pytest.raises(InputInvalid, match="is queued"):
        bundle_of(indexed, session, COMMAND_LINE, query_id, accepted.evidence_id)
    run_jobs(indexed)
    age = f"update evidence_exports set created_at = now() - interval '{KEPT_S + 60} s'"
    sql(indexed, f"{age} where id = %s", accepted.evidence_id)
    assert drop_old(indexed) == 1
    with indexed.db.transaction() as session, pytest.raises(NotFound, match="export it again"):
        bundle_of(indexed, session, COMMAND_LINE, query_id, accepted.evidence_id)


def test_the_newest_bundles_of_a_key_are_kept(indexed: Context):
    query_id = searched(indexed)
    made = [ordered(indexed, query_id, 1) for _ in range(3)]
    run_jobs(indexed)
    open_one = ordered(indexed, query_id, 1)
    with indexed.db.transaction() as session:
        given_up = evidence_record.remove_beyond(session, None, 1)
        kept = [
            one.evidence_id
            for one in (*made, open_one)
            if evidence_record.find(session, query_id, one.evidence_id)
        ]
    assert kept == [made[2].evidence_id, open_one.evidence_id]
    assert len(given_up) >= 2
    run_jobs(indexed)


def test_descriptors_that_are_gone_or_stored_anew(indexed: Context):
    """A frame that is no longer in the index it was found in has its pictures, and the reason."""
    query_id = searched(indexed)
    (frame_id,) = sql(
        indexed, "select frame_id from search_hits where query_id = %s and rank = 1", query_id
    )[0]
    where = "where shard_id = %s and start_row = %s"
    run = sql(indexed, "select shard_id, start_row from f_map_runs where frame_id = %s", frame_id)[
        0
    ]
    spare = sql(indexed, FIRST)[0][0]
    sql(indexed, f"update f_map_runs set view = 1, frame_id = %s {where}", spare, *run)
    try:
        (hit,) = checked(indexed, exported(indexed, query_id, 1)).manifest["hits"]
    finally:
        sql(indexed, f"update f_map_runs set view = 0, frame_id = %s {where}", frame_id, *run)
    assert (hit["rematch"], hit["why_no_rematch"]) == (None, NO_ROWS)


def test_what_is_erased_leaves_bundles_and_what_searches_learnt(
    services: Services, template_database: str, tmp_path: Path, footage: dict[str, Path]
):
    """Frames of hits, and frames that only lent their descriptors."""
    changes = {"backbone": "tiny-a", "codec": "fp32"}
    with fresh_context(services.database_url, template_database, tmp_path, **changes) as context:
        ingested(context, footage["car"], "call", 0.35, start_utc=CALL)
        ingested(context, footage["bikes"], "street", 2.0, start_utc=CALL + timedelta(hours=2))
        street = sql(context, "select id from frames order by t_utc desc limit 1")[0][0]
        less = [{"frame_id": street, "box": [0.2, 0.2, 0.8, 0.8]}]
        marked = searched(context, less=less, camera_ids=[1])
        plain = searched(context, camera_ids=[1])
        accepted = [ordered(context, query_id, 1) for query_id in (marked, plain)]
        run_jobs(context)
        late = ordered(context, marked, 1)
        span, _ = camera_span(context, "street", None, None)
        erasure = submit_erasure(context, span)
        run_job(context, erasure, HANDLERS)  # before the last export is made
        run_jobs(context)
        left = {row[0] for row in sql(context, "select id from evidence_exports")}
        assert left == {accepted[1].evidence_id}
        known = dict(sql(context, "select id, terms_sha256 is not null from search_queries"))
        assert known == {marked: False, plain: True}
        failed = job(context, late.job_id)
        assert (failed.state, failed.error_code) == ("failed", "not_found")
        kept = {path.name for path in (tmp_path / "uploads").iterdir()}
        named = "select terms_sha256 from search_queries union select content_sha256 from"
        assert kept == {row[0] for row in sql(context, f"{named} evidence_exports") if row[0]}
        found = checked(context, exported(context, marked, 1))
        assert found.manifest["hits"][0]["why_no_rematch"] == NOT_KEPT


def test_descriptors_stored_anew_by_sealing_are_told(
    services: Services,
    template_database: str,
    tmp_path: Path,
    footage: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
):
    """Sealing stores a cell like the one before it once: the search before it read others."""
    monkeypatch.setattr(sealing, "MIN_FRAMES", 4)
    monkeypatch.setattr(sealing, "seal_distance", lambda _name: 0.2)
    changes = {"backbone": "tiny-a", "codec": "fp32", "seal_after_s": 0.0}
    with fresh_context(services.database_url, template_database, tmp_path, **changes) as context:
        ingested(context, footage["car"], "call", 0.35, start_utc=CALL)
        before = searched(context)
        assert sealing.submit_due(context) is not None
        run_jobs(context)
        found = checked(context, exported(context, before))
        report = check_matches(found, context.backbone)
        assert report.problems == ()
        assert all(hit.remade for hit in report.hits)
        assert not all(hit.is_record for hit in report.hits)
        text = " ".join(found.files["README.txt"].decode().split())
        assert "made again the match is not the recorded one" in text
        report = check_matches(checked(context, exported(context, searched(context))), None)
        assert all(hit.remade and hit.is_record for hit in report.hits)


def test_an_index_made_from_pictures_is_made_again_from_pictures(
    services: Services, template_database: str, tmp_path: Path, footage: dict[str, Path]
):
    """Repaired frames were embedded from their kept pictures: these alone give the record."""
    changes = {"backbone": "tiny-a", "codec": "fp32"}
    with fresh_context(services.database_url, template_database, tmp_path, **changes) as context:
        ingested(context, footage["car"], "call", 0.35, start_utc=CALL)
        for path in (tmp_path / "index").rglob("patch.vec"):
            with path.open("r+b") as file:
                file.seek(4096)
                file.write(bytes(len(path.read_bytes()) - 4096))
        assert repair_index(context.with_own_caches()).repaired
        found = checked(context, exported(context, searched(context)))
        report = check_matches(found, context.backbone)
        assert report.problems == ()
        for hit in report.hits:
            assert hit.picture is not None
            assert hit.picture.lowest_cosine == pytest.approx(1, abs=1e-6)
            assert hit.picture.shared_cells == 1
            assert hit.picture.score_difference == pytest.approx(0, abs=1e-5)


def test_the_record_is_not_read_back_by_accident(indexed: Context):
    """Lists of hits do not carry what is kept for evidence."""
    query_id = searched(indexed)
    with indexed.db.transaction() as session:
        hit = search_record.list_hits(session, query_id)[0]
        assert "terms" not in hit.__dict__
        assert evidence_record.hit_terms(session, query_id, [1]).keys() == {1}
