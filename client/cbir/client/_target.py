"""The address of a server: what is wrong with it, and whether it is this machine."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Address", "check_target", "hosts_of", "is_this_machine", "proxy_of"]

#: Schemes of gRPC whose addresses are hosts and ports, and those whose addresses are something else.
_HOSTS, _OTHERS = ("dns", "ipv4", "ipv6"), ("unix", "unix-abstract", "vsock", "passthrough", "xds", "google-c2p")
_PORT_NAMES = ("http", "https")
_LOCAL_NAMES = frozenset(
    ("", "localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback")
)
#: Where gRPC looks for a proxy, and for the hosts that are reached without, in this order.
_PROXY_VARIABLES, _EXCEPTIONS = ("grpc_proxy", "https_proxy", "http_proxy"), ("no_grpc_proxy", "no_proxy")


class Address(str):
    """A server's address as messages name it.

    Attributes:
        hint: What else may be why it is not reached; a clause, empty if nothing.
        secure: Whether it is asked by TLS.
    """

    hint: str = ""
    secure: bool = False

    @classmethod
    def of(cls, target: str, hint: str = "", *, secure: bool = False) -> Address:
        """An address with a hint."""
        address = cls(target)
        address.hint, address.secure = hint, secure
        return address


def check_target(target: str, *, secure: bool) -> None:
    """Check what can be checked without asking anybody.

    Args:
        secure: Whether TLS is used, for which the port may be left out (443).

    Raises:
        ValueError: It cannot work; the message says why and what to write.
    """
    if not target.strip():
        raise ValueError("target is empty: give the server's address, such as localhost:50051")
    scheme, separator, _ = target.partition("://")
    if separator and scheme.lower() not in (*_HOSTS, *_OTHERS):
        place = urlsplit(target)
        host = place.netloc.rpartition("@")[2] or "localhost:50051"
        if not re.search(r":\d+$", host):
            host += ":50051"
        raise ValueError(f"target is {target!r}, a URL: give host and port alone, such as {host}")
    for host, port in hosts_of(target):
        if port is None and _is_ipv6(host) and f"[{host}]" not in target:
            raise ValueError(f"target is {target!r}, an IPv6 address without brackets: write [{host}]:50051")
        if port is None and not secure:
            raise ValueError(f"target is {target!r}, which has no port: give host and port, such as {host}:50051")
        if port is not None and port not in _PORT_NAMES and not (port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError(f"target is {target!r}: the port must be a number from 1 to 65535, such as {host}:50051")


def hosts_of(target: str) -> list[tuple[str, str | None]]:
    """The hosts and ports that a target names; none where it names something else, such as a socket's path."""
    scheme, colon, rest = target.partition(":")
    kind = scheme.lower() if colon else ""
    if kind in _OTHERS:
        return []
    if kind not in _HOSTS:
        return [_split(unquote(target))]
    if rest.startswith("//"):
        rest = rest[2:].partition("/")[2]
    places = unquote(rest).lstrip("/")
    return [_split(place) for place in (places.split(",") if kind != "dns" else [places])]


def is_this_machine(host: str) -> bool:
    """Tell whether a host is the machine that the client runs on, in whatever spelling.  Asks no name server."""
    name = host.strip("[]").lower().rstrip(".")
    if name in _LOCAL_NAMES or name.endswith(".localhost"):
        return True
    address = _address(name)
    if address is not None:
        return _is_own(address)
    own = socket.gethostname().lower().rstrip(".")
    if name in (own, own.partition(".")[0], f"{own.partition('.')[0]}.local"):
        return True
    return any(_is_own(known) for known in _in_hosts_file(name))


def proxy_of(hosts: Iterable[str], environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """The proxy that gRPC would use for hosts elsewhere, and the variable that names it; None: none."""
    variable = next((name for name in _PROXY_VARIABLES if environment.get(name)), None)
    if variable is None:
        return None
    listed = next((environment[name] for name in _EXCEPTIONS if environment.get(name)), "")
    exceptions = tuple(part.strip().lower() for part in listed.split(",") if part.strip())
    if exceptions and all(host.lower().endswith(exceptions) for host in hosts):
        return None
    return environment[variable], variable


def _split(place: str) -> tuple[str, str | None]:
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        return host, port[1:] if port.startswith(":") else None
    if place.count(":") > 1:
        return place, None
    host, colon, port = place.partition(":")
    return host, port if colon else None


def _is_ipv6(host: str) -> bool:
    return isinstance(_address(host), ipaddress.IPv6Address) or host.count(":") > 1


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:
            # Short and other spellings: 127.1, 0x7f000001.
            return ipaddress.IPv4Address(socket.inet_aton(name)) if name[:1].isdigit() else None
        except OSError:
            return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Only an address of this machine can be bound.
            probe.bind((str(address), 0))
    except OSError:
        return False
    return not address.is_multicast


def _in_hosts_file(name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses that this machine's own table of hosts gives a name."""
    try:
        lines = Path("/etc/hosts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.partition("#")[0].lower().split()
        if name in words[1:] and (address := _address(words[0])) is not None:
            found.append(address)
    return found
