"""Where the server is: the form of an address, and what is wrong with one that nobody answers at."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
from typing import Any, Optional

DEFAULT_PORT = 50051
_WANT = f'want "host:port", for example "127.0.0.1:{DEFAULT_PORT}"'
# Names that gRPC resolves by itself.
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:")
# Long enough for a handshake on a slow line, short beside the client's timeout.
_PROBE_TIMEOUT = 3.0


def checked(address: str) -> str:
    """The address with its port; raises ValueError for one that can never be right."""
    if address.startswith(_SCHEMES):
        return address
    if "://" in address or "/" in address:
        raise ValueError(f"the address {address!r} is a URL: {_WANT}; REST clients take the URL")
    if not address.strip() or any(character.isspace() for character in address):
        raise ValueError(f"the address {address!r} is empty or holds a space: {_WANT}")
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"the address {address!r} is malformed: {_WANT}")
        port = rest[1:] if rest else str(DEFAULT_PORT)
        host = f"[{host}]"
    elif address.count(":") > 1:
        host, port = f"[{address}]", str(DEFAULT_PORT)
    else:
        host, colon, port = address.partition(":")
        port = port if colon else str(DEFAULT_PORT)
    if not host:
        raise ValueError(f"the address {address!r} names no host: {_WANT}")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"the port {port!r} in the address {address!r} is no number from 1 to 65535: {_WANT}")
    return f"{host}:{port}"


def diagnose(address: str, ca: Optional[str], told: str) -> str:
    """Why no waiting will help, "" where it may. Asked once, before the first answer of a server.

    ca is the file of the CA, "system", or None without TLS. told is what gRPC says, which names
    the last address that it tried and not always the cause.
    """
    if "http1.x" in told or "Failed parsing HTTP/2" in told or "HTTP/1.1 400" in told:
        return f"at {address} answers a server of HTTP/1: 8000 is the REST port; gRPC is {DEFAULT_PORT} ({told})"
    if address.startswith(("unix:", "unix-abstract:")):
        return _no_socket(address)
    text = address.rpartition("/")[2]  # dns:///host:port
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        text = text[len(scheme) :] if text.startswith(scheme) else text
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or "," in text:
        return ""  # a form of gRPC's own
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        # Not EAI_AGAIN: a resolver that does not answer now may answer in a moment.
        return f"there is no host {host!r} ({exc})" if exc.errno == socket.EAI_NONAME else ""
    except (OSError, UnicodeError):
        return ""
    # gRPC names the last address that it tried; another one may be the server's.
    if "refused" in told and _all_refuse([(family, where) for family, _, _, _, where in found]):
        return (
            f"nothing listens at {address} (connection refused): start a server there, for example with 'treadle up', "
            "or name another address (address=, TREADLE_ADDRESS)"
        )
    return _wrong_certificate(host, found[0][4][1], ca) if ca else ""


def _all_refuse(addresses: list[tuple[int, Any]]) -> bool:
    """Whether machines answer that nothing listens there; silence may be a slow network, and is no answer."""
    refused = False
    for family, where in addresses:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(_PROBE_TIMEOUT)
                probe.connect(where)
                return False
        except ConnectionRefusedError:
            refused = True
        except OSError as exc:
            # "localhost" is an IPv6 address, too, on machines without IPv6.
            if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH):
                return False
    return refused


def _no_socket(address: str) -> str:
    scheme, _, path = address.partition(":")
    path = path[2:] if path.startswith("//") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_TIMEOUT)
            probe.connect("\0" + path if scheme == "unix-abstract" else path)
            return ""
    except (ConnectionRefusedError, FileNotFoundError) as exc:
        return f"nothing listens at {address} ({exc.strerror}): start a server there, or name another address"
    except (OSError, AttributeError):  # Windows has no such sockets
        return ""


def _wrong_certificate(host: str, port: object, ca: str) -> str:
    try:
        context = ssl.create_default_context(cafile=None if ca == "system" else ca)
        with socket.create_connection((host, int(str(port))), _PROBE_TIMEOUT) as plain:
            with context.wrap_socket(plain, server_hostname=host):
                return ""
    except ssl.SSLCertVerificationError as exc:
        return (
            f"the certificate of {host}:{port} is not one that the CA in {ca} vouches for: "
            f"CERTIFICATE_VERIFY_FAILED, {exc.verify_message} "
            "(ca=, TREADLE_TLS_CA)"
        )
    except (OSError, ValueError):
        return ""  # whatever it is, it is no matter of the certificate


def is_loopback(address: str) -> bool:
    """Whether an address ("host:port", or any name that gRPC knows) cannot leave this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    text = address.rpartition("/")[2]  # dns:///host:port
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        if text.startswith(scheme):
            text = text[len(scheme) :]
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    else:
        # More than one colon without brackets is an IPv6 address without a port.
        host = text.partition(":")[0] if text.count(":") == 1 else text
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
