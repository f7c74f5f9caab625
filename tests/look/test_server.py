"""The socket's messages, its access rules, and how the server stops."""

from __future__ import annotations

import http.client
import json
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from emerald_jax.config import ConfigError
from emerald_jax.envs.base import EnvError
from emerald_jax.look.play_server import PlayServer, entry_controls, take_port
from tests.look.fake import SIDE, FakeSession, serving


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def server(session: FakeSession) -> Iterator[PlayServer]:
    with serving(session, fps=50.0) as (server, _):
        yield server


def player(server: PlayServer, **options: object) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/socket", **options)


def unpack(message: bytes) -> tuple[dict, np.ndarray, np.ndarray | None]:
    (size,) = struct.unpack_from("<I", message)
    head = json.loads(message[4 : 4 + size])
    pixels = np.frombuffer(message[4 + size :], np.uint8)
    shape = (-1, head["height"], head["width"], 3)
    frames = pixels.reshape(shape)
    return head, frames[0], frames[1] if head["beside"] else None


def until(ws: ClientConnection, wanted: str) -> dict:
    """The next frame header or text message that has the entry ``wanted``."""
    for _ in range(400):
        message = ws.recv(timeout=5)
        head = json.loads(message) if isinstance(message, str) else unpack(message)[0]
        if wanted in head and head[wanted] is not None:
            return head
    raise AssertionError(f"no {wanted} in 400 messages")


def column(message: bytes) -> int:
    """Where the fake's bright square stands."""
    return int(unpack(message)[1][5, :, 0].argmax())


def drain(ws: ClientConnection) -> None:
    """Read until the connection ends."""
    for _ in range(400):
        ws.recv(timeout=5)


def frame(ws: ClientConnection) -> bytes:
    message = ws.recv(timeout=5)
    while isinstance(message, str):
        message = ws.recv(timeout=5)
    return message


def say(ws: ClientConnection, **request: object) -> None:
    ws.send(json.dumps(request))


def test_a_player_is_greeted_and_shown_a_frame(server: PlayServer) -> None:
    with player(server) as ws:
        hello = json.loads(ws.recv(timeout=5))
        assert (hello["hello"], hello["env"], hello["updates"]) == ("runs/fake", "fake", 7)
        assert [a["key"] for a in hello["actions"]] == ["", "ArrowLeft", "ArrowRight", " ", "z"]
        assert hello["recorded"] == {"spans": [[3, 9]], "envs": 2}
        head, dream, real = unpack(frame(ws))
        assert (head["step"], head["action"], real) == (0, -1, None)
        assert dream.shape == (SIDE, SIDE, 3)
        assert tuple(dream[5, 5]) == (255, 200, 10)
        assert (head["reward"], head["cont"]) == (0.25, 0.9)
        assert head["confidence"] == [[0.5] * 4] * 4


def test_a_held_key_moves_the_dream_until_it_is_released(
    server: PlayServer, session: FakeSession
) -> None:
    with player(server) as ws:
        say(ws, do="hold", action=2)
        places = {column(frame(ws)) for _ in range(12)}
        assert len(places) > 4
        say(ws, do="hold", action=None)
        for _ in range(6):
            frame(ws)
        assert len({column(frame(ws)) for _ in range(4)}) == 1


def test_a_tap_shorter_than_a_frame_counts(server: PlayServer, session: FakeSession) -> None:
    with player(server) as ws:
        say(ws, do="set", fps=2)
        frame(ws)
        say(ws, do="hold", action=3)
        say(ws, do="hold", action=None)
        for _ in range(3):
            frame(ws)
    assert session.actions.count(3) == 1


def test_the_policy_plays(server: PlayServer, session: FakeSession) -> None:
    with player(server) as ws:
        say(ws, do="set", autopilot=True)
        for _ in range(6):
            frame(ws)
    assert session.actions[-1] is None


def test_reset_from_a_recorded_frame(server: PlayServer) -> None:
    with player(server) as ws:
        say(ws, do="set", fps=1)
        say(ws, do="reset", row=8, env=1)
        for _ in range(3):
            if column(message := frame(ws)) == 8:
                break
        assert unpack(message)[0]["step"] == 0


def test_the_real_environment_next_to_the_dream(server: PlayServer) -> None:
    with player(server) as ws:
        say(ws, do="reset", **{"from": "real"})
        head = until(ws, "beside")
        while not head["beside"]:
            head = unpack(frame(ws))[0]
        _, dream, real = unpack(frame(ws))
        np.testing.assert_array_equal(real, dream[::-1])


def test_settings(server: PlayServer, session: FakeSession) -> None:
    with player(server) as ws:
        say(ws, do="set", steps=1, temperature=0.5, fps=20)
        assert until(ws, "rate")["rate"] < 25
    assert (session.steps, session.temperature) == (1, 0.5)


def test_a_machine_that_is_too_slow_is_reported(session: FakeSession) -> None:
    session.steps = 3  # 120 ms a frame
    with serving(session, fps=50.0) as (server, said), player(server) as ws:
        head = until(ws, "rate")
        assert head["slow"]
        assert head["rate"] < 9
        for _ in range(3):
            frame(ws)
    assert len(said) == 1
    assert "frames per second at S = 3, fewer than the requested 50" in said[0]


def test_without_an_idle_action_the_dream_waits(session: FakeSession) -> None:
    session = FakeSession(names=())
    with serving(session, fps=50.0) as (server, _), player(server) as ws:
        frame(ws)
        time.sleep(0.2)
        assert session.actions == []
        say(ws, do="hold", action=1)
        assert unpack(frame(ws))[0]["action"] == 1


