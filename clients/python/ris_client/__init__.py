"""Client of the API of RIS, Region-to-Image Search: synchronous, typed, standard library only."""

from ris_client.client import RisClient
from ris_client.values import (
    Answer,
    Camera,
    Feed,
    Frame,
    Gap,
    Hit,
    Query,
    RisApiError,
    Segment,
)

__all__ = [
    "Answer",
    "Camera",
    "Feed",
    "Frame",
    "Gap",
    "Hit",
    "Query",
    "RisApiError",
    "RisClient",
    "Segment",
]
