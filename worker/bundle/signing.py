"""Signatures of manifests: Ed25519, with a key of this RIS."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from worker.config import Settings
from worker.errors import InputInvalid, SetupFailed, StorageFailed

KEY_FILE = "evidence.key"
"""Name of the private key in the data folder, where no setting names another place."""
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_PRIVATE, _OTHERS_MAY = 0o600, 0o077


class SigningKey:
    """A private key, read once."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_pem = public_pem(key.public_key())

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of a signature."""
        return self._key.sign(message)


def own_key(settings: Settings, *, make: bool = True) -> SigningKey:
    """The key that this RIS signs with: that of RIS_EVIDENCE_KEY_FILE, else one in the data folder.
    Raises as :func:`signing_key`."""
    if settings.evidence_key_file is not None:
        return signing_key(settings.evidence_key_file, make=False)
    return signing_key(settings.data_dir.resolve() / KEY_FILE, make=make)


def signing_key(path: Path, *, make: bool) -> SigningKey:
    """The key of a PEM file; with ``make`` a new one where there is none, durably, mode 0600.

    Raises :class:`SetupFailed` for a file that is missing, is no Ed25519 key, or that others may
    read, and :class:`StorageFailed`.
    """
    if make and not path.exists():
        _make(path)
    try:
        raw = path.read_bytes()
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise SetupFailed(
            f"{path} is not there: the first `ris up`, or the first export, makes it; restore it"
            " from where its copy is kept, or unset RIS_EVIDENCE_KEY_FILE"
        ) from None
    except OSError as error:
        raise SetupFailed(f"{path}: {error.strerror or error}") from None
    if mode & _OTHERS_MAY:
        raise SetupFailed(f"{path} may be read by others: chmod 600, or make another key")
    try:
        key = load_pem_private_key(raw, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupFailed(f"{path} is no Ed25519 private key in PEM: restore it")
    return SigningKey(key)


def _make(path: Path) -> None:
    """A new key; of two that make one at a time, one is kept."""
    raw = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
        try:
            os.write(descriptor, raw)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror or error}") from error


def public_pem(key: Ed25519PublicKey) -> bytes:
    """A public key as PEM (SubjectPublicKeyInfo)."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(pem: bytes) -> str:
    """SHA-256 (hex) of a public key's DER: what people compare. Raises :class:`InputInvalid`."""
    der = _public(pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def is_signed(message: bytes, signature: bytes, pem: bytes) -> bool:
    """Whether the key signed the message. Raises :class:`InputInvalid` for what is no key."""
    try:
        _public(pem).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def trusted_fingerprint(given: str) -> str:
    """Of a key that a person names: its fingerprint, or a file with the public key."""
    text = given.strip().lower().replace(":", "").removeprefix("sha256")
    if _FINGERPRINT.fullmatch(text):
        return text
    path = Path(given)
    if not path.is_file():
        raise InputInvalid(
            f"--key {given!r} is neither a fingerprint (64 hex digits) nor a file with a public key"
        )
    return fingerprint(path.read_bytes())


def _public(pem: bytes) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputInvalid("the public key is no Ed25519 key in PEM")
    return key
