"""Every table, imported once, so that ``Base.metadata`` is complete."""

from models.base import Base
from models.erasure import Erasure
from models.index import CompactBasis, FMapRun, IndexGeneration, Shard
from models.jobs import Job
from models.search import SearchHit, SearchQuery
from models.video import Camera, Frame, VideoSegment

metadata = Base.metadata

NEWER_SCHEMA_EXIT = 4
"""Exit status of a migration that meets a database which a newer RIS has migrated."""

__all__ = [
    "NEWER_SCHEMA_EXIT",
    "Camera",
    "CompactBasis",
    "Erasure",
    "FMapRun",
    "Frame",
    "IndexGeneration",
    "Job",
    "SearchHit",
    "SearchQuery",
    "Shard",
    "VideoSegment",
    "metadata",
]
