"""Addresses of feeds: which may be opened, and how they are shown (without passwords)."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit, urlunsplit

from worker.errors import AddressRefused, FeedFailed

SourceKind = Literal["rtsp", "http", "file"]
_KINDS: dict[str, SourceKind] = {
    "rtsp": "rtsp", "rtsps": "rtsp", "http": "http", "https": "http", "file": "file",
}  # fmt: skip
PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_METADATA = {
    ipaddress.ip_address(known) for known in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200")
}
"""Where clouds tell machines their credentials, beside the link-local ones."""
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class AddressRules:
    """What may be opened.

    ``hosts``: names, ``*.suffix`` and networks; empty: any but this machine and link-local ones,
    and with ``private`` False none of private networks either. ``files_dir``: folder below which
    ``file:`` feeds may lie; None: there are none. ``setting``: where hosts are listed.
    """

    schemes: Sequence[str]
    hosts: Sequence[str]
    files_dir: Path | None
    private: bool = True
    setting: str = "RIS_FEED_HOSTS"


def redacted(url: str) -> str:
    """The address as it may be shown: without user, password, query and ``name=value`` in paths."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return f"{url.split(':', 1)[0][:10]}:..." if re.match(r"[a-z]{1,10}:", url) else "..."
    if parts.scheme not in _KINDS:
        return "..."
    if "@" in parts.path + parts.query + parts.fragment:
        return f"{parts.scheme}://..."  # a password with a raw /, ? or #: it begins anywhere
    login = "***@" if "@" in parts.netloc else ""
    where = f"[{host}]" if ":" in host else host
    where += f":{port}" if port is not None else ""
    path = "/".join("..." if "=" in part else part for part in parts.path.split("/"))
    return f"{parts.scheme}://{login}{where}{path}" + ("?..." if parts.query else "")


def holds_secrets(url: str) -> bool:
    """Whether there may be something in an address that is not to be shown."""
    return any(sign in url for sign in "@?=#")


def check_address(url: str, rules: AddressRules) -> SourceKind:
    """The kind of an address that may be a feed's, without asking the network.

    Raises :class:`AddressRefused`.
    """
    kind, parts = _split(url, rules)
    if kind == "file":
        _file(parts, rules)
    else:
        _literal_allowed(parts, rules)
    return kind


@dataclass(frozen=True, slots=True)
class Target:
    """What to open. ``url`` may hold a password."""

    kind: SourceKind
    url: str


@dataclass(frozen=True, slots=True)
class LookedUp:
    """An HTTP address and where its host is: ``addresses`` are allowed, and are the ones to connect
    to. ``path``: with its query. The name is for the ``Host`` header and the certificate."""

    host: str
    port: int
    tls: bool
    path: str
    addresses: tuple[str, ...]


def looked_up(url: str, rules: AddressRules) -> LookedUp:
    """An HTTP address with its host's addresses looked up now, each of them allowed.

    Raises :class:`AddressRefused`, and :class:`FeedFailed` when the name is not known.
    """
    kind, parts = _split(url, rules)
    if kind != "http":
        raise AddressRefused(f"addresses of {parts.scheme} kind are not allowed: use http, https")
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    addresses = tuple(dict.fromkeys(str(found) for found in allowed_addresses(host, port, rules)))
    return LookedUp(host, port, parts.scheme == "https", path, addresses)


def resolved(url: str, rules: AddressRules) -> Target:
    """The address to open now, its host's addresses looked up and allowed.

    The host of RTSP is replaced by the address that was looked at, so that no second look-up finds
    another. HTTP looks at each address it connects to (:mod:`worker.video.http_guard`). Raises
    :class:`AddressRefused`, and :class:`FeedFailed` when the name is not known.
    """
    kind, parts = _split(url, rules)
    if kind == "file":
        return Target(kind, f"file:{_file(parts, rules)}")
    host = parts.hostname or ""
    first = allowed_addresses(host, parts.port or PORTS[parts.scheme], rules)[0]
    if kind == "http":
        return Target(kind, url)
    where = f"[{first}]" if first.version == 6 else str(first)
    login, at, _ = parts.netloc.rpartition("@")
    port = f":{parts.port}" if parts.port is not None else ""
    return Target(kind, urlunsplit(parts._replace(netloc=f"{login}{at}{where}{port}")))


