"""Every table, imported once, so that ``Base.metadata`` is complete."""

from models.access import ApiKey, AuditEntry, RequestKey
from models.arrivals import MessageCount
from models.base import Base
from models.erasure import Erasure
from models.feed import Feed, FeedDrop, FeedGap, FeedStatus
from models.index import CompactBasis, FMapRun, IndexGeneration, Shard
from models.jobs import Job
from models.search import EvidenceExport, SearchHit, SearchQuery
from models.video import Camera, Frame, VideoSegment
from models.watch import WatchedFile, WatchedFolder

metadata = Base.metadata

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Camera",
    "CompactBasis",
    "Erasure",
    "EvidenceExport",
    "FMapRun",
    "Feed",
    "FeedDrop",
    "FeedGap",
    "FeedStatus",
    "Frame",
    "IndexGeneration",
    "Job",
    "MessageCount",
    "RequestKey",
    "SearchHit",
    "SearchQuery",
    "Shard",
    "VideoSegment",
    "WatchedFile",
    "WatchedFolder",
    "metadata",
]
