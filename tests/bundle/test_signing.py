"""The signing key: made once, for its owner's eyes, and never taken from somewhere else."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.bundle.signing import fingerprint, is_signed, own_key, signing_key, trusted_fingerprint
from worker.config import Settings
from worker.errors import InputInvalid, SetupFailed


def test_it_is_made_once_and_kept(tmp_path: Path):
    configured = Settings(data_dir=tmp_path / "new" / "var")
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: own_key(configured).public_pem, range(32)))
    assert len(set(keys)) == 1
    (path,) = (tmp_path / "new" / "var").iterdir()  # nothing is left beside it
    assert (path.name, stat.S_IMODE(path.stat().st_mode)) == ("evidence.key", 0o600)


def test_a_signature_is_of_this_key_and_these_bytes(tmp_path: Path):
    key, other = (signing_key(tmp_path / name, make=True) for name in "ab")
    signature = key.sign(b"text")
    assert is_signed(b"text", signature, key.public_pem)
    assert not is_signed(b"texT", signature, key.public_pem)
    assert not is_signed(b"text", signature, other.public_pem)
    assert not is_signed(b"text", b"short", key.public_pem)


def test_a_setting_names_a_key_that_must_be_there(tmp_path: Path):
    configured = Settings(data_dir=tmp_path, evidence_key_file=tmp_path / "gone.pem")
    with pytest.raises(SetupFailed, match="is not there"):
        own_key(configured)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [("no key", 0o600, "no Ed25519"), (None, 0o640, "read by others"), (None, 0o604, "by others")],
)
def test_a_key_that_is_none_or_that_others_may_read_is_refused(
    tmp_path: Path, content: str | None, mode: int, words: str
):
    path = tmp_path / "key"
    signing_key(path, make=True)
    if content is not None:
        path.write_text(content)
    path.chmod(mode)
    with pytest.raises(SetupFailed, match=words):
        signing_key(path, make=True)


def test_a_trusted_key_is_named_by_fingerprint_or_file(tmp_path: Path):
    pem = signing_key(tmp_path / "key", make=True).public_pem
    mark = fingerprint(pem)
    (tmp_path / "public.pem").write_bytes(pem)
    assert trusted_fingerprint(str(tmp_path / "public.pem")) == mark
    with_colons = ":".join(mark[at : at + 2] for at in range(0, 64, 2)).upper()
    for given in (mark, f" {mark.upper()}\n", with_colons, f"SHA256:{mark}"):
        assert trusted_fingerprint(given) == mark
    for wrong in (mark[:-1], str(tmp_path / "gone"), str(tmp_path)):
        with pytest.raises(InputInvalid, match="neither a fingerprint"):
            trusted_fingerprint(wrong)
    with pytest.raises(InputInvalid, match="no Ed25519 key"):
        trusted_fingerprint(str(tmp_path / "key"))  # the private one
