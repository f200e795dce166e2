"""Archives: one way to write them, and every other byte is found."""

from __future__ import annotations

import io
import zipfile

import pytest

from worker.bundle.archive import read_archive, write_archive
from worker.errors import EvidenceInvalid

FILES = {"a.txt": b"one", "empty": b"", "b/c.bin": bytes(range(256))}


def test_anybody_can_unpack_it_and_it_is_always_the_same():
    content = write_archive(FILES)
    assert content == write_archive(dict(FILES))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
        assert archive.namelist() == list(FILES)
    assert read_archive(content) == (FILES, [])


def test_every_changed_byte_is_found():
    content = write_archive(FILES)
    for at in range(len(content)):
        for bit in (0, 7):
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            try:
                files, wrong = read_archive(bytes(damaged))
            except EvidenceInvalid as error:
                assert "byte" in str(error)
                continue
            assert wrong or files != FILES, at
            assert all("archive" in one or one.split(":")[0] in files for one in wrong)


@pytest.mark.parametrize("cut", [0, 1, 20, 60, -1])
def test_a_part_of_one_is_none(cut: int):
    content = write_archive(FILES)[:cut]
    try:
        _, wrong = read_archive(content)
    except EvidenceInvalid:
        return
    assert wrong


def test_one_that_was_packed_again_says_so():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    try:
        _, wrong = read_archive(out.getvalue())
    except EvidenceInvalid as error:
        assert "packed again" in str(error)
        return
    assert wrong


def test_two_files_of_one_name_and_bytes_behind_the_end_are_refused():
    both = write_archive({"a": b"1"})
    doubled = both[: both.index(b"PK\x01\x02")] + both
    with pytest.raises(EvidenceInvalid):
        read_archive(doubled)
    assert read_archive(both + b"\0")[1] == ["archive: the directory at its end is not as written"]
