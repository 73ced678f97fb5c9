"""Who is let in: every kind of caller against every kind of listener, on loopback servers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority, Pair
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cbir.client import AsyncClient, Client, Tls, Token
from cbir.core.errors import ConfigurationError
from cbir.server.access import Access, Listener, ServerTls
from cbir.server.transport import Server
from cbir.v1 import admin_pb2, admin_pb2_grpc, search_pb2_grpc
from cbir.v1 import search_pb2 as pb

TOKENS = {name: hashlib.sha256(name.encode()).hexdigest()[:40] for name in ("shop", "pictures", "operator", "old")}
BY_ID = pb.SearchRequest(query=pb.Query(image_id="twin"))
Code = grpc.StatusCode


def write_tokens(path: Path, **changes: str) -> Path:
    """The tokens of the tests; as digests, but for one."""
    scopes = {"shop": '["search"]', "pictures": '["search", "image"]', "operator": '["admin"]', "old": '["search"]'}
    text = ""
    for name, token in TOKENS.items():
        digest = hashlib.sha256(token.encode()).hexdigest()
        what = f'token = "{token}"' if name == "shop" else f'sha256 = "{digest}"'
        text += f'[[tokens]]\nname = "{name}"\n{what}\nscopes = {changes.get(name, scopes[name])}\n'
    path.touch(0o600)
    path.write_text(text + "expires = 2020-01-01T00:00:00Z\n")
    return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "authority")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


@asynccontextmanager
async def channel(address: str, ca: Path | None = None, own: Pair | None = None) -> AsyncIterator[grpc.aio.Channel]:
    tls = Tls(ca, own and own.certificate, own and own.key) if ca else None
    opened = grpc.aio.secure_channel(address, tls.credentials()) if tls else grpc.aio.insecure_channel(address)
    async with opened:
        yield opened


async def call(opened: grpc.aio.Channel, method: str, token: str | None = None) -> Code:
    """Call a method; how it ended.

    Where a stream is refused before its first message is sent, gRPC's client may tell of that message instead: then it
    is asked again.
    """
    for _ in range(20):
        if (code := await call_once(opened, method, token)) is not None:
            return code
    raise AssertionError(f"{method}: the client never came to tell what the server said")


async def call_once(opened: grpc.aio.Channel, method: str, token: str | None) -> Code | None:
    """As :func:`call`; None where the client tells of a message that it could not send."""
    metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
    settings: dict[str, Any] = {"metadata": metadata, "timeout": 5}
    search, admin = search_pb2_grpc.SearchServiceStub(opened), admin_pb2_grpc.AdminServiceStub(opened)
    try:
        if method == "Search":
            await search.Search(BY_ID, **settings)
        elif method == "SearchStream":
            stream = search.SearchStream(**settings)
            await stream.write(pb.SearchStreamRequest(request=BY_ID))
            await stream.done_writing()
            assert [answer async for answer in stream]
        elif method == "GetIndexInfo":
            await search.GetIndexInfo(pb.GetIndexInfoRequest(), **settings)
        elif method == "GetImage":
            assert [chunk async for chunk in search.GetImage(pb.GetImageRequest(image_id="twin"), **settings)]
        elif method == "ReloadIndex":
            await admin.ReloadIndex(admin_pb2.ReloadIndexRequest(), **settings)
        elif method == "health":
            await health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(), **settings)
        else:
            reflect = reflection_pb2_grpc.ServerReflectionStub(opened).ServerReflectionInfo
            requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            assert [answer async for answer in reflect(requests, **settings)]
    except asyncio.InvalidStateError:
        return None
    except grpc.aio.AioRpcError as error:
        # Every error of the server's own comes with details.
        unsent = error.code() is Code.INTERNAL and not error.trailing_metadata()
        return None if unsent else error.code()
    return Code.OK


#: Token -> what it may do on the public listener, in the order of the methods below.
METHODS = ("Search", "SearchStream", "GetIndexInfo", "GetImage", "ReloadIndex", "health", "reflection")
NO, WHO, YES, NONE = Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.OK, Code.UNIMPLEMENTED
PUBLIC = {
    None: (WHO, WHO, WHO, WHO, NO, YES, NONE),
    "a wrong one": (WHO, WHO, WHO, WHO, NO, YES, NONE),
    "": (WHO, WHO, WHO, WHO, NO, YES, NONE),
    TOKENS["old"]: (WHO, WHO, WHO, WHO, NO, YES, NONE),
    TOKENS["shop"]: (YES, YES, YES, NO, NO, YES, NONE),
    TOKENS["pictures"]: (YES, YES, YES, YES, NO, YES, NONE),
    TOKENS["operator"]: (NO, NO, NO, NO, NO, YES, NONE),
}
ADMIN = {
    None: (NONE, NONE, NONE, NONE, WHO, YES, WHO),
    "a wrong one": (NONE, NONE, NONE, NONE, WHO, YES, WHO),
    TOKENS["old"]: (NONE, NONE, NONE, NONE, WHO, YES, WHO),
    TOKENS["pictures"]: (NONE, NONE, NONE, NONE, NO, YES, NO),
    TOKENS["operator"]: (NONE, NONE, NONE, NONE, YES, YES, YES),
}


async def test_the_access_matrix(serve: Any, tiny: Any, tmp_path: Path, authority: Authority, pair: Pair) -> None:
    """No token, wrong, expired, right and wrong scope, plaintext to TLS, wrong authority, admin on the public port."""
    access = Access(ServerTls(pair.certificate, pair.key), write_tokens(tmp_path / "tokens.toml"))
    async with serve(access=access) as running:
        for table, address, ca in (
            (PUBLIC, running.server.address, authority.file),
            (ADMIN, running.server.admin_address, None),
        ):
            async with channel(address, ca) as opened:
                for token, expected in table.items():
                    found = tuple([await call(opened, method, token) for method in METHODS])
                    assert found == expected, (address, token)
        other = Authority(tmp_path, "other")
        for ca in (None, other.file):
            async with channel(running.server.address, ca) as opened:
                for method in METHODS:
                    assert await call(opened, method, TOKENS["pictures"]) is Code.UNAVAILABLE
        # Without tokens everybody may search, and admin calls still have a listener of their own.
    async with serve() as running:
        async with channel(running.server.address) as opened:
            found = tuple([await call(opened, method) for method in METHODS])
            assert found == (YES, YES, YES, YES, NO, YES, NONE)
        async with channel(running.server.admin_address) as opened:
            assert await call(opened, "ReloadIndex") is Code.OK
    async with (
        serve(access=Access(expose=frozenset({"reflection"}))) as running,
        channel(running.server.address) as opened,
    ):
        assert (await call(opened, "health"), await call(opened, "reflection")) == (NONE, YES)


async def test_refusals_are_said_in_words_and_read_nothing(
    serve: Any, tmp_path: Path, authority: Authority, failure: Any
) -> None:
    tokens = write_tokens(tmp_path / "tokens.toml")
    async with serve(access=Access(tokens=tokens)) as running:
        for token, reason in (
            (None, "TOKEN_MISSING"),
            ("x" * 5000, "TOKEN_MISSING"),
            ("wrong", "TOKEN_UNKNOWN"),
            (TOKENS["old"], "TOKEN_EXPIRED"),
            (TOKENS["operator"], "SCOPE_MISSING"),
        ):
            metadata = (("authorization", f"bearer {token}"),) if token else ()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                # 30 MiB, which would be unpacked if they were read.
                await running.search.Search(
                    pb.SearchRequest(query=pb.Query(image=bytes(30 * 2**20))), metadata=metadata, timeout=5
                )
            assert failure(caught.value).reason == reason
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await admin_pb2_grpc.AdminServiceStub(running.channel).ReloadIndex(admin_pb2.ReloadIndexRequest())
        assert failure(caught.value).reason == "ADMIN_ELSEWHERE"
        assert running.server.pipeline.tally.admitted == 0


async def test_tokens_are_read_again(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cbir.server.access.tokens._LOOK_EVERY", 0.0)
    tokens = write_tokens(tmp_path / "tokens.toml")
    async with serve(access=Access(tokens=tokens)) as running, channel(running.server.address) as opened:
        assert await call(opened, "GetImage", TOKENS["shop"]) is NO
        write_tokens(tokens, shop='["search", "image"]')
        assert await call(opened, "GetImage", TOKENS["shop"]) is YES
        # A mistake neither lets anybody in nor shuts anybody out.
        for mistake in ("[[tokens", "tokens = 1", '[[tokens]]\nname = "x"\nsha256 = "0"\nscopes = ["search"]\n'):
            tokens.write_text(mistake)
            assert await call(opened, "GetImage", TOKENS["shop"]) is YES
            assert await call(opened, "GetImage", "x") is WHO
        assert "the tokens stay as they were" in caplog.text
        tokens.unlink()
        assert await call(opened, "GetImage", TOKENS["shop"]) is YES
        tokens.touch(0o600)  # no tokens at all: nobody is let in
        assert await call(opened, "GetImage", TOKENS["shop"]) is WHO
    assert TOKENS["shop"] not in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "no valid TOML"),
        ("other = 1", "and nothing else"),
        ('[[tokens]]\nname = "a b"', "no name"),
        ('[[tokens]]\nname = "a"\nscopes = ["search"]', "either sha256 or token"),
        ('[[tokens]]\nname = "a"\ntoken = "short"\nscopes = ["search"]', "fewer than 16"),
        (f'[[tokens]]\nname = "a"\nsha256 = "{"A" * 64}"\nscopes = ["search"]', "64 hexadecimal"),
        (f'[[tokens]]\nname = "a"\nsha256 = "{"a" * 64}"\nscopes = ["all"]', "search, image, admin"),
        (f'[[tokens]]\nname = "a"\nsha256 = "{"a" * 64}"\nscopes = []', "search, image, admin"),
        (f'[[tokens]]\nname = "a"\nsha256 = "{"a" * 64}"\nscopes = ["search"]\nexpires = 2027-01-01T00:00:00', "zone"),
        (f'[[tokens]]\nname = "a"\nsha256 = "{"a" * 64}"\nscopes = ["search"]\nother = 1', "no more"),
        (2 * f'[[tokens]]\nname = "a"\nsha256 = "{"a" * 64}"\nscopes = ["search"]\n', "twice"),
    ],
)
def test_token_files_are_refused_in_a_sentence_that_quotes_no_token(tmp_path: Path, text: str, words: str) -> None:
    from cbir.server.access.tokens import TokenFile

    path = tmp_path / "tokens.toml"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=words) as caught:
        TokenFile(path)
    assert "short" not in str(caught.value)


def test_a_token_file_that_others_may_read_or_write(tmp_path: Path) -> None:
    from cbir.server.access.tokens import TokenFile

    path = write_tokens(tmp_path / "tokens.toml")
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        TokenFile(path)  # it holds one in the clear
    path.write_text(f'[[tokens]]\nname = "a"\nsha256 = "{"a" * 64}"\nscopes = ["search"]\n')
    TokenFile(path)
    path.chmod(0o664)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        TokenFile(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        TokenFile(tmp_path / "none")


async def test_certificates_of_clients(serve: Any, tmp_path: Path, authority: Authority, pair: Pair) -> None:
    access = Access(ServerTls(pair.certificate, pair.key, authority.file))
    mine, stranger = authority.issue("mine"), Authority(tmp_path / "other", "other").issue("stranger")
    async with serve(access=access) as running:
        address = running.server.address
        for own, expected in ((mine, Code.OK), (None, Code.UNAVAILABLE), (stranger, Code.UNAVAILABLE)):
            async with channel(address, authority.file, own) as opened:
                assert await call(opened, "Search") is expected
        tls = Tls(authority.file, mine.certificate, mine.key)
        async with AsyncClient(address, tls=tls) as client:
            assert (await client.search(image_id="twin")).hits


async def test_certificates_are_read_again(
    serve: Any, tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.issue("changing")
    async with serve(access=Access(ServerTls(pair.certificate, pair.key))) as running:
        address = running.server.address
        async with channel(address, authority.file) as opened:
            assert await call(opened, "Search") is Code.OK
            new = Authority(tmp_path / "new", "new")
            good = pair.key.read_bytes()
            pair.key.write_text("no key")  # half of a change
            async with channel(address, authority.file) as again:
                assert await call(again, "Search") is Code.OK
            assert "the certificate stays as it was" in caplog.text
            assert good.decode() not in caplog.text
            new.issue("changing", into=pair)
            async with channel(address, new.file) as again:
                assert await call(again, "Search") is Code.OK
            async with channel(address, authority.file) as again:
                assert await call(again, "Search") is Code.UNAVAILABLE
            # Connections that were there stay.
            assert await call(opened, "Search") is Code.OK


def test_files_of_tls_are_checked_at_the_start(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    other = authority.issue("another")
    for tls in (
        ServerTls(tmp_path / "none", pair.key),
        ServerTls(pair.certificate, other.key),
        ServerTls(pair.key, pair.key),
        ServerTls(pair.certificate, pair.key, pair.key),
    ):
        with pytest.raises(ConfigurationError) as caught:
            tls.credentials()
        assert caught.value.reason == "TLS_UNUSABLE"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_beyond_this_machine_only_with_tls_and_tokens(host: str, tmp_path: Path, tiny: Any, pair: Pair) -> None:
    from cbir.server.deployment import EngineConfig

    tls, mutual = ServerTls(pair.certificate, pair.key), ServerTls(pair.certificate, pair.key, pair.certificate)
    tokens = write_tokens(tmp_path / "tokens.toml")
    for access in (Access(), Access(tls=tls), Access(tokens=tokens), Access(admin=Listener("127.0.0.1"))):
        with pytest.raises(ConfigurationError, match="--insecure") as caught:
            Server(EngineConfig(tiny.index), host=host, access=access)
        assert caught.value.reason == "INSECURE"
    for access in (Access(tls=tls, tokens=tokens), Access(tls=mutual), Access(insecure=True)):
        access.check(Listener(host, 1))
    with pytest.raises(ConfigurationError):  # the admin listener is held to the same
        Access(admin=Listener(host, 1)).check(Listener(host, 1))
    for local in (Listener("localhost"), Listener("127.0.0.2"), Listener("::1"), Listener(path=tmp_path / "s")):
        Access().check(local)


async def test_admin_calls_by_a_socket_of_the_owner_alone(serve: Any, tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left:  # by a server that was killed
        left.bind(str(path))
    caplog.set_level(logging.INFO, "cbir.audit")
    async with serve(access=Access(admin=Listener(path=path))) as running:
        assert running.server.admin_address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with AsyncClient(f"unix:{path}") as client:
            done = await client.reload()
        assert not done.changed
        with pytest.raises(ConfigurationError, match="in use"):
            Listener(path=path).try_it()
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="something else is there"):
        Listener(path=path).try_it()
    with pytest.raises(ConfigurationError, match="its folder is not there"):
        Listener(path=tmp_path / "none/s").try_it()
    line = json.loads(caplog.records[-1].getMessage())
    assert (line["action"], line["outcome"], line["identity"]) == ("ReloadIndex", "unchanged", "unix:")


async def test_admin_calls_are_written_to_the_audit_log(
    serve: Any, own_tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from cbir.server.deployment import EngineConfig

    caplog.set_level(logging.INFO, "cbir.audit")
    access = Access(tokens=write_tokens(tmp_path / "tokens.toml"))
    config = EngineConfig(own_tiny.index, device="cpu", runtime="torch")
    async with serve(config=config, access=access) as running:
        metadata = (("authorization", f"Bearer {TOKENS['operator']}"),)
        request = admin_pb2.ReloadIndexRequest(version="nobody\n\x1b[31m")
        with pytest.raises(grpc.aio.AioRpcError):
            await running.admin.ReloadIndex(request, metadata=metadata)
    text = next(r.getMessage() for r in caplog.records if r.name == "cbir.audit")
    line = json.loads(text)
    assert (line["identity"], line["outcome"]) == ("token:operator", "VERSION_NOT_FOUND")
    assert line["asked"] == request.version
    assert "\x1b" not in text
    assert "\n" not in text
    assert TOKENS["operator"] not in caplog.text


async def test_whose_turn_it_is_no_caller_chooses_at_will(serve: Any, tmp_path: Path) -> None:
    lanes: list[Any] = []
    tokens = write_tokens(tmp_path / "tokens.toml")
    for access, expected in ((Access(tokens=tokens), "token:shop"), (Access(), "ipv4:127.0.0.1")):
        async with serve(access=access) as running:
            search = running.server.pipeline.search

            async def seen(engine: Any, query: Any, key: Any, lane: Any, *rest: Any, search: Any = search) -> bytes:
                lanes.append(lane)
                return bytes(await search(engine, query, key, lane, *rest))

            running.server.pipeline.search = seen
            for name in ("one", "two", "x" * 1000):
                metadata = (("x-client-id", name), ("authorization", f"Bearer {TOKENS['shop']}"))
                await running.search.Search(BY_ID, metadata=metadata)
        assert {lane.identity for lane in lanes} == {expected}
        assert [lane.client for lane in lanes] == ["one", "two", "x" * 64]
        lanes.clear()


async def test_paths_are_told_only_where_that_is_wanted(serve: Any, tiny: Any) -> None:
    from cbir.server.deployment import EngineConfig

    for told in (False, True):
        config = EngineConfig(tiny.index, device="cpu", runtime="torch", expose_paths=told)
        async with serve(config=config) as running:
            for _ in range(2):  # from memory too
                answer = await running.search.Search(BY_ID)
                assert all((hit.uri == str(tiny.pictures / f"{hit.image_id}.png")) is told for hit in answer.hits)
                assert all((hit.uri == hit.image_id) is not told for hit in answer.hits)


async def test_the_client_shows_its_token(serve: Any, tmp_path: Path, authority: Authority, pair: Pair) -> None:
    access = Access(ServerTls(pair.certificate, pair.key), write_tokens(tmp_path / "tokens.toml"))
    file = tmp_path / "token"
    file.write_text(TOKENS["shop"] + "\n")
    async with serve(access=access) as running:
        address, tls = running.server.address, Tls(authority.file)

        def search() -> None:
            with Client(address, tls=tls, token=Token(file=file)) as client:
                assert client.search(image_id="twin").hits
                assert dict(client.search_stream([(1, b"")]))
                file.write_text("wrong")
                with pytest.raises(Exception, match="not known here"):
                    client.search(image_id="twin")
            with Client(address, tls=tls, token=TOKENS["pictures"]) as client:
                assert client.image("twin").media_type == "image/png"
                assert client.wait_ready(5).images

        await asyncio.to_thread(search)
        async with AsyncClient(address, tls=tls, token=TOKENS["shop"]) as client:
            assert (await client.search(image_id="twin")).hits


def test_a_token_is_not_sent_in_the_clear_nor_shown(tmp_path: Path) -> None:
    for target in ("example.org:50051", "192.0.2.1:50051", "dns:///example.org:1"):
        with pytest.raises(ValueError, match="in the clear"):
            Client(target, token="secret-secret")
    with Client("localhost:1", token="secret-secret") as client:
        assert "secret" not in repr(client) + repr(client._token) + repr(client._settings)
    empty = tmp_path / "empty"
    empty.touch()
    for make in (lambda: Token(), lambda: Token("a", file=empty), lambda: Token(file=empty), lambda: Token("a b")):
        with pytest.raises(ValueError):
            make()
    with pytest.raises(ValueError, match="both certificate and key"):
        Tls(certificate="x")
    with pytest.raises(OSError):
        Client("localhost:1", token=Token(file=tmp_path / "none"))
    with pytest.raises(ValueError, match="either tls or credentials"):
        Client("localhost:1", tls=Tls(), credentials=grpc.ssl_channel_credentials())
