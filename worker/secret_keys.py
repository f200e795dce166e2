"""Secrets as they are kept in Postgres: encrypted, with keys that Postgres never sees.

Keys come from ``RIS_SECRET_KEY``, else from ``secret.key`` in the data folder, which ``ris up``
makes beside its own Postgres. The first one encrypts; the others, older ones, still read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from worker.config import Settings, split_keys
from worker.errors import SecretKeyMissing

KEY_FILE: Final = "secret.key"
_PRIVATE: Final = 0o600


@dataclass(frozen=True, slots=True)
class SecretKeys:
    """Fernet keys (32 bytes in base64), the one that encrypts first. None: there are none."""

    keys: Sequence[str] = field(repr=False)

    def seal(self, secret: str) -> str:
        """The secret, encrypted. Raises :class:`SecretKeyMissing`."""
        return self._all().encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """The secret again. Raises :class:`SecretKeyMissing` where its key is not among these."""
        try:
            return self._all().decrypt(sealed).decode()
        except InvalidToken:
            raise SecretKeyMissing(
                "a password was encrypted with a key that is not there: list it behind the new one"
                f" in RIS_SECRET_KEY, or in {KEY_FILE} of the data folder, and start again"
            ) from None

    def is_newest(self, sealed: str) -> bool:
        """Whether the first key encrypted it."""
        try:
            Fernet(self.keys[0]).decrypt(sealed)
        except InvalidToken:
            return False
        return True

    def _all(self) -> MultiFernet:
        if not self.keys:
            raise SecretKeyMissing(
                "there is no key to keep an address with that may hold a password: set"
                " RIS_SECRET_KEY for every process (`openssl rand -base64 32`), and start again"
            )
        return MultiFernet([Fernet(key) for key in self.keys])


def secret_keys(settings: Settings) -> SecretKeys:
    """The keys of this process, read anew. Raises :class:`SecretKeyMissing` for a damaged file."""
    if settings.secret_key is not None:
        return SecretKeys(split_keys(settings.secret_key.get_secret_value()))
    path = settings.data_dir / KEY_FILE
    try:
        return SecretKeys(split_keys(path.read_text()))
    except FileNotFoundError:
        return SecretKeys(())
    except (OSError, ValueError) as error:
        raise SecretKeyMissing(f"{path} cannot be used: {error}; put its backup back") from None


def ensure_key_file(data_dir: Path) -> None:
    """Make ``secret.key`` where there is none; it stays for ever, readable by its owner only."""
    path = data_dir / KEY_FILE
    if path.exists():
        return
    draft = path.with_name(f"{KEY_FILE}.new")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
    with os.fdopen(fd, "wb") as file:
        file.write(Fernet.generate_key() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
