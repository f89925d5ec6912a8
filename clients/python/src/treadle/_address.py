"""Where the server is: the form of an address, and what is wrong with one that nobody answers at."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from typing import Optional

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
    if address.startswith(_SCHEMES):
        return ""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        # Not EAI_AGAIN: a resolver that does not answer now may answer in a moment.
        return f"there is no host {host!r} ({exc})" if exc.errno == socket.EAI_NONAME else ""
    except (OSError, UnicodeError):
        return ""
    return _wrong_certificate(host, found[0][4][1], ca) if ca else ""


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
