"""first schema

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cameras",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("length(name) between 1 and 200", name=op.f("ck_cameras_name_length")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cameras")),
        sa.UniqueConstraint("name", name=op.f("uq_cameras_name")),
    )
    op.create_table(
        "index_generations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("backbone", sa.Text(), nullable=False),
        sa.Column("spec_hash", sa.Text(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("codec", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("switched_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state in ('building', 'live', 'retired', 'failed')",
            name=op.f("ck_index_generations_state_known"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_index_generations")),
    )
    op.create_index(
        "uq_index_generations_live",
        "index_generations",
        ["state"],
        unique=True,
        postgresql_where="state = 'live'",
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_token", sa.Uuid(), nullable=True),
        sa.Column("lease_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column(
            "run_after",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("rung_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column(
            "progress", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column("retry_code", sa.Text(), nullable=True),
        sa.Column("retry_detail", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'failed') = (error_code is not null)", name=op.f("ck_jobs_error_failed")
        ),
        sa.CheckConstraint(
            "(state = 'running') = (lease_token is not null)", name=op.f("ck_jobs_lease_running")
        ),
        sa.CheckConstraint(
            "kind in ('ingest', 'query', 'reindex')", name=op.f("ck_jobs_kind_known")
        ),
        sa.CheckConstraint(
            "state in ('queued', 'running', 'done', 'failed')", name=op.f("ck_jobs_state_known")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["run_after"],
        unique=False,
        postgresql_where="state in ('queued', 'running')",
    )
    op.create_table(
        "shards",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("generation_id", sa.BigInteger(), nullable=False),
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("bucket_utc", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("frame_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("row_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "state in ('open', 'sealed', 'retired')", name=op.f("ck_shards_state_known")
        ),
        sa.CheckConstraint(
            "frame_count >= 0 and row_count >= 0", name=op.f("ck_shards_counts_not_negative")
        ),
        sa.ForeignKeyConstraint(
            ["camera_id"], ["cameras.id"], name=op.f("fk_shards_camera_id_cameras")
        ),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["index_generations.id"],
            name=op.f("fk_shards_generation_id_index_generations"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shards")),
        sa.UniqueConstraint(
            "generation_id",
            "camera_id",
            "bucket_utc",
            name=op.f("uq_shards_generation_id_camera_id_bucket_utc"),
        ),
    )
    op.create_table(
        "video_segments",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("source_path", sa.Text(), nullable=False),
        sa.Column("content_sha256", sa.Text(), nullable=False),
        sa.Column("start_utc", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("start_source", sa.Text(), nullable=False),
        sa.Column("policy", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("policy_key", sa.Text(), nullable=False),
        sa.Column("container", sa.Text(), nullable=True),
        sa.Column("codec", sa.Text(), nullable=True),
        sa.Column("h_px", sa.BigInteger(), nullable=True),
        sa.Column("w_px", sa.BigInteger(), nullable=True),
        sa.Column("duration_s", sa.Double(), nullable=True),
        sa.Column("frames_expected", sa.BigInteger(), nullable=True),
        sa.Column("frames_decoded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("decode_errors", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("frame_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("resume_pts", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "outcome in ('complete', 'partial', 'failed')",
            name=op.f("ck_video_segments_outcome_known"),
        ),
        sa.CheckConstraint(
            "length(content_sha256) = 64", name=op.f("ck_video_segments_content_sha256_hex")
        ),
        sa.ForeignKeyConstraint(
            ["camera_id"], ["cameras.id"], name=op.f("fk_video_segments_camera_id_cameras")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_video_segments_job_id_jobs")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_video_segments")),
        sa.UniqueConstraint(
            "camera_id",
            "content_sha256",
            "start_utc",
            "policy_key",
            name=op.f("uq_video_segments_camera_id_content_sha256_start_utc_policy_key"),
        ),
    )
    op.create_table(
        "frames",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("segment_id", sa.BigInteger(), nullable=False),
        sa.Column("camera_id", sa.BigInteger(), nullable=False),
        sa.Column("t_utc", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("pts", sa.BigInteger(), nullable=False),
        sa.Column("h_px", sa.BigInteger(), nullable=False),
        sa.Column("w_px", sa.BigInteger(), nullable=False),
        sa.Column("picture_sha256", sa.Text(), nullable=False),
        sa.CheckConstraint("h_px > 0 and w_px > 0", name=op.f("ck_frames_size_positive")),
        sa.CheckConstraint(
            "length(picture_sha256) = 64", name=op.f("ck_frames_picture_sha256_hex")
        ),
        sa.ForeignKeyConstraint(
            ["camera_id"], ["cameras.id"], name=op.f("fk_frames_camera_id_cameras")
        ),
        sa.ForeignKeyConstraint(
            ["segment_id"], ["video_segments.id"], name=op.f("fk_frames_segment_id_video_segments")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_frames")),
        sa.UniqueConstraint("segment_id", "pts", name=op.f("uq_frames_segment_id_pts")),
    )
    op.create_index(
        op.f("ix_frames_camera_id_t_utc"), "frames", ["camera_id", "t_utc"], unique=False
    )
    op.create_table(
        "f_map_runs",
        sa.Column("shard_id", sa.BigInteger(), nullable=False),
        sa.Column("start_row", sa.BigInteger(), nullable=False),
        sa.Column("row_count", sa.BigInteger(), nullable=False),
        sa.Column("frame_id", sa.BigInteger(), nullable=False),
        sa.Column("view", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("crc32", sa.BigInteger(), nullable=False),
        postgresql.ExcludeConstraint(
            (sa.text("int8range(shard_id, shard_id, '[]')"), "&&"),
            (sa.text("int8range(start_row, start_row + row_count)"), "&&"),
            using="gist",
            name="ex_f_map_runs_no_overlap",
        ),
        sa.CheckConstraint(
            "start_row >= 0 and row_count > 0", name=op.f("ck_f_map_runs_rows_valid")
        ),
        sa.ForeignKeyConstraint(
            ["frame_id"], ["frames.id"], name=op.f("fk_f_map_runs_frame_id_frames")
        ),
        sa.ForeignKeyConstraint(
            ["shard_id"], ["shards.id"], name=op.f("fk_f_map_runs_shard_id_shards")
        ),
        sa.PrimaryKeyConstraint("shard_id", "start_row", name=op.f("pk_f_map_runs")),
        sa.UniqueConstraint(
            "shard_id", "frame_id", "view", name=op.f("uq_f_map_runs_shard_id_frame_id_view")
        ),
    )
    op.create_index(op.f("ix_f_map_runs_frame_id"), "f_map_runs", ["frame_id"], unique=False)
    op.create_table(
        "search_queries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("frame_id", sa.BigInteger(), nullable=True),
        sa.Column("picture_sha256", sa.Text(), nullable=True),
        sa.Column("roi", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("params", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("generation_id", sa.BigInteger(), nullable=True),
        sa.Column("stats", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "num_nonnulls(frame_id, picture_sha256) = 1", name=op.f("ck_search_queries_one_source")
        ),
        sa.ForeignKeyConstraint(
            ["frame_id"], ["frames.id"], name=op.f("fk_search_queries_frame_id_frames")
        ),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["index_generations.id"],
            name=op.f("fk_search_queries_generation_id_index_generations"),
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_search_queries_job_id_jobs")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_search_queries")),
        sa.UniqueConstraint("job_id", name=op.f("uq_search_queries_job_id")),
    )
    op.create_table(
        "search_hits",
        sa.Column("query_id", sa.Uuid(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("frame_id", sa.BigInteger(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("similarity", sa.Double(), nullable=False),
        sa.Column("coverage", sa.Double(), nullable=False),
        sa.Column("grid_h", sa.SmallInteger(), nullable=False),
        sa.Column("grid_w", sa.SmallInteger(), nullable=False),
        sa.Column("region_query_index", postgresql.ARRAY(sa.SmallInteger()), nullable=False),
        sa.Column("region_cell_index", postgresql.ARRAY(sa.SmallInteger()), nullable=False),
        sa.CheckConstraint("rank >= 1", name=op.f("ck_search_hits_rank_from_one")),
        sa.ForeignKeyConstraint(
            ["frame_id"], ["frames.id"], name=op.f("fk_search_hits_frame_id_frames")
        ),
        sa.ForeignKeyConstraint(
            ["query_id"], ["search_queries.id"], name=op.f("fk_search_hits_query_id_search_queries")
        ),
        sa.PrimaryKeyConstraint("query_id", "rank", name=op.f("pk_search_hits")),
    )
    op.create_index(op.f("ix_search_hits_frame_id"), "search_hits", ["frame_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_search_hits_frame_id"), table_name="search_hits")
    op.drop_table("search_hits")
    op.drop_table("search_queries")
    op.drop_index(op.f("ix_f_map_runs_frame_id"), table_name="f_map_runs")
    op.drop_table("f_map_runs")
    op.drop_index(op.f("ix_frames_camera_id_t_utc"), table_name="frames")
    op.drop_table("frames")
    op.drop_table("video_segments")
    op.drop_table("shards")
    op.drop_index(
        "ix_jobs_open", table_name="jobs", postgresql_where="state in ('queued', 'running')"
    )
    op.drop_table("jobs")
    op.drop_index(
        "uq_index_generations_live",
        table_name="index_generations",
        postgresql_where="state = 'live'",
    )
    op.drop_table("index_generations")
    op.drop_table("cameras")
