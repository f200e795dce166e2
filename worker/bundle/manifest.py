"""A bundle as files: pictures and descriptors, the manifest with the hash of each, its signature.

Names below the root: ``README.txt``, ``SHA256SUMS``, ``public_key.pem``, ``manifest.json``,
``manifest.sig``; ``query/``, ``search/`` and one folder below ``hits/`` for each hit, by its rank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from worker.bundle.archive import write_archive
from worker.bundle.signing import SigningKey, fingerprint
from worker.errors import EvidenceInvalid

FORMAT = "ris-evidence/1"
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
PUBLIC_KEY, README, SUMS = "public_key.pem", "README.txt", "SHA256SUMS"
UNLISTED = (MANIFEST, SIGNATURE)
"""Files that the manifest cannot list: itself, and what signs it."""


def hit_folder(rank: int) -> str:
    """Where the files of a hit lie."""
    return f"hits/{rank:04}/"


def sealed_bundle(
    told: Mapping[str, Any], files: Mapping[str, bytes], readme: str, key: SigningKey
) -> bytes:
    """The archive: ``files``, the manifest (``told``, with their hashes), and its signature."""
    listed = {README: readme.encode(), PUBLIC_KEY: key.public_pem, **files}
    listed = {SUMS: sums_text(listed).encode(), **listed}
    manifest = manifest_bytes(
        {
            **told,
            "format": FORMAT,
            "signed_by": fingerprint(key.public_pem),
            "files": {
                name: {"sha256": sha256_of(content), "bytes": len(content)}
                for name, content in listed.items()
            },
        }
    )
    named = {MANIFEST: manifest, SIGNATURE: key.sign(manifest)}
    front = {name: listed.pop(name) for name in (README, SUMS, PUBLIC_KEY)}
    return write_archive({**front, **named, **dict(sorted(listed.items()))})


def sums_text(files: Mapping[str, bytes]) -> str:
    """As ``sha256sum --check`` reads it."""
    lines = (f"{sha256_of(content)}  {name}\n" for name, content in sorted(files.items()))
    return "".join(lines)


def sha256_of(content: bytes) -> str:
    """SHA-256 (hex)."""
    return hashlib.sha256(content).hexdigest()


def manifest_bytes(fields: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys, ASCII, one space a level; floats as their shortest digits, so that
    each is read back bit for bit. These very bytes are signed."""
    text = json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return (text + "\n").encode()


def read_manifest(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Raises :class:`EvidenceInvalid` where it is missing, damaged, or of another format."""
    try:
        found = json.loads(files[MANIFEST])
        listed = found["files"]
        whole = found["format"] == FORMAT and isinstance(listed, dict)
        whole = whole and all(isinstance(one["sha256"], str) for one in listed.values())
    except KeyError as error:
        raise EvidenceInvalid(f"{MANIFEST}: {error} is missing") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise EvidenceInvalid(f"{MANIFEST} cannot be read: {error}") from None
    if not whole:
        raise EvidenceInvalid(
            f"{MANIFEST} is not of the format {FORMAT}: a newer RIS may have made it"
        )
    return dict(found)
