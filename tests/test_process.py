"""Commands whose terminal, home, directories or limits are unusual: they work, or say why not."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from emerald_jax import cli
from emerald_jax.config import Config, ConfigError, EnvsConfig
from emerald_jax.envs import make_vector_env
from emerald_jax.presets import get_preset
from emerald_jax.process import SafeStream, expand_home, prepare_process
from emerald_jax.run import machine
from emerald_jax.run.directory import check_run_dir, run_dir
from emerald_jax.run.log import RunLogger

#: A command that prints a character which ASCII lacks on both streams, then writes a file. Its
#: exit code is 0 where the file is complete, whatever happens to the output.
COMMAND = """
import sys
from emerald_jax.cli import guarded

def run(words):
    for _ in range(2000):
        sys.stdout.write("return 1.0 \\N{PLUS-MINUS SIGN} 0.1\\n")
        sys.stderr.write("\\N{PLUS-MINUS SIGN} narration\\n")
    sys.stdout.flush()
    with open(sys.argv[1], "w") as file:
        assert file.fileno() > 2, "a closed stream's descriptor was given to a file"
        file.write("saved")
    return 0

sys.exit(guarded(run, [sys.argv[2]]))
"""

#: Environments in worker processes that print at every step.
CHATTY = """
import sys
import gymnasium, numpy as np
from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvSpec
from emerald_jax.envs.host import make_host_vector_env

class Chatty(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        print("reset", flush=True)
        return np.zeros((4, 4, 3), np.uint8), {}

    def step(self, action):
        print("step", flush=True)
        print("step", file=sys.stderr, flush=True)
        return np.zeros((4, 4, 3), np.uint8), 1.0, False, False, {}

spec = EnvSpec(name="chatty", image_shape=(4, 4, 3), num_actions=2)
config = EnvsConfig(count=2, workers="process", processes=2)
env = make_host_vector_env(spec, Chatty, config, seed=0)
env.reset()
for _ in range(5):
    record = env.step(np.zeros(2, int))
    assert record.reward.tolist() == [1.0, 1.0], record.reward
    assert not record.is_last.any()
env.close()
with open(sys.argv[1], "w") as file:
    file.write("saved")
"""


class Broken(io.StringIO):
    """A stream on a full disk."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


@pytest.mark.parametrize(
    "redirect",
    ["> /dev/full", "2> /dev/full", ">&-", "2>&-", ">&- 2>&- <&-", "| true", "2>&1 | head -1"],
)
def test_a_run_is_saved_whatever_happens_to_its_output(tmp_path: Path, redirect: str) -> None:
    shell = f'"$0" -c "$1" saved.txt train {redirect}; echo "${{PIPESTATUS[0]}}" > code.txt'
    command = ["bash", "-c", shell, sys.executable, COMMAND]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "code.txt").read_text() == "0\n"
    assert (tmp_path / "saved.txt").read_text() == "saved"


@pytest.mark.parametrize("redirect", ["> /dev/full 2> /dev/full", ">&- 2>&-"])
def test_environments_in_workers_may_print(tmp_path: Path, redirect: str) -> None:
    command = ["bash", "-c", f'"$0" -c "$1" saved.txt {redirect}', sys.executable, CHATTY]
    subprocess.run(command, cwd=tmp_path, check=False)
    assert (tmp_path / "saved.txt").read_text() == "saved"


def test_a_command_that_only_prints_fails_on_a_full_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMMAND, "saved.txt", "presets"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("emerald-jax: standard output cannot be written to: ")
    assert "No space left" in line


def test_characters_that_a_terminal_lacks_become_question_marks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMMAND, "saved.txt", "eval"]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environ)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "return 1.0 ? 0.1"


def test_text_is_written_again_when_the_disk_has_room() -> None:
    inner = Broken()
    stream = SafeStream(inner)
    stream.write("lost")
    stream.flush()
    assert isinstance(stream.error, OSError)
    inner.full = False
    stream.write("written")
    assert inner.getvalue() == "written"
    assert not stream.isatty()


@pytest.mark.parametrize("stream", [None, Broken()])
def test_the_log_of_a_library_user_survives_too(tmp_path, monkeypatch, stream) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    with RunLogger(tmp_path, get_preset("tiny"), total_steps=100) as logger:
        logger.say("narration")
        logger.progress(50, 5)
        logger.episode(50, {"score": 1.0, "length": 9})
        logger.result("return 1.0")
    assert (tmp_path / "episodes.jsonl").is_file()


def test_the_home_directory_is_expanded(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["train", "tiny", "--logdir=~/x", "--init-from", "~/y", "--to=~", "a~b", "--seed=3"]
    home = [f"--logdir={tmp_path}/x", "--init-from", f"{tmp_path}/y", f"--to={tmp_path}"]
    assert expand_home(words) == ["train", "tiny", *home, "a~b", "--seed=3"]
    with pytest.raises(ConfigError, match="no such home directory"):
        expand_home(["--out=~nobody-of-this-name/x"])
    assert run_dir(Config(logdir="~/x")) == tmp_path / "x"
    assert cli.main(["eval", "~/missing"]) == 2
    assert f"{tmp_path}/missing does not exist" in capsys.readouterr().err


def test_run_directories_are_absolute(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_run_dir(Config(logdir="here")) == tmp_path / "here"


def test_a_deleted_working_directory_is_one_line(tmp_path: Path) -> None:
    shell = 'mkdir gone && cd gone && rmdir ../gone && "$0" -c "$1" train tiny'
    script = "import sys; from emerald_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["bash", "-c", shell, sys.executable, script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "working directory cannot be used (No such file or directory): change to" in line


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EMFILE, "ulimit -n"), (errno.EROFS, "x/y: "), (errno.ENOSPC, "No space left")],
)
def test_errors_of_the_machine_are_one_line(capsys, number: int, said: str) -> None:
    def run(words: list[str]) -> int:
        raise OSError(number, os.strerror(number), "x/y")

    assert cli.guarded(run, ["report"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_too_few_descriptors_for_the_workers_are_one_line(monkeypatch, capsys) -> None:
    def start(self) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def run(words: list[str]) -> int:
        make_vector_env("crafter", EnvsConfig(count=2, workers="process"), seed=0).close()
        return 0

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)
    assert cli.guarded(run, ["eval"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "emerald-jax: Too many open files: raise the limit with ulimit -n"


def test_other_errors_keep_their_traceback() -> None:
    def run(words: list[str]) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    with pytest.raises(FileNotFoundError):
        cli.guarded(run, ["report"])


def test_the_limit_of_open_files_is_raised() -> None:
    script = (
        "import resource; from emerald_jax.process import prepare_process;"
        "prepare_process(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    shell = 'ulimit -Sn 40; ulimit -Hn 300; "$0" -c "$1"'
    command = ["bash", "-c", shell, sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["300", "300"]


def test_a_long_temporary_directory_is_replaced(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    prepare_process()
    assert tempfile.gettempdir() == "/tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="too long for a socket: set TMPDIR"):
        prepare_process()


def test_without_a_home_there_is_no_cache(monkeypatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(machine.Path, "home", no_home)
        assert machine._cache_dir() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert machine._cache_dir() is None
