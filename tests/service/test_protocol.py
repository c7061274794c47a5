"""What a client may cost before the application hears of it: the protocol itself, on sockets of this process."""

import asyncio
import resource
import socket

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from service.listen import bind, connections_within
from service.protocol import MAX_HEAD_BYTES, MAX_PIPELINED, BoundedProtocol, Connections

UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
LARGE = 64 * 2**20
LATER_S = 1000.0


class Echo:
    """Answers with method, path and length of the body; /large with 64 MiB; /held once `gate` is set."""

    def __init__(self):
        self.gate, self.seen = asyncio.Event(), []

    async def __call__(self, scope, receive, send):
        size, more = 0, scope["path"] != "/early"
        while more:
            if (message := await receive())["type"] == "http.disconnect":
                return
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        self.seen.append((scope["method"], scope["path"], size))
        if scope["path"] == "/held":
            await self.gate.wait()
        body = b"x" * LARGE if scope["path"] == "/large" else f"{scope['method']} {scope['path']} {size};".encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def talk():
    """`talk(scenario, most=...)`: `await scenario(connect, bounds, app)` beside a listening protocol."""

    def ran(scenario, most=100):
        async def main():
            app, loop = Echo(), asyncio.get_running_loop()
            config, state = Config(app, ws="none", log_config=None, lifespan="off"), ServerState()
            bounds = Connections(most, head_s=10.0, body_s=20.0)
            listening = await loop.create_server(
                lambda: BoundedProtocol(config=config, server_state=state, app_state={}, bounds=bounds), "127.0.0.1", 0
            )
            writers = []

            async def connect(*parts):
                reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
                writers.append(writer)
                for part in parts:
                    writer.write(part)
                await until(lambda: len(bounds.open) >= min(len(writers), most) or writer.is_closing())
                return reader, writer

            try:
                return await asyncio.wait_for(scenario(connect, bounds, app), 20)
            finally:
                app.gate.set()
                for writer in writers:
                    writer.close()
                listening.close()

        return asyncio.run(main())

    return ran


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def rest_of(reader):
    """All that still comes; empty where the server closes without a word."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def answer_of(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
    return int(head.split()[1]), await reader.readexactly(length)


def post(path, *headers, body=b""):
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, ""]).encode() + b"".join(headers) + b"\r\n" + body


@pytest.mark.parametrize("begun", [b"", b"POST /embed HT", b"POST / HTTP/1.1\r\nHost: x\r\n", b"\r\n"])
def test_a_silent_connection_and_half_a_head_are_closed_without_a_word(talk, begun):
    async def scenario(connect, bounds, app):
        reader, _ = await connect(begun)
        (protocol,) = bounds.open
        await until(lambda: not begun or protocol._phase.name == "HEAD")
        bounds.sweep(protocol.since + bounds.head_s - 1)
        assert bounds.open
        bounds.sweep(protocol.since + bounds.head_s + 1)
        assert await rest_of(reader) == b"" and not app.seen

    talk(scenario)


def test_half_a_second_head_is_closed_too_but_not_before_the_first_is_answered(talk):
    async def scenario(connect, bounds, app):
        reader, writer = await connect(post("/held"))
        await until(lambda: app.seen)
        writer.write(b"GET /seco")
        (protocol,) = bounds.open
        await until(lambda: protocol._phase.name == "HEAD")
        bounds.sweep(protocol.since + LATER_S)
        app.gate.set()
        assert await answer_of(reader) == (200, b"POST /held 0;")
        bounds.sweep(protocol.since + LATER_S)
        assert await rest_of(reader) == b""

    talk(scenario)


def test_a_body_that_trickles_behind_an_answer_ends(talk):
    async def scenario(connect, bounds, app):
        reader, _ = await connect(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        assert (await answer_of(reader))[0] == 200
        (protocol,) = bounds.open
        bounds.sweep(protocol.since + bounds.body_s + 1)
        assert b" 408 " in await rest_of(reader)

    talk(scenario)


@pytest.mark.parametrize(
    "part",
    [
        b"T: v\r\n" * 1000,  # trailers
        b"T" * 6000,  # one trailer without end
    ],
)
def test_trailers_without_end_close_the_connection(talk, part):
    async def scenario(connect, bounds, app):
        reader, writer = await connect(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
        for _ in range(4 * MAX_HEAD_BYTES // len(part)):
            writer.write(part)
        await rest_of(reader)  # the reason may be lost behind what was still sent
        await until(lambda: not bounds.open)
        assert not app.seen

    talk(scenario)


@pytest.mark.parametrize("part", [b"1;" + b"e" * 200 + b"\r\nx\r\n", b"1;" + b"e" * 300_000])
def test_a_body_that_is_nearly_all_framing_is_refused(talk, part):
    async def scenario(connect, bounds, app):
        reader, writer = await connect(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1 + 4 * MAX_HEAD_BYTES // len(part)):
            writer.write(part)
        await rest_of(reader)
        await until(lambda: not bounds.open)
        assert not app.seen

    talk(scenario)


def test_small_chunks_and_trailers_are_read(talk):
    async def scenario(connect, bounds, app):
        chunks = b"".join(b"1\r\nx\r\n" for _ in range(5000)) + b"0\r\nT: v\r\nU: w\r\n\r\n"
        reader, writer = await connect(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        assert await answer_of(reader) == (200, b"POST / 5000;")
        writer.write(post("/next"))
        assert await answer_of(reader) == (200, b"POST /next 0;")

    talk(scenario)


def test_the_end_of_one_body_and_the_beginning_of_the_next_may_come_together(talk):
    """A client that was answered before its body was read sends its next request behind it at once."""

    async def scenario(connect, bounds, app):
        body = b"x" * 4 * MAX_HEAD_BYTES
        first = post("/first", body=body)
        reader, writer = await connect(first[:-1])
        (one,) = bounds.open
        await until(lambda: one._body_bytes == len(body) - 1)
        second = post("/second", body=body)
        one.data_received(first[-1:] + second[:-1])  # a socket may cut it elsewhere
        writer.write(second[-1:])
        assert await answer_of(reader) == (200, f"POST /first {len(body)};".encode())
        assert await answer_of(reader) == (200, f"POST /second {len(body)};".encode())

    talk(scenario)


@pytest.mark.parametrize("size", [0, 5, 200_000])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_the_offer_of_an_upgrade_is_ignored_and_its_body_stays_one(talk, size, apart, chunked):
    body = (b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n" * size)[:size]
    framed = (b"%x\r\n%b\r\n" % (size, body) if size else b"") + b"0\r\n\r\n" if chunked else body
    length = b"Transfer-Encoding: chunked\r\n" if chunked else f"Content-Length: {size}\r\n".encode()
    head = b"POST /outer HTTP/1.1\r\nHost: x\r\n" + length + UPGRADE + b"\r\n"

    async def scenario(connect, bounds, app):
        parts = [head + framed + post("/next", body=b"abc")]
        if apart:
            parts = [head, framed, post("/next", body=b"abc")]
        reader, writer = await connect(parts[0])
        for part in parts[1:]:
            await writer.drain()
            await asyncio.sleep(0.01)  # so that it comes in a segment of its own
            writer.write(part)
        found = [await answer_of(reader), await answer_of(reader)]
        assert found == [(200, f"POST /outer {size};".encode()), (200, b"POST /next 3;")]
        assert [path for _, path, _ in app.seen] == ["/outer", "/next"]

    talk(scenario)


def test_a_websocket_and_a_tunnel_are_not_made(talk):
    async def scenario(connect, bounds, app):
        reader, _ = await connect(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert await answer_of(reader) == (200, b"GET /a 0;")
        reader, _ = await connect(b"CONNECT a:80 HTTP/1.1\r\nHost: x\r\n\r\nGET /inner HTTP/1.1\r\n\r\n")
        assert b" 400 " in await rest_of(reader)
        assert [path for _, path, _ in app.seen] == ["/a"]

    talk(scenario)


def test_one_connection_more_closes_the_one_that_has_waited_longest(talk):
    async def scenario(connect, bounds, app):
        held, _ = await connect(post("/held"))
        await until(lambda: app.seen)
        silent = [await connect() for _ in range(3)]
        reader, _ = await connect(post("/fifth"))
        assert await answer_of(reader) == (200, b"POST /fifth 0;")
        assert await rest_of(silent[0][0]) == b""
        assert len(bounds.open) == 4
        app.gate.set()
        assert await answer_of(held) == (200, b"POST /held 0;")

    talk(scenario, most=4)


def test_where_all_connections_are_at_work_one_more_is_told_so(talk):
    async def scenario(connect, bounds, app):
        held = [await connect(post("/held")) for _ in range(2)]
        await until(lambda: len(app.seen) == 2)
        reader, _ = await connect()
        answer = await rest_of(reader)
        assert b" 503 " in answer and b"retry-after: 1" in answer and b"too_many_connections" in answer
        app.gate.set()
        assert [(await answer_of(reader))[0] for reader, _ in held] == [200, 200]

    talk(scenario, most=2)


def test_a_flood_of_pipelined_requests_ends(talk):
    async def scenario(connect, bounds, app):
        reader, _ = await connect(b"GET /held HTTP/1.1\r\n\r\n" * (MAX_PIPELINED + 2))
        assert b" 400 " in await rest_of(reader)

    talk(scenario)


def test_pipelined_requests_are_answered_in_order(talk):
    async def scenario(connect, bounds, app):
        reader, _ = await connect(b"".join(post(f"/{i}", body=b"x" * i) for i in range(MAX_PIPELINED)))
        for i in range(MAX_PIPELINED):
            assert await answer_of(reader) == (200, f"POST /{i} {i};".encode())

    talk(scenario)


def test_a_client_that_does_not_take_its_answer_is_dropped(talk):
    async def scenario(connect, bounds, app):
        await connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        (protocol,) = bounds.open
        await until(lambda: protocol.transport.get_write_buffer_size() > LARGE // 2)
        now = protocol.loop.time()
        bounds.sweep(now)
        bounds.sweep(now + 29)
        assert bounds.open
        bounds.sweep(now + 31)
        await until(lambda: not bounds.open)

    talk(scenario)


def test_a_client_that_takes_its_answer_slowly_gets_it(talk):
    async def scenario(connect, bounds, app):
        reader, _ = await connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        (protocol,) = bounds.open
        await until(lambda: protocol.transport.get_write_buffer_size() > LARGE // 2)
        now = protocol.loop.time()
        bounds.sweep(now)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(LARGE // 2)
        bounds.sweep(now + 31)
        assert head and len(await reader.readexactly(LARGE // 2)) == LARGE // 2

    talk(scenario)


def test_there_are_fewer_connections_where_few_files_may_be_open():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert connections_within(1024) == 192 and connections_within(100) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_host_of_all_addresses_takes_ipv4_too():
    assert socket.has_dualstack_ipv6()
    with bind("::", 0, 5) as listening:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listening.getsockname()[1]), timeout=10).close()
