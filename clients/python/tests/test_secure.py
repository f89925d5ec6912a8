"""TLS and tokens against the real thing."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import treadle

BINARY = Path(os.environ.get("TREADLE_BIN") or Path(__file__).parents[3] / "bin" / "treadle")

pytestmark = [
    pytest.mark.binary,
    pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built (go build -o bin/treadle ./cmd/treadle)"),
]


def start(folder: Path, *flags: str) -> tuple[subprocess.Popen[str], str]:
    command = [str(BINARY), "up", "--store", "memory:", "--slots", "0", "--json", "--data-dir", str(folder / "data")]
    command += ["--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["grpc_addr"]


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    assert process.wait(20) == 0
    assert process.stdout is not None
    process.stdout.close()


class Secure:
    """A server with TLS and tokens, its CA and a token of each role."""

    def __init__(self, folder: Path) -> None:
        self.ca = str(folder / "ca.pem")
        tokens = folder / "tokens.json"
        subprocess.run([str(BINARY), "certs", "--dir", str(folder)], check=True, stdout=subprocess.DEVNULL)
        self.tokens = {
            role: subprocess.run(
                [str(BINARY), "token", "create", "--role", role, "--file", str(tokens)],
                check=True,
                text=True,
                capture_output=True,
            ).stdout.strip()
            for role in ("client", "worker")
        }
        flags = ["--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server-key.pem")]
        self.process, self.address = start(folder, *flags, "--token-file", str(tokens))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    server = Secure(tmp_path_factory.mktemp("secure"))
    yield server
    stop(server.process)


def test_ca_and_token(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    with treadle.Client(secure.address, ca=secure.ca, token=secure.tokens["client"]) as client:
        assert client.info().durability == "memory"
    monkeypatch.setenv("TREADLE_TLS_CA", secure.ca)
    monkeypatch.setenv("TREADLE_TOKEN", secure.tokens["client"])
    with treadle.Client(secure.address) as client:
        assert client.info().durability == "memory"
    with treadle.Client(secure.address, tls=True, ca=secure.ca) as client:
        assert client.info().durability == "memory"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_wrong_ca_is_told_at_once(secure: Secure, tmp_path: Path, host: str) -> None:
    subprocess.run([str(BINARY), "certs", "--dir", str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    other = str(tmp_path / "ca.pem")
    address = f"{host}:{secure.address.rpartition(':')[2]}"
    # The client's own limit is longer than any test may take.
    with treadle.Client(address, ca=other, token=secure.tokens["client"], timeout=600) as client:
        with pytest.raises(treadle.Unavailable, match="is not one that the CA in .*ca.pem vouches for"):
            client.info()
    with treadle.Client(address, ca=secure.ca, token=secure.tokens["client"]) as client:
        assert client.info().durability == "memory"


def test_tokens_that_will_not_do(secure: Secure) -> None:
    with treadle.Client(secure.address, ca=secure.ca) as client, pytest.raises(treadle.Unauthenticated) as none:
        client.info()
    assert none.value.reason == "UNAUTHENTICATED"
    with treadle.Client(secure.address, ca=secure.ca, token=secure.tokens["worker"]) as client:
        with pytest.raises(treadle.PermissionDenied, match="a worker token") as wrong:
            client.info()
        with pytest.raises(treadle.PermissionDenied):
            client.submit(pow, 2, 3).result(20)
    assert secure.tokens["worker"] not in str(wrong.value)


def test_plain_text_to_tls(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_TLS_CA", secure.ca)
    with treadle.Client(secure.address, tls=False, timeout=10) as client:
        with pytest.raises(treadle.TreadleError, match="this listener speaks TLS") as refused:
            client.info()
    assert refused.value.reason == "TLS_REQUIRED"


def test_tls_to_plain_text(secure: Secure, tmp_path: Path) -> None:
    process, address = start(tmp_path)
    try:
        with treadle.Client(address, ca=secure.ca, timeout=1) as client:
            with pytest.raises(treadle.Unavailable, match="speaks plain text"):
                client.info()
    finally:
        stop(process)


def test_another_ca(secure: Secure, tmp_path: Path) -> None:
    subprocess.run([str(BINARY), "certs", "--dir", str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    with treadle.Client(secure.address, ca=str(tmp_path / "ca.pem"), timeout=1) as client:
        with pytest.raises(treadle.Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            client.info()


def test_ca_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TREADLE_TLS_CA"):
        treadle.Client(ca=str(tmp_path / "none.pem"))
    empty = tmp_path / "empty.pem"
    empty.touch()
    with pytest.raises(ValueError, match="no certificate in PEM"):
        treadle.Client(ca=str(empty))
    treadle.Client(ca="system").close()
    treadle.Client(tls=grpc.ssl_channel_credentials()).close()
