"""Every table, imported once, so that ``Base.metadata`` is complete."""

from models.access import ApiKey, AuditEntry, RequestKey
from models.base import Base
from models.erasure import Erasure
from models.events import Delivery, Event, Webhook
from models.feed import Feed, FeedDrop, FeedGap, FeedStatus
from models.index import CompactBasis, FMapRun, IndexGeneration, Shard
from models.jobs import Job
from models.search import SearchHit, SearchQuery
from models.standing import Alert, NewFrames, StandingQuery
from models.video import Camera, Frame, VideoSegment

metadata = Base.metadata

__all__ = [
    "Alert",
    "ApiKey",
    "AuditEntry",
    "Camera",
    "CompactBasis",
    "Delivery",
    "Erasure",
    "Event",
    "FMapRun",
    "Feed",
    "FeedDrop",
    "FeedGap",
    "FeedStatus",
    "Frame",
    "IndexGeneration",
    "Job",
    "NewFrames",
    "RequestKey",
    "SearchHit",
    "SearchQuery",
    "Shard",
    "StandingQuery",
    "VideoSegment",
    "Webhook",
    "metadata",
]
