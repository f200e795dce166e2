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
_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class AddressRules:
    """What feeds may open.

    ``hosts``: names, ``*.suffix`` and networks; empty: any but this machine and link-local ones.
    ``files_dir``: folder below which ``file:`` feeds may lie; None: there are none.
    """

    schemes: Sequence[str]
    hosts: Sequence[str]
    files_dir: Path | None


def redacted(url: str) -> str:
    """The address as it may be shown: without user, password, query and ``name=value`` in paths."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return f"{url.split(':', 1)[0][:10]}:..." if re.match(r"[a-z]{1,10}:", url) else "..."
    if parts.scheme not in _KINDS:
        return "..."
    login = "***@" if "@" in parts.netloc else ""
    where = f"[{host}]" if ":" in host else host
    where += f":{port}" if port is not None else ""
    path = "/".join("..." if "=" in part or "@" in part else part for part in parts.path.split("/"))
    return f"{parts.scheme}://{login}{where}{path}" + ("?..." if parts.query else "")


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


def resolved(url: str, rules: AddressRules) -> tuple[SourceKind, str]:
    """The address to open now, its host's addresses looked up and allowed.

    An RTSP host is replaced by the address that was looked at, so that no second look-up finds
    another. Raises :class:`AddressRefused`, and :class:`FeedFailed` when the name is not known.
    """
    kind, parts = _split(url, rules)
    if kind == "file":
        return kind, f"file:{_file(parts, rules)}"
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(
            host, parts.port or _PORTS[parts.scheme], type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:
        raise FeedFailed(f"the name {host} is not known: check it", reason="unreachable") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]
    for address in addresses:
        _require_allowed(host, address, rules)
    if kind == "rtsp":
        first = addresses[0]
        where = f"[{first}]" if first.version == 6 else str(first)
        login, at, _ = parts.netloc.rpartition("@")
        port = f":{parts.port}" if parts.port is not None else ""
        return kind, urlunsplit(parts._replace(netloc=f"{login}{at}{where}{port}"))
    return kind, url


def _split(url: str, rules: AddressRules) -> tuple[SourceKind, SplitResult]:
    if len(url) > 4096 or re.search(r"[\x00-\x20\x7f\\]", url):
        raise AddressRefused("the address has spaces or controls, or over 4096 characters")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise AddressRefused("the address is no URL: write e.g. rtsp://host/path") from error
    scheme = parts.scheme.lower()
    wanted = ", ".join(rules.schemes)
    if scheme not in _KINDS or (scheme != "file" and scheme not in rules.schemes):
        raise AddressRefused(f"addresses of {scheme or 'no'} kind are not allowed: use {wanted}")
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
            raise _refusal(host) from None
        return  # looked up when it is opened
    _require_allowed(host, address, rules)


def _require_allowed(host: str, address: _Address, rules: AddressRules) -> None:
    """Raise :class:`AddressRefused` unless the host may be connected to at this address."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    networks = [network for name in rules.hosts if (network := _network(name)) is not None]
    if any(address.version == network.version and address in network for network in networks):
        return
    special = (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
    )
    if special or (rules.hosts and not _named(host, rules.hosts)):
        raise _refusal(host)


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


def _refusal(host: str) -> AddressRefused:
    return AddressRefused(f"host {host} is not allowed: list it in RIS_FEED_HOSTS")
