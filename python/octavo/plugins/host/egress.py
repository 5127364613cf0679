"""Which addresses the host may connect to. A plugin's URL is registered by the operator, never by a client or model.

A URL that names a private address, or `localhost`, permits it. A name that merely resolves to one does not: its owner
could point it into the local network (DNS rebinding). Each address is checked after resolution, and the connection goes
to the checked address.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable
from urllib.parse import quote, urlsplit, urlunsplit

from octavo.errors import InvalidRequestError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Networks whose addresses carry an IPv4 address in their last 32 bits: NAT64 (RFC 6052), IPv4-compatible addresses
# (RFC 4291, section 2.5.5.1), IPv4-translated ones (RFC 2765).
_CARRIERS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")))
# Not globally reachable (IANA's registry of special-purpose addresses), which Python's tables do not all say: local
# NAT64 (RFC 8215), segment routing (RFC 9602), documentation (RFC 9637).
_LOCAL = tuple(map(ipaddress.IPv6Network, ("64:ff9b:1::/48", "5f00::/16", "3fff::/20")))


class EgressError(Exception):
    """An address to which the host may not connect; the message names it and the remedy."""


def check_url(url: object) -> str:
    """The base URL of a plugin, with a slash at its end.

    Raises:
        InvalidRequestError: no http(s) URL, or one with credentials, a query or a fragment.
    """
    if not isinstance(url, str):
        raise InvalidRequestError(f"a plugin's URL must be a text, not {type(url).__name__}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidRequestError("the plugin's URL cannot be read: give one such as http://127.0.0.1:9000") from None
    # Before any message that shows the URL.
    if parts.username is not None or parts.password is not None:
        raise InvalidRequestError(
            f"the plugin's URL for {host!r} has credentials: give them as headers={{'Authorization': Secret.env(...)}}"
        )
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise InvalidRequestError(f"{parts.scheme}://{host or ''}: a plugin's URL begins with http:// or https://")
    if parts.query or parts.fragment:
        raise InvalidRequestError(f"the plugin's URL for {host!r} has a query or a fragment: give the base URL alone")
    if any(c.isspace() or ord(c) < 32 or c == "\\" for c in url) or port == 0:
        raise InvalidRequestError(f"the plugin's URL for {host!r} has a space, a backslash, or port 0: remove it")
    if not host.isascii():
        raise InvalidRequestError(f"the host {host!r} of a plugin's URL has characters outside ASCII{_ascii(host)}")
    path = quote(parts.path, safe="%/:@!$&'()*+,;=~", errors="surrogatepass")
    path = path if path.endswith("/") else path + "/"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _ascii(host: str) -> str:
    """The remedy for a host outside ASCII: its form in DNS (RFC 3490)."""
    try:
        return f": give it as {host.encode('idna').decode('ascii')}"
    except UnicodeError:
        return ": give its form in DNS, xn--..."


def origin(url: str) -> tuple[str, str, int]:
    """(scheme, host, port) of a URL (RFC 6454)."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)


def show_origin(url: str) -> str:
    """The origin as a text, without path, query and credentials."""
    scheme, host, port = origin(url)
    return f"{scheme}://{host}:{port}"


def literal(host: str) -> Address | None:
    """The address that a host names; None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def is_localhost(host: str) -> bool:
    """Whether a name is `localhost` or below it (RFC 6761)."""
    host = host.rstrip(".").lower()
    return host == "localhost" or host.endswith(".localhost")


def is_public(address: Address) -> bool:
    """Whether an address is globally reachable; an IPv4 address inside an IPv6 one counts as itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo is not None:
            inner = address.teredo[1]
        if address.is_site_local or any(address in network for network in _LOCAL):
            return False
        if inner is None and any(address in network for network in _CARRIERS):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def permitted(host: str, addresses: list[str], allow_private: bool) -> list[str]:
    """The addresses, if the host may connect to each of them.

    Args:
        host: the host of the registered URL.
        addresses: what it resolved to.
        allow_private: whether the operator permits private addresses for this name.

    Raises:
        EgressError: one of them is not permitted, or there are none.
    """
    if not addresses:
        raise EgressError(f"the name {host!r} has no address: check it, and the resolver")
    named = literal(host)
    for text in addresses:
        address = literal(text)
        if address is None or address.is_multicast or address.is_unspecified:
            raise EgressError(f"the name {host!r} resolves to {text!r}, to which no connection can go")
        if named is not None or allow_private or is_public(address):
            continue
        if is_localhost(host) and address.is_loopback:
            continue
        raise EgressError(
            f"the name {host!r} resolves to the private address {text}: register the address itself, or set"
            " allow_private=True"
        )
    return addresses


def system_resolve(host: str, port: int) -> list[str]:
    """The addresses of a name by the system's resolver, without repetitions.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def resolve(host: str, port: int, seconds: float, allow_private: bool, resolver: Resolve = system_resolve) -> list[str]:
    """Resolves a host once, within a time, and checks each address.

    Raises:
        EgressError: an address is not permitted.
        TimeoutError: the resolver did not answer in time.
        OSError: the resolver failed.
    """
    if (address := literal(host)) is not None:
        return permitted(host, [str(address)], allow_private)
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolver(host, port))
        except Exception as error:
            answers.put(error)

    # The system's resolver has no timeout: a thread that it blocks is left behind.
    threading.Thread(target=ask, name="octavo-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        raise TimeoutError(f"the resolver did not answer for {host!r} in time") from None
    if isinstance(answer, Exception):
        raise answer
    return permitted(host, answer, allow_private)
