"""Every table, imported once, so that ``Base.metadata`` is complete."""

from models.access import ApiKey, AuditEntry, RequestKey
from models.arrivals import MessageCount
from models.base import Base
from models.erasure import Erasure
from models.events import Delivery, Event, Webhook
from models.feed import Feed, FeedDrop, FeedGap, FeedStatus
from models.index import CanaryCheck, CompactBasis, FMapRun, IndexGeneration, Shard
from models.jobs import Job
from models.search import ChangeQuery, EvidenceExport, SearchHit, SearchQuery
from models.standing import Alert, NewFrames, StandingQuery
from models.video import Camera, Frame, VideoSegment
from models.watch import WatchedFile, WatchedFolder

metadata = Base.metadata

__all__ = [
    "Alert",
    "ApiKey",
    "AuditEntry",
    "Camera",
    "CanaryCheck",
    "ChangeQuery",
    "CompactBasis",
    "Delivery",
    "Erasure",
    "Event",
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
    "NewFrames",
    "RequestKey",
    "SearchHit",
    "SearchQuery",
    "Shard",
    "StandingQuery",
    "VideoSegment",
    "WatchedFile",
    "WatchedFolder",
    "Webhook",
    "metadata",
]
