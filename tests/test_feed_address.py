"""Which addresses feeds may have, and that none is shown with what is secret in it."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from worker.core.sampling import IntervalPolicy
from worker.core.types import SizePx
from worker.errors import AddressRefused, FeedFailed
from worker.video.address import AddressRules, Target, check_address, redacted, resolved
from worker.video.live_feed import open_live
from worker.video.live_values import LiveOptions

SCHEMES = ("rtsp", "rtsps", "http", "https")
OPEN = AddressRules(SCHEMES, (), None)
MARKER = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "concat:a|b", "gopher://10.0.0.1/", "ftp://10.0.0.1/a", "data:x",
        "pipe:0", "subfile,,start,0,end,9,,:/etc/passwd", "udp://10.0.0.1:1", "rtmp://10.0.0.1/",
        "unix:/tmp/s", "tcp://10.0.0.1:1", "crypto:http://10.0.0.1/", "srt://10.0.0.1:1", "",
        "camera", "//10.0.0.1/a", "rtsp:", "rtsp://", "rtsp:///live", "http://:80/", "RTMP://h/",
        "rtsp://127.0.0.1/live", "rtsp://127.1.2.3/", "http://[::1]/", "http://0.0.0.0/",
        "http://[::ffff:127.0.0.1]/", "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/", "rtsp://224.0.0.1/", "rtsp://255.255.255.255/", "http://[::]/",
        "rtsp://10.0.0.1/a b", "rtsp://10.0.0.1/a\nb", "rtsp://10.0.0.1\\@evil/", "rtsp://h:x/",
        "http://[2002:7f00:1::]/", "http://[64:ff9b::7f00:1]/", "http://[2002:a9fe:a9fe::]/",
        "http://[fd00:ec2::254]/", "http://100.100.100.200/", "rtsp://admin:12/34@10.0.0.7/s",
        "rtsp://admin:p@ss/w@10.0.0.7/s", "rtsp://admin:12#34@10.0.0.7/s", "http://10.0.0.7/a#b",
        "rtsp://admin:12?34@10.0.0.7/s", "rtsp://h:99999/", "http://[::1",
        "rtsp://10.0.0.1/" + "a" * 5000, "rtsp://10.0.0.1/\0",
    ],
)  # fmt: skip
def test_hostile_addresses_are_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_address(url, OPEN)
    with pytest.raises(AddressRefused):
        resolved(url, OPEN)


@pytest.mark.parametrize("login", ["u:p#w", "u:p/w", "u:p?w", "u:p@/w", "u:9#w"])
def test_a_password_that_would_be_torn_apart_is_to_be_encoded(login: str) -> None:
    with pytest.raises(AddressRefused, match="percent-encode") as refused:
        check_address(f"rtsp://{login}@10.0.0.7/s", OPEN)
    assert login not in str(refused.value)


@pytest.mark.parametrize("url", ["http://localhost/", "http://LOCALHOST:80/", "http://127.1/",
                                 "http://2130706433/", "http://0x7f000001/"])  # fmt: skip
def test_names_and_odd_spellings_of_this_machine_are_refused_when_looked_up(url: str) -> None:
    with pytest.raises((AddressRefused, FeedFailed)):
        resolved(url, OPEN)


@pytest.mark.parametrize(
    ("url", "kind"),
    [("rtsp://u:p@10.0.0.7:554/live?a=1", "rtsp"), ("RTSP://10.0.0.7/", "rtsp"),
     ("https://93.184.216.34/x.m3u8", "http"), ("rtsp://[fd00::7]/live", "rtsp")],
)  # fmt: skip
def test_cameras_are_allowed(url: str, kind: str) -> None:
    assert check_address(url, OPEN) == kind
    assert resolved(url, OPEN).kind == kind


def test_hosts_are_only_those_listed() -> None:
    rules = AddressRules(
        SCHEMES, ("10.0.7.0/24", "cam.example", "*.cams.example", "127.0.0.9"), None
    )
    for url in ("rtsp://10.0.7.3/", "rtsp://cam.example/", "rtsp://a.cams.example/",
                "rtsp://127.0.0.9/"):  # fmt: skip
        check_address(url, rules)
    for url in ("rtsp://10.0.8.3/", "rtsp://127.0.0.1/"):
        with pytest.raises(AddressRefused, match="RIS_FEED_HOSTS"):
            check_address(url, rules)
    named = AddressRules(SCHEMES, ("cam.example",), None)
    with pytest.raises(AddressRefused, match=r"evilcam\.example"):
        check_address("rtsp://evilcam.example/", named)


def test_a_listed_name_does_not_reach_this_machine() -> None:
    with pytest.raises(AddressRefused, match="localhost"):
        resolved("rtsp://localhost/", AddressRules(SCHEMES, ("localhost",), None))
    assert resolved(
        "rtsp://u:p@localhost:99/x", AddressRules(SCHEMES, ("127.0.0.0/8", "::1"), None)
    ).url in ("rtsp://u:p@127.0.0.1:99/x", "rtsp://u:p@[::1]:99/x")


def test_files_lie_below_their_folder_links_included(tmp_path: Path) -> None:
    allowed = tmp_path / "clips"
    allowed.mkdir()
    (tmp_path / "secret.mp4").touch()
    (allowed / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    rules = AddressRules(SCHEMES, (), allowed)
    assert resolved(f"file:{allowed}/a.mp4", rules) == Target("file", f"file:{allowed}/a.mp4")
    for path in (f"{allowed}/../secret.mp4", f"{allowed}/link.mp4", "/etc/passwd"):
        for scheme in ("file:", "file://"):
            with pytest.raises(AddressRefused):
                resolved(scheme + path, rules)
    with pytest.raises(AddressRefused):
        resolved(f"file://host{allowed}/a.mp4", rules)


@pytest.mark.parametrize(
    "url",
    [
        f"rtsp://user:{MARKER}@host/live", f"rtsp://{MARKER}@host:554/", f"http://h/a?pw={MARKER}",
        f"rtsp://h/user=admin_password={MARKER}_channel=1", f"rtsp://u:{MARKER}@h:notaport/",
        f"rtsp://u:p@{MARKER}@h/a", f"http://[{MARKER}", f"http://h/a#{MARKER}", f"{MARKER}",
        f"rtsp://u:a/{MARKER}@h/x", f"rtsp://u:1/{MARKER}/b@h/x", f"rtsp://u:1#{MARKER}/@h/x",
        f"rtsp://{MARKER}@u/b@h/x", f"http://h/a@{MARKER}/b",
    ],
)  # fmt: skip
def test_shown_addresses_keep_secrets(url: str) -> None:
    assert MARKER not in redacted(url)


def test_shown_addresses_still_say_where() -> None:
    assert redacted("rtsp://u:p@10.0.0.7:554/live/1?x=1") == "rtsp://***@10.0.0.7:554/live/1?..."


@pytest.mark.parametrize("url", [f"rtsp://u:{MARKER}@127.0.0.1/", f"rtsp://u:{MARKER}@h:x/",
                                 f"ftp://u:{MARKER}@h/", f"rtsp://ad:p@{MARKER}/w@h/s",
                                 f"rtsp://u:{MARKER} @h/"])  # fmt: skip
def test_refusals_keep_secrets(url: str) -> None:
    with pytest.raises(AddressRefused) as refusal:
        check_address(url, OPEN)
    assert MARKER not in str(refusal.value)
    assert MARKER not in repr(refusal.value.__cause__)


def test_this_machines_own_addresses_need_a_network_that_lists_them() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it picks the interface
        except OSError:
            pytest.skip("no network here")
        own = probe.getsockname()[0]
    with pytest.raises(AddressRefused, match="RIS_FEED_HOSTS"):
        check_address(f"rtsp://{own}/live", OPEN)
    check_address(f"rtsp://{own}/live", AddressRules(SCHEMES, (f"{own}/32",), None))


def test_a_name_is_looked_up_once(tmp_path: Path) -> None:
    """Plain HTTP goes to the address that was looked at, and tells the server the name."""
    asked: list[str] = []

    class Noting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Host"])
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    rules = AddressRules(SCHEMES, ("127.0.0.0/8", "::1"), None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Noting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        target = resolved(f"http://u:p@localhost:{port}/a.mjpg", rules)
        assert target.host == f"localhost:{port}"
        assert target.url in (
            f"http://u:p@127.0.0.1:{port}/a.mjpg",
            f"http://u:p@[::1]:{port}/a.mjpg",
        )
        options = LiveOptions(IntervalPolicy(1), SizePx(32, 32), 160, 10**6, 1.0, rules)
        with pytest.raises(FeedFailed) as failure:
            video = open_live(f"http://localhost:{port}/a.mjpg", options, "feed x")
            while True:
                video.step()
        video.close()
        server.shutdown()
    assert failure.value.reason == "not_found"
    assert asked == [f"localhost:{port}"]
    assert resolved("http://127.0.0.1/a", rules).host is None
    for url in ("https://localhost/a", "http://localhost/a.m3u8"):
        assert resolved(url, rules) == Target("http", url)