def allowed_addresses(host: str, port: int, rules: AddressRules) -> list[_Address]:
    """What a name stands for now, every one of it allowed.

    Raises :class:`AddressRefused`, and :class:`FeedFailed` when the name is not known.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FeedFailed(f"the name {host} is not known: check it", reason="unreachable") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]
    for address in addresses:
        _require_allowed(host, address, rules)
    return addresses


def _split(url: str, rules: AddressRules) -> tuple[SourceKind, SplitResult]:
    if len(url) > 4096 or re.search(r"[\x00-\x20\x7f\\]", url):
        raise AddressRefused("the address has spaces or controls, or over 4096 characters")
    try:
        parts = urlsplit(url)
        misplaced = parts.netloc and "@" in parts.path + parts.query
        if not ("#" in url or misplaced):
            _ = parts.port
    except ValueError as error:
        raise AddressRefused("the address is no URL: write e.g. rtsp://host/path") from error
    if "#" in url or misplaced:  # before its port is read: it would be a part of the password
        raise AddressRefused("the address has a raw / ? # or @: percent-encode the password (%2F)")
    scheme = parts.scheme.lower()
    wanted = ", ".join(rules.schemes)
    if scheme not in _KINDS or (scheme != "file" and scheme not in rules.schemes):
        kind = "this" if "@" in url else scheme or "no"  # a login without a scheme reads like one
        raise AddressRefused(f"addresses of {kind} kind are not allowed: use {wanted}")
    if scheme != "file" and not parts.hostname:
        raise AddressRefused("the address has no host: write e.g. rtsp://host/path")
    return _KINDS[scheme], parts._replace(scheme=scheme)


def _file(parts: SplitResult, rules: AddressRules) -> Path:
    if rules.files_dir is None:
        raise AddressRefused("file: feeds are not allowed: set RIS_FEED_FILES_DIR to their folder")
    path = Path(parts.path).resolve()
    if parts.netloc or not path.is_relative_to(rules.files_dir.resolve()):
        raise AddressRefused(f"{path.name} does not lie below RIS_FEED_FILES_DIR")
    return path


def _literal_allowed(parts: SplitResult, rules: AddressRules) -> None:
    host = parts.hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        names = [name for name in rules.hosts if _network(name) is None]
        networks = len(names) < len(rules.hosts)
        if rules.hosts and not networks and not _named(host, names):
            raise _refusal(host, rules) from None
        return  # looked up when it is opened
    _require_allowed(host, address, rules)


def _require_allowed(host: str, address: _Address, rules: AddressRules) -> None:
    """Raise :class:`AddressRefused` unless the host may be connected to at this address."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    carried = _carried(address)
    if carried is not None:
        _require_allowed(host, carried, rules)
    networks = [network for name in rules.hosts if (network := _network(name)) is not None]
    if any(address.version == network.version and address in network for network in networks):
        return
    special = (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.is_reserved and carried is None)
        or address in _METADATA
        or _is_own(address)
    )
    inside = not rules.private and not address.is_global
    if special or (not _named(host, rules.hosts) if rules.hosts else inside):
        raise _refusal(host, rules)


def _carried(address: _Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for: 6to4, Teredo, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.teredo[1] if address.teredo is not None else address.sixtofour


def _is_own(address: _Address) -> bool:
    """Whether an interface of this machine has the address: only then can a socket take it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as taken:
            taken.bind((str(address), 0))
    except OSError:
        return False
    return True


def _network(name: str) -> _Network | None:
    try:
        return ipaddress.ip_network(name, strict=False)
    except ValueError:
        return None


def _named(host: str, names: Sequence[str]) -> bool:
    return any(
        host.endswith(name[1:].lower()) if name.startswith("*.") else host == name.lower()
        for name in names
    )


def _refusal(host: str, rules: AddressRules) -> AddressRefused:
    return AddressRefused(f"host {host} is not allowed: list it in {rules.setting}")