def test_a_dream_that_cannot_begin_leaves_the_page_usable(session: FakeSession) -> None:
    def fail() -> None:
        raise EnvError("fake is not installed: pip install fake")

    session.begin_real = fail
    with serving(session, fps=50.0, beside=True) as (server, _), player(server) as ws:
        assert until(ws, "error")["error"] == "fake is not installed: pip install fake"
        say(ws, do="reset", row=8)
        assert unpack(frame(ws))[0]["step"] == 0


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ("{", "no JSON"),
        ("[1]", "a message is a JSON object"),
        ('{"do": "dance"}', "unknown request 'dance'"),
        ('{"do": "hold", "action": 5}', "action 5 does not exist"),
        ('{"do": "hold", "action": "up"}', "action must be a number, not 'up'"),
        ('{"do": "set", "fps": 1e9}', "frames per second must lie in 1 … 60"),
        ('{"do": "set", "steps": 99}', "decoding steps must lie in 0 … 48, not 99"),
        ('{"do": "set", "temperature": Infinity}', "temperature must be a number"),
        ('{"do": "reset", "row": 99}', "row 99 is not recorded: the rows are 3 to 8"),
    ],
)
def test_invalid_messages_are_answered_and_play_continues(
    server: PlayServer, message: str, answer: str
) -> None:
    with player(server) as ws:
        ws.send(message)
        error = until(ws, "error")["error"] if "hello" in json.loads(ws.recv()) else ""
        assert answer in error
        frame(ws)


def test_a_message_too_long_ends_the_connection_not_the_server(server: PlayServer) -> None:
    with player(server) as ws:
        ws.send("x" * 5000)
        with pytest.raises(ConnectionClosed):
            drain(ws)
    with player(server) as ws:
        frame(ws)


def test_a_second_window_takes_over(server: PlayServer) -> None:
    with player(server) as first:
        frame(first)
        with player(server) as second:
            frame(second)
            with pytest.raises(ConnectionClosed, match="another window"):
                drain(first)
            frame(second)


def fetch(server: PlayServer, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_the_page(server: PlayServer) -> None:
    status, body, headers = fetch(server, "/")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    text = body.decode()
    # No outside address, only the server's own socket.
    assert "http" not in text.replace("http-equiv", "")
    assert "</html>" in text
    assert fetch(server, "/etc/passwd")[0] == 404


def test_other_hosts_and_other_pages_are_refused(server: PlayServer) -> None:
    port = server.port
    assert fetch(server, "/", Host=f"localhost:{port}")[0] == 200
    assert fetch(server, "/", Host=f"evil.example:{port}")[0] == 421
    assert fetch(server, "/", Host=f"127.0.0.1:{port + 1}")[0] == 421
    assert fetch(server, "/", Origin="http://evil.example")[0] == 403
    with pytest.raises(InvalidStatus, match="403"):
        player(server, origin="http://evil.example")
    with player(server, origin=f"http://127.0.0.1:{port}") as ws:
        frame(ws)


def test_nothing_listens_beyond_the_loopback(server: PlayServer) -> None:
    ours = [
        c.laddr.ip
        for c in psutil.Process().net_connections("inet")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == server.port
    ]
    assert ours == ["127.0.0.1"]


def test_it_stops_cleanly_during_play(session: FakeSession) -> None:
    with ExitStack() as stack:
        with serving(session, fps=50.0) as (server, _):
            ws = stack.enter_context(player(server))
            frame(ws)
        assert session.closed
        with pytest.raises(ConnectionClosed):
            drain(ws)
    with pytest.raises(ConnectionRefusedError):
        player(server)


def test_a_port_in_use_is_one_line() -> None:
    with take_port(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is in use: choose another --port"):
            take_port(port)
    # It is free again immediately.
    take_port(port).close()


def test_numbers_and_categories_have_controls() -> None:
    session = FakeSession(sizes=(0, 3))
    with serving(session, fps=50.0) as (server, _), player(server) as ws:
        hello = json.loads(ws.recv(timeout=5))
        assert hello["actions"] == []
        assert hello["idle"] == [0, 0]
        assert hello["entries"] == [
            {"name": "entry 1", "size": 0, "keys": ["ArrowLeft", "ArrowRight"]},
            {"name": "entry 2", "size": 3, "keys": []},
        ]
        until(ws, "step")
        say(ws, do="hold", action=[0.5, 2])
        while until(ws, "step")["action"] != [0.5, 2]:
            pass
        for action, message in (
            ([0, 3], "does not exist: choose in [-1 … 1, 0 … 2]"),
            ([0], "an action must be [2] numbers"),
            (1, "an action must be [2] numbers"),
            ([0, "x"], "action"),
        ):
            say(ws, do="hold", action=action)
            assert message in until(ws, "error")["error"]
        assert session.actions[-1] == [0.5, 2]


@pytest.mark.parametrize(
    ("sizes", "keys"),
    [
        ((0,), [2]),
        ((0, 0), [2, 2]),
        ((2, 0, 5, 0), [0, 2, 0, 2]),
        ((0, 0, 0), [0, 0, 0]),  # sliders alone
        ((2, 3), [0, 0]),
    ],
)
def test_up_to_two_numbers_have_keys(sizes: tuple[int, ...], keys: list[int]) -> None:
    controls = entry_controls(FakeSession(sizes=sizes).agent.spec)
    assert [len(control["keys"]) for control in controls] == keys
    given = [key for control in controls for key in control["keys"]]
    assert len(set(given)) == len(given)
