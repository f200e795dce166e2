"""Client of the API of RIS, Region-to-Image Search: synchronous, typed, standard library only."""

from ris_client.client import RisClient
from ris_client.values import (
    Alert,
    Answer,
    BoxState,
    Camera,
    Changes,
    Feed,
    Frame,
    Gap,
    Hit,
    Query,
    RisApiError,
    Segment,
    StandingQuery,
    Webhook,
)

__all__ = [
    "Alert",
    "Answer",
    "BoxState",
    "Camera",
    "Changes",
    "Feed",
    "Frame",
    "Gap",
    "Hit",
    "Query",
    "RisApiError",
    "RisClient",
    "Segment",
    "StandingQuery",
    "Webhook",
]
