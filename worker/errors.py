"""Typed errors: every refusal has a stable code, names the offending id and says what to do.

``retryable`` tells the job runner whether another attempt can help (service down, disk full) or
not (bad input). Codes are part of the API; the list is checked against docs/errors.md by a test.
"""

from __future__ import annotations

from collections.abc import Sequence


class RisError(Exception):
    """Base of all typed errors. ``code`` is stable; the message is for people."""

    code = "internal"
    retryable = False
    again = False
    """Whether a few more attempts may help, each of which counts."""


class InputInvalid(RisError):
    """A parameter or request field is outside its documented bounds."""

    code = "input_invalid"


class RoiInvalid(RisError):
    """The ROI is empty, not finite, outside the picture, or a polygon of fewer than 3 points."""

    code = "roi_invalid"


class PictureInvalid(RisError):
    """The query picture cannot be read or is larger than allowed."""

    code = "picture_invalid"


class VideoUnreadable(RisError):
    """The path does not exist, is no regular file, may not be read, or changed meanwhile."""

    code = "video_unreadable"


class VideoInvalid(RisError):
    """The file is empty, not a video, has no video stream, or holds no decodable picture."""

    code = "video_invalid"


class VideoKilledDecoder(RisError):
    """The process that decoded the file was killed by it, ran out of memory, or failed in a way
    that nobody foresaw."""

    code = "video_killed_decoder"


class VideoTooSlow(RisError):
    """Decoding the file gave nothing for longer than ``RIS_DECODE_DEADLINE_S`` allows."""

    code = "video_too_slow"


class NotFound(RisError):
    """An id or name is not known: camera, frame, backbone, query, job, generation."""

    code = "not_found"


class BackboneMismatch(RisError):
    """A backbone's spec differs from the one the index was built with."""

    code = "backbone_mismatch"


class WeightsMissing(RisError):
    """The backbone's weights are not in the package, the local folder or the hub cache."""

    code = "weights_missing"


class DescriptorInvalid(RisError):
    """A backbone produced NaN, infinite or zero-length descriptors."""

    code = "descriptor_invalid"


class DeviceFailed(RisError):
    """The accelerator was lost, or has no memory for a single picture; retried later."""

    code = "device_failed"
    retryable = True


class IndexDamaged(RisError):
    """A shard file is missing, shorter than Postgres says, or fails its checksum."""

    code = "index_damaged"

    def __init__(
        self, message: str, *, folder: str | None = None, blocks: Sequence[int] = ()
    ) -> None:
        """``folder``, ``blocks``: which stored blocks cannot be read, where that is known."""
        super().__init__(message)
        self.folder = folder
        self.blocks = tuple(blocks)


class FormatNewer(RisError):
    """A newer RIS wrote this database, backup or vector file; this one must leave it alone."""

    code = "format_newer"


class BackupInvalid(RisError):
    """A folder is no finished backup, is one of another index, or lacks the bytes it lists."""

    code = "backup_invalid"


class StorageFull(RisError):
    """The disk is full or under the free-space floor. Nothing was half-recorded; retried later."""

    code = "storage_full"
    retryable = True


class StorageFailed(RisError):
    """The storage answered with an I/O error other than 'full'."""

    code = "storage_failed"
    retryable = True


class ServiceUnavailable(RisError):
    """Postgres or Redis cannot be reached or dropped the connection."""

    code = "service_unavailable"
    retryable = True


class ObjectStoreUnavailable(RisError):
    """Object storage that holds part of the index cannot be reached, or refuses."""

    code = "object_store_unavailable"
    retryable = True


class IssuerUnavailable(RisError):
    """The issuer of access tokens does not tell the keys that they are checked by."""

    code = "issuer_unavailable"


class GenerationSwitched(RisError):
    """The live generation was switched, or removed, under a batch or a search; it is redone."""

    code = "generation_switched"
    retryable = True


class ShadowMismatch(RisError):
    """A new generation answers worse than the live one: it is kept, and not switched to."""

    code = "shadow_mismatch"


class ErasedMeanwhile(RisError):
    """Footage was erased while a batch of it was being prepared; the batch is redone without it."""

    code = "erased_meanwhile"
    retryable = True


class MaskChanged(ErasedMeanwhile):
    """The camera's privacy mask was set after a batch was painted; it is painted and made again."""

    code = "mask_changed"


class AddressRefused(RisError):
    """An address has a scheme, host, topic or folder that the settings do not allow."""

    code = "address_refused"


class SecretKeyMissing(RisError):
    """There is no key for a password, or not the one that it was encrypted with."""

    code = "secret_key_missing"


class FeedFailed(RisError):
    """A live camera cannot be read now; ``reason`` says why in one word (docs/operation.md)."""

    code = "feed_failed"
    retryable = True

    def __init__(self, message: str, *, reason: str = "connection_lost") -> None:
        super().__init__(message)
        self.reason = reason


class FetchFailed(RisError):
    """A recording cannot be fetched from its address; a few more attempts are made where they may
    help."""

    code = "fetch_failed"

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


class EvidenceInvalid(RisError):
    """A file is no evidence bundle, or is not as it was exported."""

    code = "evidence_invalid"


class LeaseLost(RisError):
    """Another worker took the job over; this one must stop without recording anything."""

    code = "lease_lost"


class AlreadyRunning(RisError):
    """Another RIS instance holds this folder."""

    code = "already_running"


class SetupFailed(RisError):
    """A bundled service could not be started, or a package that a setting asks for is missing."""

    code = "setup_failed"


class Timeout(RisError):
    """The answer did not come in the time asked for; the work itself goes on."""

    code = "timeout"


class Cancelled(RisError):
    """Whoever asked took the query back; it was not answered."""

    code = "cancelled"


class Unauthenticated(RisError):
    """A request of the API has no key, or one that is unknown, expired or revoked; or an access
    token that is not valid.

    ``presented``: there was a key or token.
    """

    code = "unauthenticated"

    def __init__(self, message: str, *, presented: bool = True) -> None:
        super().__init__(message)
        self.presented = presented


class Forbidden(RisError):
    """The API key does not allow this action, or no role of the access token opens anything."""

    code = "forbidden"


class KeyReused(RisError):
    """An Idempotency-Key came with another request than the first time."""

    code = "idempotency_key_reused"


class AlreadyThere(RisError):
    """Something of that name exists already."""

    code = "already_there"


class MethodNotAllowed(RisError):
    """The address exists, but not for this method."""

    code = "method_not_allowed"


class MediaUnsupported(RisError):
    """The body's Content-Type is none that this address reads."""

    code = "media_unsupported"


class BodyTooLarge(RisError):
    """The body of a request is larger than allowed."""

    code = "body_too_large"


class BodyTooSlow(RisError):
    """The body of a request did not arrive in time."""

    code = "body_too_slow"


class TooManyRequests(RisError):
    """An API key asks more often, or has more queries open, than allowed."""

    code = "too_many_requests"


def error_of_code(code: str, detail: str) -> RisError:
    """The typed error a recorded failure stands for; unknown codes become :class:`RisError`."""
    kinds = {kind.code: kind for kind in RisError.__subclasses__()}
    return kinds.get(code, RisError)(detail)
