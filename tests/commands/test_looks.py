"""The commands ``dream``, ``inspect`` and ``play``."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from websockets.sync.client import connect

from emerald_jax import cli
from emerald_jax.config import ConfigError
from emerald_jax.envs.base import EnvSpec
from emerald_jax.look.film import read_actions
from tests.model_cases import little_optimisation

ROOT = Path(__file__).resolve().parents[2]
SPEC = EnvSpec(name="game", image_shape=(16, 16, 3), num_actions=3, action_names=("a", "b", "c"))


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    """Compile the programs of this file with little optimisation."""
    with little_optimisation():
        yield


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The single line that a refused command prints."""
    assert cli.main([str(x) for x in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("emerald-jax: ")
    assert output.err.count("\n") == 1
    return output.err.removeprefix("emerald-jax: ").strip()


@pytest.mark.parametrize(
    ("arguments", "frames"),
    [
        ("--from real --horizon 4 --seed 1", 8),
        ("--from reset --actions FILE --context 1", 6),
    ],
)
def test_dream(
    arguments: str, frames: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    actions = tmp_path / "actions"
    actions.write_text("0\n1\n2\n\n1\n0\n")
    out = tmp_path / "dream.gif"
    options = arguments.replace("FILE", str(actions)).split()
    assert cli.main(["dream", str(run), *options, "--out", str(out)]) == 0
    with Image.open(out) as film:
        assert film.n_frames == frames
    assert "then" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--out x.avi", "--out x.avi must end in .mp4, .gif, .png"),
        ("--out x.gif --horizon 0", "--horizon is 0: it must be in 1 … 10000"),
        ("--out x.gif --temperature 0", "--temperature must be above 0"),
        ("--out x.gif --actions nofile", "--actions takes policy, random, recorded or a file"),
        ("--out x.gif --actions recorded --from reset", "--actions recorded needs --from real"),
        ("--out x.gif --steps 49", "--steps is 49: a latent has 48 tokens"),
        ("--out x.gif --checkpoint 3", "checkpoint"),
    ],
)
def test_bad_dreams_are_refused(
    arguments: str,
    line: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in refusal(capsys, "dream", run, *arguments.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["dream", "inspect", "play"])
def test_no_run_is_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", "x.gif"] if command == "dream" else []
    assert "holds no config.json" in refusal(capsys, command, tmp_path, *options)
    assert "does not exist" in refusal(capsys, command, tmp_path / "nowhere", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["dream", "inspect", "play"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "--checkpoint STEP" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0\n2\n1\n", "[0, 2, 1]", "a\nc\nb", '["a", 2, "1"]'])
def test_actions_in_all_formats(text: str, tmp_path: Path) -> None:
    path = tmp_path / "actions"
    path.write_text(text)
    assert read_actions(path, SPEC) == (0, 2, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"0\n3\n", "action 2 is '3'; game takes 0 … 2, or a name such as a"),
        (b"[0, -1]", "action 2 is -1"),
        (b"[0, true]", "action 2 is True"),
        (b"up\n", "action 1 is 'up'"),
        (b"[0, 1", "is no JSON list of actions"),
        (b"  \n", "holds no actions"),
        (b"\xff\xfe\x00", "cannot be read: it is no text"),
    ],
)
def test_bad_actions_are_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "actions"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        read_actions(path, SPEC)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_actions(tmp_path, SPEC)


class Page(HTMLParser):
    """The contents of a report and its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset"):
                (self.images if tag == "img" else self.addresses).append(value or "")

    def handle_data(self, data: str) -> None:
        if self._inside == "h2":
            self.headings.append(data)
            self._inside = ""


@pytest.mark.slow
def test_inspect_shows_everything_a_run_has(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert cli.main(["inspect", str(run), "--out", str(out)]) == 0
    assert "opens in a browser" in capsys.readouterr().out
    text = out.read_text()
    page = Page(text)
    assert page.headings == [
        *("Settings", "Learning curves", "Success rates", "Parameters"),
        *("Reconstructions and dreams", "Imagined against real reward", "Decoding steps"),
        *("Attention over the past", "Actions", "Imagined and real reward over training"),
        *("Return scale", "Values", "Entropy", "Latent entropy", "Pixel error", "Time"),
    ]
    # Only the latent entropy was never logged.
    assert text.count("Not shown") == 1
    assert "model/posterior_entropy or model/prior_entropy" in text
    assert "model.width" in text
    # The page requests nothing from outside.
    assert all(a.startswith(("#", "data:")) for a in page.addresses), page.addresses
    assert "script" not in page.tags
    assert len(page.images) >= 11
    for image in page.images:
        kind, _, data = image.partition(",")
        assert kind == "data:image/png;base64"
        picture = np.asarray(Image.open(BytesIO(base64.b64decode(data))))
        assert picture.std() > 2


def test_inspect_of_an_empty_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    assert cli.main(["inspect", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "no checkpoint in" in text
    assert "it holds neither episodes nor losses" in text
    assert text.count("Not shown") >= 7
    capsys.readouterr()
    line = refusal(capsys, "inspect", tmp_path, "--out", tmp_path / "report.txt")
    assert "must end in .html" in line


def test_play_serves_until_it_is_stopped(run: Path) -> None:
    command = [sys.executable, "-m", "emerald_jax", "play", str(run), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            line = process.stdout.readline()
            address = re.match(r"http://127\.0\.0\.1:(\d+) is the dream", line)
            assert address, process.stderr.read()
            port = int(address[1])
            with connect(f"ws://127.0.0.1:{port}/socket") as ws:
                assert json.loads(ws.recv(timeout=60))["env"] == "gymnax:Catch-bsuite"
                assert isinstance(ws.recv(timeout=60), bytes)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
        pass


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--port 70000", "--port is 70000"),
        ("--fps 0", "--fps is 0.0: it must be in 1 … 60"),
        ("--speed 3", "unrecognized arguments: --speed 3"),
    ],
)
def test_bad_play_is_refused(
    arguments: str, line: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refusal(capsys, "play", run, *arguments.split())


def test_a_port_in_use_is_reported_before_loading(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A run without weights: if they were loaded first, the error would name them.
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(capsys, "play", tmp_path, "--port", port)
    assert line == f"port {port} is in use: choose another --port"
    assert "no checkpoint" in refusal(capsys, "play", tmp_path, "--port", 0)
