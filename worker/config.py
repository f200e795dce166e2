"""Settings of a RIS process, read from ``RIS_*`` environment variables only.

Every field is documented in docs/settings.md; a test fails when one is missing there.
"""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from worker.oidc_settings import OidcSettings


def split_keys(text: str) -> list[str]:
    """Keys of 32 bytes in base64, between commas or white space.

    Raises ``ValueError`` without showing any.
    """
    keys = [key for key in re.split(r"[,\s]+", text) if key]
    for key in keys:
        try:
            length = len(base64.urlsafe_b64decode(key))
        except ValueError:
            length = 0
        if length != 32:
            raise ValueError("each key must be 32 bytes in base64 (`openssl rand -base64 32`)")
    if not keys:
        raise ValueError("there is no key in it")
    return keys


class Settings(OidcSettings):
    """Process settings. Units are in the names; defaults suit one small box."""

    model_config = SettingsConfigDict(
        env_prefix="RIS_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
    )

    database_url: str | None = Field(
        None, description="Postgres URL; unset: the embedded Postgres of `ris up`."
    )
    broker_url: str | None = Field(
        None, description="Redis URL; unset: the embedded Redis of `ris up`."
    )
    secret_key: SecretStr | None = Field(
        None,
        description="Keys that cameras' passwords are encrypted with in Postgres, the newest first,"
        " separated by commas; unset: secret.key in the data folder, which `ris up` makes.",
    )
    data_dir: Path = Field(
        Path("var"), description="Folder of vector files, kept pictures and embedded services."
    )
    backbone: str = Field(
        "efficientnet-lite0", description="Backbone of the first index generation."
    )
    backbones_dir: Path | None = Field(
        None, description="Folder with one sub-folder of transformers weights per backbone."
    )
    device: str = Field(
        "cpu",
        description="torch device: cpu, cuda, cuda:1; auto: cuda where one works, else cpu.",
    )
    device_share: float = Field(
        0.2, gt=0, le=1, description="Share of a GPU's memory that one process may take."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Floating point type of the backbone's forward pass."
    )
    threads: int = Field(
        0, ge=0, le=256, description="Threads per process for torch and FAISS; 0: all cores."
    )
    embed_batch: int = Field(8, ge=1, le=512, description="Frames per backbone call.")
    embed_wait_s: float = Field(
        0.005,
        ge=0,
        le=1,
        description="How long a frame waits on a GPU's worker for others to be embedded with.",
    )
    compile: bool = Field(
        False, description="Whether vision transformers are compiled for a GPU (a minute at start)."
    )
    commit_batch: int = Field(32, ge=1, le=4096, description="Frames per append and commit.")
    codec: Literal["fp32", "fp16", "int8"] = Field(
        "int8", description="Number type of stored descriptors."
    )
    shard_span_s: int = Field(
        3600, ge=60, le=86400 * 31, description="Time span of one shard, in seconds."
    )
    picture_quality: int = Field(90, ge=30, le=100, description="JPEG quality of kept pictures.")
    picture_max_side_px: int = Field(
        1920, ge=64, le=16384, description="Longest side of kept pictures."
    )
    query_picture_max_px: int = Field(
        50_000_000, ge=10_000, description="Largest accepted query picture, in pixels."
    )
    video_max_px: int = Field(
        8192 * 4320, ge=10_000, description="Largest accepted video picture, in pixels."
    )
    decode_deadline_s: float = Field(
        60.0,
        ge=0.5,
        le=3600,
        description="A file's decoder that shows no progress for this long is ended.",
    )
    min_free_bytes: int = Field(
        256 * 1024 * 1024, ge=0, description="Ingest refuses to write below this free space."
    )
    job_lease_s: float = Field(30.0, gt=0.2, le=3600, description="Lease of a running job.")
    job_slice_s: float = Field(
        45.0, gt=0.1, le=600, description="An ingest or reindex task yields after this long."
    )
    job_max_attempts: int = Field(
        5, ge=1, le=100, description="Attempts in a row without progress before a job fails."
    )
    job_retry_base_s: float = Field(
        2.0, ge=0.01, le=600, description="First retry delay; doubles with each attempt."
    )
    sweep_every_s: float = Field(
        10.0, ge=0.2, le=600, description="How often beat looks for jobs nobody runs."
    )
    retention_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Footage older than this is erased, of cameras without an own rule; 0: never.",
    )
    retain_every_s: float = Field(
        900.0, ge=0.2, le=86_400, description="How often beat looks for footage to erase."
    )
    query_keep_days: float = Field(
        0.0,
        ge=0,
        le=36_500,
        description="Queries stay so long after their end, with hits, exports and uploads; 0: as"
        " long as the footage they were asked on.",
    )
    job_keep_days: float = Field(
        90.0,
        ge=0,
        le=36_500,
        description="Ended jobs that no footage, query or feed names stay this long; 0: for ever.",
    )
    canary_every_s: float = Field(
        3600.0,
        ge=0,
        le=86_400,
        description="How often stored frames must find themselves; 0: never.",
    )
    feed_slots: int = Field(
        64, ge=0, le=1000, description="Cameras one feed worker serves; 0: `ris up` starts none."
    )
    feed_schemes: str = Field(
        "rtsp,rtsps,http,https", description="URL schemes a feed may have, separated by commas."
    )
    feed_hosts: str | None = Field(
        None,
        description="Hosts a feed may have: names, *.suffixes, networks, separated by commas."
        " Unset: all but this machine's and link-local addresses.",
    )
    feed_files_dir: Path | None = Field(
        None, description="Folder below which `file:` feeds lie; unset: there are none."
    )
    feed_stall_s: float = Field(
        8.0, ge=0.5, le=600, description="A feed that sends no picture for this long has stalled."
    )
    feed_retry_max_s: float = Field(
        2.0, ge=0.1, le=3600, description="Longest wait between two attempts to reach a camera."
    )
    feed_status_every_s: float = Field(
        5.0, ge=0.1, le=600, description="How often a feed's status is written, and read anew."
    )
    feed_queue_frames: int = Field(
        8,
        ge=1,
        le=1000,
        description="Frames of one feed that wait at most; older ones are dropped.",
    )
    feed_clock_tolerance_s: float = Field(
        10.0, ge=0, le=86_400, description="A camera's clock that is further off is not believed."
    )
    watch_slots: int = Field(
        4, ge=0, le=64, description="Threads of the watch worker; 0: `ris up` starts none."
    )
    standing_every_s: float = Field(
        2.0, ge=0.2, le=600, description="How often beat looks for frames to watch."
    )
    standing_queries: int = Field(
        50, ge=0, le=10_000, description="Standing queries of one API key that have not ended."
    )
    standing_keep_days: float = Field(
        30.0, ge=0, le=36_500, description="Ended standing queries and their alerts stay this long."
    )
    deliver_every_s: float = Field(
        2.0, ge=0.2, le=600, description="How often beat looks for events to deliver."
    )
    webhook_hosts: str | None = Field(
        None,
        description="Hosts a webhook may have: names, *.suffixes, networks, separated by commas."
        " Unset: those with an address that the whole internet has.",
    )
    webhook_timeout_s: float = Field(
        10.0, ge=0.1, le=120, description="A receiver has answered an event after this long."
    )
    webhook_retry_base_s: float = Field(
        5.0, ge=0.01, le=600, description="First retry delay of an event; doubles each time."
    )
    webhook_attempts: int = Field(
        16, ge=1, le=100, description="Tries of an event before it is given up."
    )
    event_days: float = Field(
        7.0, ge=0, le=3650, description="Delivered and given up events are kept this long."
    )
    query_workers: int = Field(2, ge=1, le=64, description="Threads of one query worker.")
    scan_groups: int = Field(
        0,
        ge=0,
        le=256,
        description="Groups of shards a large search is spread over for scan workers; 0: none.",
    )
    scan_workers: int = Field(
        0, ge=0, le=64, description="Scan workers that `ris up` starts; each takes every group."
    )
    scan_wait_s: float = Field(
        10.0,
        ge=0.05,
        le=60,
        description="What no scan worker has answered after this long, the query worker scans.",
    )
    scan_min_frames: int = Field(
        50_000, ge=1, description="A search of fewer frames is not spread over scan workers."
    )
    shadow_queries: int = Field(
        20,
        ge=0,
        le=1000,
        description="Recent queries a reindex asks of both generations; 0: it compares nothing.",
    )
    compact_max_bytes: int = Field(
        512 * 1024 * 1024,
        ge=0,
        description="Memory of a query worker for codes that are in no file, 16 kB a frame.",
    )
    compact_every_s: float = Field(
        30.0, ge=0.2, le=86_400, description="How often beat looks for frames without codes."
    )
    seal_after_s: float = Field(
        3600.0,
        ge=0,
        description="A shard that nothing was added to for this long is sealed: what its camera"
        " goes on showing is stored once.",
    )
    seal_every_s: float = Field(
        60.0, ge=0.2, le=86_400, description="How often beat looks for shards to seal."
    )
    s3_url: str | None = Field(
        None,
        pattern=r"^s3://[A-Za-z0-9][A-Za-z0-9.-]+(/[^/?#]+)*/?$",
        description="Bucket and prefix that sealed shards are moved to; unset: none are.",
    )
    s3_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^@]+$",
        description="Address of an S3-compatible server; unset: Amazon's.",
    )
    s3_region: str | None = Field(None, description="Region of the bucket; unset: AWS_REGION.")
    s3_after_s: float = Field(
        7 * 86_400.0,
        ge=0,
        description="Sealed shards that nothing was added to for this long go to RIS_S3_URL.",
    )
    s3_every_s: float = Field(
        300.0, ge=0.2, le=86_400, description="How often beat looks for shards to move."
    )
    s3_cache_bytes: int = Field(
        2 * 1024**3, ge=0, description="Disk space for what was read from object storage last."
    )
    evidence_key_file: Path | None = Field(
        None,
        description="Private key (PEM) that evidence is signed with; unset: `evidence.key` in the"
        " data folder, made when it is first needed.",
    )
    footage_dir: Path | None = Field(
        None,
        description="Folder that the API takes recordings from, by path; unset: it takes none.",
    )
    fetch_hosts: str | None = Field(
        None,
        description="Hosts that recordings are fetched from: names, *.suffixes, networks, separated"
        " by commas; unset: none are.",
    )
    fetch_max_bytes: int = Field(
        4 * 1024**3, ge=1024, description="Largest recording that is fetched."
    )
    fetch_timeout_s: float = Field(
        600.0, ge=0.5, le=86_400, description="A recording is fetched within this long."
    )
    watch_every_s: float = Field(
        10.0, ge=0.05, le=86_400, description="How often a watched folder is looked at, at most."
    )
    watch_settle_s: float = Field(
        10.0,
        ge=0,
        le=86_400,
        description="A file in a watched folder that has not changed for this long is finished.",
    )
    mqtt_url: SecretStr | None = Field(
        None,
        description="Broker that tells of recordings: mqtt://user:password@host:1883 or mqtts:;"
        " unset: none is listened to.",
    )
    mqtt_topics: str = Field(
        "frigate/reviews,ris/recordings", description="Topics, separated by commas."
    )
    mqtt_client_id: str = Field(
        "ris", min_length=1, max_length=23, description="Name of this RIS at the broker."
    )
    mqtt_out_prefix: str = Field(
        "ris/events/",
        min_length=2,
        max_length=200,
        pattern=r"^[^+#\s]+/$",
        description="Webhooks may tell topics of the broker that begin with this.",
    )
    mqtt_ca_file: Path | None = Field(
        None, description="Certificates that the broker is trusted by; unset: the system's."
    )
    frigate_url: SecretStr | None = Field(
        None, description="Where Frigate's API is, which clips are fetched from."
    )
    frigate_settle_s: float = Field(
        30.0, ge=0, le=3600, description="A clip is fetched so long after Frigate tells of its end."
    )
    keep_recordings: bool = Field(
        False, description="Recordings that were sent or fetched stay after their ingest."
    )
    api_host: str = Field("127.0.0.1", description="Address that the API listens on.")
    api_port: int = Field(
        8480, ge=0, le=65_535, description="Port that the API listens on; 0: any free one."
    )
    api_max_body_bytes: int = Field(
        32 * 1024 * 1024, ge=1024, description="Largest body of a request to the API."
    )
    api_body_timeout_s: float = Field(
        30.0, gt=0.05, le=3600, description="A request's body has arrived after this long."
    )
    api_max_recording_bytes: int = Field(
        4 * 1024**3, ge=1024, description="Largest recording that is sent to the API."
    )
    api_recording_timeout_s: float = Field(
        3600.0, gt=0.05, le=86_400, description="A recording that is sent has arrived after this."
    )
    api_open_uploads: int = Field(
        16, ge=1, le=10_000, description="Recordings that one API key sends at once."
    )
    api_requests_per_s: float = Field(
        100.0, gt=0, le=100_000, description="Requests a second of one API key, on average."
    )
    early_over_frames: int = Field(
        100_000,
        ge=0,
        description="A query of more frames than this tells hits of the nearest footage first.",
    )
    api_open_queries: int = Field(
        32, ge=1, le=100_000, description="Queries of one API key that are not answered yet."
    )
    api_events_s: float = Field(
        300.0, gt=0.1, le=86_400, description="A stream of events ends after this long."
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address that the API serves metrics for Prometheus on."
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="Port that the API serves metrics on, 0: any free one; unset: it serves none.",
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^@]+$",
        description="Address of an OpenTelemetry collector (OTLP over HTTP) that traces are sent"
        " to; unset: as OTEL_EXPORTER_OTLP_ENDPOINT says, else nowhere.",
    )
    statement_timeout_ms: int = Field(60_000, ge=100, description="Postgres statement timeout.")
    lock_timeout_ms: int = Field(10_000, ge=100, description="Postgres lock timeout.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe level that is logged."
    )

    @field_validator("secret_key")
    @classmethod
    def _check_keys(cls, given: SecretStr | None) -> SecretStr | None:
        if given is not None:
            split_keys(given.get_secret_value())
        return given


@cache
def settings() -> Settings:
    """The process's settings, read once. Tests call ``settings.cache_clear()``."""
    return Settings()
