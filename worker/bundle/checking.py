"""Whether a bundle is as it was exported, and whose key signed it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from models.access import AuditEntry
from worker.accepting.audit import entry_sha256
from worker.bundle.archive import MAX_ARCHIVE_BYTES, read_archive
from worker.bundle.manifest import MANIFEST, PUBLIC_KEY, SIGNATURE, UNLISTED, read_manifest
from worker.bundle.signing import fingerprint, is_signed
from worker.errors import EvidenceInvalid, InputInvalid

Signer = Literal["trusted", "other", "not checked"]
"""``trusted``: the key that was named. ``not checked``: none was named, and what a bundle says of
its own key proves nothing."""


@dataclass(frozen=True, slots=True)
class CheckedBundle:
    """A bundle's files and manifest, what is wrong with it, and who signed it, by fingerprint."""

    files: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    problems: tuple[str, ...]
    signed_by: str | None
    signer: Signer


def check_bundle(content: bytes, trusted: str | None) -> CheckedBundle:
    """Check an archive against its own manifest, and the manifest against its signature.

    ``trusted``: fingerprint of the key it has to be signed with; None: not known. Raises
    :class:`EvidenceInvalid` where it cannot be read as a bundle at all.
    """
    if len(content) > MAX_ARCHIVE_BYTES:
        raise EvidenceInvalid(f"a bundle has at most {MAX_ARCHIVE_BYTES} bytes")
    files, problems = read_archive(content)
    manifest: dict[str, Any] = {}
    try:
        manifest = read_manifest(files)
        problems += _file_problems(files, manifest["files"]) + _audit_problems(manifest)
    except EvidenceInvalid as error:
        problems.append(str(error))
    signed_by, wrong = _signature(files, manifest)
    problems += wrong
    signer: Signer = "not checked"
    if trusted is not None:
        signer = "trusted" if signed_by == trusted and not wrong else "other"
    return CheckedBundle(files, manifest, tuple(dict.fromkeys(problems)), signed_by, signer)


def _file_problems(files: Mapping[str, bytes], listed: Mapping[str, Any]) -> list[str]:
    problems = [f"{name} is missing" for name in listed if name not in files]
    for name, content in files.items():
        if name in UNLISTED:
            continue
        if name not in listed:
            problems.append(f"{name} is not in the manifest")
        elif hashlib.sha256(content).hexdigest() != listed[name]["sha256"]:
            problems.append(f"{name}: its SHA-256 is not the one in the manifest")
    return problems


def _signature(
    files: Mapping[str, bytes], manifest: Mapping[str, Any]
) -> tuple[str | None, list[str]]:
    """Fingerprint of the key in the bundle, and what is wrong with key and signature."""
    missing = [name for name in (PUBLIC_KEY, SIGNATURE, MANIFEST) if name not in files]
    if missing:
        return None, [f"{name} is missing" for name in missing]
    try:
        signed_by = fingerprint(files[PUBLIC_KEY])
        signed = is_signed(files[MANIFEST], files[SIGNATURE], files[PUBLIC_KEY])
    except InputInvalid as error:
        return None, [f"{PUBLIC_KEY}: {error}"]
    if not signed:
        return signed_by, [
            f"the signature does not fit: {MANIFEST}, {SIGNATURE} or {PUBLIC_KEY} was changed"
        ]
    if manifest and manifest.get("signed_by") != signed_by:
        return signed_by, [f"{MANIFEST} names another key than {PUBLIC_KEY}"]
    return signed_by, []


def _audit_problems(manifest: Mapping[str, Any]) -> list[str]:
    """Entries of the audit whose hash is not that of what they say."""
    problems = []
    try:
        for told in manifest["audit"]:
            entry = AuditEntry(
                seq=told["seq"],
                t_utc=datetime.fromisoformat(told["t_utc"]),
                actor=told["actor"],
                act=told["act"],
                details=told["details"],
                previous_sha256=told["previous_sha256"],
            )
            if entry_sha256(entry) != told["sha256"]:
                problems.append(f"audit entry {told['seq']}: its hash is not that of what it says")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problems.append(f"{MANIFEST}: the audit's entries cannot be read: {error!r}")
    return problems
