"""Nothing around a worker sends a call elsewhere: no variable, no file, no answer. What a provider may send has its limits."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from callpool.manager.errors import BrokenAnswer, ProviderUnreachable
from callpool.workers.call import run_call
from callpool.workers.providers.openai_compatible import Bounds, OpenAICompatible
from callpool.workers.providers.presets import LOCAL, OPENAI
from callpool.workers.providers.secret import Secret
from tests.workers.recorder import Recorder
from tests.workers.test_providers_http import ANSWER, KEY, Exchange, answer, make_call, run_against, serving

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "ws_proxy", "wss_proxy")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("no_proxy", [None, "", "*", "elsewhere.test"])
def test_no_variable_makes_a_call_go_through_a_proxy(monkeypatch: pytest.MonkeyPatch, no_proxy: str | None) -> None:
    async def main() -> None:
        async with serving(answer) as (proxy, proxy_url), serving(answer) as (server, url):
            for name in PROXIES:
                monkeypatch.setenv(name, proxy_url.removesuffix("/v1"))
            for name in ("no_proxy", "NO_PROXY"):
                if no_proxy is None:
                    monkeypatch.delenv(name, raising=False)
                else:
                    monkeypatch.setenv(name, no_proxy)
            provider = OpenAICompatible(OPENAI, Secret(KEY), base_url=url, limit=1)
            await run_call(provider, make_call(), Recorder())
            await provider.close()
            nobody = OpenAICompatible(OPENAI, Secret(KEY), base_url=f"https://127.0.0.1:{free_port()}/v1", limit=1)
            with pytest.raises(ProviderUnreachable):
                await run_call(nobody, make_call(), Recorder())
            await nobody.close()
            assert (server.connections, proxy.connections) == (1, 0)

    asyncio.run(main())


@pytest.mark.parametrize("key", [KEY, None])
def test_no_netrc_adds_or_replaces_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str | None) -> None:
    for name in (".netrc", "_netrc"):
        (tmp_path / name).write_text("machine 127.0.0.1 login somebody password secret\ndefault login a password b\n")
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    server, _ = run_against(answer, make_call(), preset=LOCAL, key=key)
    assert server.exchanges[0].headers.get("authorization") == (f"bearer {key}" if key else None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_a_call_elsewhere(status: int) -> None:
    async def main() -> None:
        async with serving(answer) as (elsewhere, target):

            async def redirect(exchange: Exchange) -> None:
                await exchange.send(b"", status=f"{status} Moved", more=f"Location: {target}/chat/completions\r\n")

            async with serving(redirect) as (server, url):
                provider = OpenAICompatible(OPENAI, Secret(KEY), base_url=url, limit=1)
                found = await asyncio.gather(run_call(provider, make_call(), Recorder()), return_exceptions=True)
                await provider.close()
                assert getattr(found[0], "status", None) == status
                assert (len(server.exchanges), elsewhere.connections) == (1, 0)

    asyncio.run(main())


# What a provider may send.


@pytest.mark.parametrize(
    "more",
    [
        pytest.param("X-Long: " + "x" * 9000 + "\r\n", id="a long line"),
        pytest.param("".join(f"X-{number}: y\r\n" for number in range(200)), id="many lines"),
    ],
)
def test_a_head_has_its_limits(more: str) -> None:
    async def send(exchange: Exchange) -> None:
        await exchange.send(ANSWER, more=more)

    _, [found] = run_against(send, make_call())
    assert isinstance(found, ProviderUnreachable)
    assert "not HTTP as we accept it" in str(found)
    assert "xxx" not in str(found)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("compressed", [False, True], ids=["as it is", "compressed"])
def test_an_answer_without_end_is_cut_at_its_limit(*, stream: bool, compressed: bool) -> None:
    async def main() -> None:
        async def send(exchange: Exchange) -> None:
            event = b'data: {"choices": [{"index": 0, "delta": {"content": "' + b"a" * 3000 + b'"}}]}\n\n'
            body = event * 1000 if stream else ANSWER.replace(b"hi", b"a" * 3_000_000)
            kind = "text/event-stream" if stream else "application/json"
            more = "Content-Encoding: gzip\r\n" if compressed else ""
            await exchange.send(gzip.compress(body) if compressed else body, kind=kind, more=more)

        async with serving(send) as (server, url):
            bounds = Bounds(answer=100_000, stream=100_000)
            provider = OpenAICompatible(OPENAI, Secret(KEY), base_url=url, limit=1, bounds=bounds)
            with pytest.raises(BrokenAnswer, match="longer than 100000 bytes"):
                await run_call(provider, make_call(stream=stream), Recorder())
            counts = provider.counts()
            assert counts is not None
            assert counts.open == 0, "the rest is not waited for"
            assert server.connections == 1
            await provider.close()

    asyncio.run(main())


# TLS.

PROGRAM = """
import asyncio, json, ssl, sys
from callpool.manager.errors import CallpoolError
from callpool.workers.call import run_call
from callpool.workers.providers.openai_compatible import OpenAICompatible
from callpool.workers.providers.presets import LOCAL
from tests.workers.recorder import Recorder
from tests.workers.test_providers_http import Server, answer, make_call

async def main():
    silent = []
    async def respond(exchange):
        if b"silence" in exchange.body:
            exchange.writer.transport.pause_reading()  # so that it does not say goodbye either
            silent.append(exchange)
        else:
            await answer(exchange)
    server = Server(respond)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{listening.sockets[0].getsockname()[1]}/v1"
    provider = OpenAICompatible(LOCAL, None, base_url=url, limit=2, warm=1)
    provider.warm()
    facts = {}
    try:
        for _ in range(2):
            facts["answer"] = (await run_call(provider, make_call(), Recorder())).content
        call = asyncio.ensure_future(run_call(provider, make_call(content="silence"), Recorder()))
        while not silent:
            await asyncio.sleep(0.002)
        [protocol] = [each for each in provider._connections._pool._acquired]
        sock = protocol.transport.get_extra_info("socket")
        call.cancel()
        await asyncio.wait([call])
        began = asyncio.get_running_loop().time()
        while sock.fileno() >= 0 and asyncio.get_running_loop().time() < began + 10:
            await asyncio.sleep(0.002)
        facts["closed"] = sock.fileno() < 0
    except CallpoolError as error:
        facts["error"] = [error.code, error.phase, error.retryable]
    counts = provider.counts()
    facts["connections"], facts["reused"] = server.connections, counts.reused
    await provider.close()
    listening.close()
    print(json.dumps(facts))
    sys.stdout.flush()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for `localhost` that nobody has signed, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    made = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    where = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(
        [openssl, "req", "-x509", "-nodes", "-newkey", "rsa:2048", *made, *where], check=True, capture_output=True
    )
    return paths


def over_tls(certificate: tuple[Path, Path], **variables: str) -> Any:
    """What came of calls over TLS in a program of its own: the authorities are read when aiohttp is imported."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, certificate)],
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_certificate_that_nobody_signed_is_refused_for_good(certificate: tuple[Path, Path]) -> None:
    facts = over_tls(certificate)
    assert facts["error"] == ["provider_unreachable", "connect", False]
    assert "answer" not in facts


def test_ssl_cert_file_is_whom_to_trust_and_a_cancel_waits_for_no_goodbye(certificate: tuple[Path, Path]) -> None:
    facts = over_tls(certificate, SSL_CERT_FILE=str(certificate[0]))
    assert facts.pop("reused") >= 2
    assert facts.pop("connections") <= 2
    assert facts == {"answer": "hi", "closed": True}
