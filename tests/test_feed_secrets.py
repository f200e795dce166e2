"""Addresses with a password as Postgres keeps them: encrypted, old rows and old keys included."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from tests.conftest import Services
from tests.feeding import feed_context, feed_worker, frame_times, gap_rows, until
from tests.parts import sql, with_settings
from tests.rtsp_server import Camera
from worker.context import Context
from worker.core.sampling import IntervalPolicy
from worker.errors import AlreadyThere, SecretKeyMissing
from worker.feeds import add_feed, remove_feed, seal_addresses
from worker.secret_keys import KEY_FILE, SecretKeys, ensure_key_file, secret_keys
from worker.video.address import redacted

MARKER = "hunter2MARKER"
URL = f"rtsp://ris:{MARKER}@camera.example/live"
EVERY = IntervalPolicy(0.3)
ROW = "select url, sealed_url from feeds"


@pytest.fixture(scope="module")
def shared(
    services: Services, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Context]:
    with feed_context(services, template_database, tmp_path_factory.mktemp("feed-keys")) as made:
        yield made


@pytest.fixture
def context(shared: Context) -> Context:
    sql(shared, "truncate jobs, cameras cascade")
    return shared


def having(context: Context, *keys: str) -> Context:
    """A process with these keys."""
    return with_settings(context, secret_key=SecretStr(",".join(keys)) if keys else None)


def new_key() -> str:
    return Fernet.generate_key().decode()


def test_an_address_with_a_password_is_kept_encrypted_and_others_as_they_are(
    context: Context,
) -> None:
    add_feed(context, "secret", URL, EVERY)
    ((shown, sealed),) = sql(context, ROW)
    assert shown == redacted(URL) == "rtsp://***@camera.example/live"
    assert MARKER not in sealed
    assert secret_keys(context.settings).open(sealed) == URL
    add_feed(context, "secret", URL, EVERY)  # changes nothing
    with pytest.raises(AlreadyThere):
        add_feed(context, "secret", URL.replace(MARKER, "other"), EVERY)
    remove_feed(context, "secret")
    add_feed(having(context), "open", "rtsp://camera.example/live", EVERY)  # needs no key
    assert sql(context, ROW) == [("rtsp://camera.example/live", None)]


def test_without_a_key_a_password_is_not_taken(context: Context) -> None:
    for url in (URL, "rtsp://camera.example/live?token=1"):
        with pytest.raises(SecretKeyMissing, match="RIS_SECRET_KEY"):
            add_feed(having(context), "secret", url, EVERY)
    assert sql(context, ROW) == []
    assert sql(context, "select count(*) from jobs") == [(0,)]


def test_rows_of_an_older_ris_are_encrypted_once_there_is_a_key(
    context: Context, capfd: pytest.CaptureFixture[str]
) -> None:
    add_feed(context, "old", URL, EVERY)
    add_feed(context, "open", "rtsp://camera.example/b", EVERY)
    sql(context, "update feeds set url = %s, sealed_url = null where url like '%%***%%'", URL)
    assert seal_addresses(having(context)) == 0
    assert (URL, None) in sql(context, ROW)  # nothing is lost
    written = "".join(capfd.readouterr())
    assert "feed_addresses_not_encrypted" in written
    assert MARKER not in written
    assert [seal_addresses(context), seal_addresses(context)] == [1, 0]
    rows = dict(sql(context, ROW))
    assert set(rows) == {redacted(URL), "rtsp://camera.example/b"}
    assert secret_keys(context.settings).open(rows[redacted(URL)]) == URL


def test_a_new_key_is_put_before_the_old_one_which_is_then_no_longer_needed(
    context: Context,
) -> None:
    old, new = new_key(), new_key()
    add_feed(having(context, old), "turned", URL, EVERY)
    before = sql(context, ROW)
    assert [seal_addresses(having(context, new, old)) for _ in range(2)] == [1, 0]
    ((_, sealed),) = sql(context, ROW)
    assert before != [(redacted(URL), sealed)]
    assert SecretKeys([new]).open(sealed) == URL
    with pytest.raises(SecretKeyMissing, match="key that is not there"):
        SecretKeys([old]).open(sealed)
    assert seal_addresses(having(context, old)) == 0  # another process is not restarted yet
    assert sql(context, ROW) == [(redacted(URL), sealed)]


def test_a_feed_whose_key_is_gone_says_so_and_goes_on_when_it_is_back(context: Context) -> None:
    status = "select error_code, error_detail from feed_status"
    with Camera(user="ris", password=MARKER) as camera:
        add_feed(context, "keyless", camera.url, EVERY)
        sql(context, "update feed_status set last_seen_utc = now() - interval '5 s'")
        with feed_worker(having(context, new_key())):
            until(lambda: sql(context, status)[0][0] == "secret_key_missing", what="the words")
            assert "RIS_SECRET_KEY" in sql(context, status)[0][1]
        with feed_worker(context):
            until(lambda: len(frame_times(context, "keyless")) >= 2, what="frames")
    assert gap_rows(context, "keyless")[0][2] == "secret_key"
    assert sql(context, "select count(*) from jobs") == [(1,)]


def test_the_key_file_is_made_once_and_closed_to_others(context: Context, tmp_path: Path) -> None:
    elsewhere = with_settings(having(context), data_dir=tmp_path)
    assert secret_keys(elsewhere.settings).keys == ()
    ensure_key_file(tmp_path)
    made = (tmp_path / KEY_FILE).read_text()
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    ensure_key_file(tmp_path)
    assert (tmp_path / KEY_FILE).read_text() == made
    sealed = secret_keys(elsewhere.settings).seal(URL)
    (tmp_path / KEY_FILE).write_text(f"{new_key()}\n{made}")
    assert secret_keys(elsewhere.settings).open(sealed) == URL
    (tmp_path / KEY_FILE).write_text("torn")
    with pytest.raises(SecretKeyMissing, match="cannot be used"):
        secret_keys(elsewhere.settings)
    assert "torn" not in repr(secret_keys(context.settings))
    assert str(context.settings.secret_key) == "**********"
