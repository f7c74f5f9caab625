"""Several processes that train one run: they compute what one does, and end together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emerald_jax.run import Run
from emerald_jax.run.directory import read_rows

ROOT = Path(__file__).parents[2]

#: Twenty updates on batches that depend on nothing but their number.
UPDATES = """
import dataclasses, sys
import jax, numpy as np
from emerald_jax.envs.registry import spec_of
from emerald_jax.presets import get_preset
from emerald_jax.run.hosts import connect
from emerald_jax.training.devices import TrainingAgent, blank, training_devices

config = dataclasses.replace(get_preset("tiny"), devices=int(sys.argv[1]))
# Adam divides by the gradient's size: where that is all rounding, so is the step.
optim = dataclasses.replace(config.optim, model_eps=1e-3, agent_eps=1e-3)
config = dataclasses.replace(config, optim=optim)
hosts = connect(config)
agent = TrainingAgent(config, spec_of(config.env, config.envs), training_devices(config))
programs = agent.programs()
del programs["picture"]
for name, trace in programs.items():
    agent.compile(name, trace())
agent.start()
rng, count, length = np.random.default_rng(0), config.replay.batch, config.replay.length

def values(x):
    shape = (count, *x.shape[1:])
    if x.dtype == bool:
        return rng.random(shape) < 0.1
    return rng.integers(0, 3, shape).astype(x.dtype) * (80 if x.dtype == np.uint8 else 1)

found = []
with jax.transfer_guard("disallow"):
    for number in range(20):
        batch = jax.tree.map(values, agent.blank_batch())
        metrics = agent.update(agent.put(hosts.mine(batch)), number)
        found.append({name: float(x) for name, x in jax.device_get(metrics).items()})
tree = agent.tree()
carry = tree["carry"]
if hosts.count > 1:
    from emerald_jax.training.devices import gather
    carry = gather(carry)
    wide = np.arange(3.0) + hosts.index
    np.testing.assert_array_equal(gather(wide), [0, 1, 2, 1, 2, 3])
if hosts.first:
    state = tree["state"]
    parts = {"state": state.replace(opt_state=()), "moments": state.opt_state, "carry": carry}
    leaves = {f"{k}/{i}": x for k, t in parts.items() for i, x in enumerate(jax.tree.leaves(t))}
    leaves |= {f"metrics/{name}": [m[name] for m in found] for name in found[0]}
    np.savez(sys.argv[2], **leaves)
hosts.close()
"""


#: Waits for the other host, which notices soon that this one has ended.
WAIT = """
import sys, time
from emerald_jax.config import Config
from emerald_jax.run import hosts
hosts.LOST_S = 6
joined = hosts.connect(Config())
joined.exchange(0)
print("joined", flush=True)
if joined.index == int(sys.argv[1]):
    time.sleep(600)
joined.exchange(1)
"""

TRAIN = """
import sys
from emerald_jax.cli import main
sys.exit(main(["train", "tiny", "--log.eval-episodes", "0", *sys.argv[1:]]))
"""


def start(
    script: str, *arguments: str, hosts: int = 1, devices: int = 1, last: tuple[str, ...] = ()
) -> list[subprocess.Popen]:
    """One process for each of ``hosts``, with so many virtual devices each.

    The last one has more arguments.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}")
    started = []
    for index in range(hosts):
        place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts)}
        place |= {"JAX_PROCESS_ID": str(index)}
        env = {**os.environ, "XLA_FLAGS": flags, **(place if hosts > 1 else {})}
        command = [sys.executable, "-c", script, *arguments]
        command += last if index == hosts - 1 else ()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=env, cwd=ROOT, text=True, **pipes))
    return started


def ended(processes: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    try:
        texts = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """State, carry and metrics of the same updates on one host, and on two."""
    folder, found = tmp_path_factory.mktemp("updates"), {}
    for name, hosts, devices in (("1x1", 1, 1), ("1x4", 1, 4), ("2x2", 2, 2), ("2x1", 2, 1)):
        path = folder / f"{name}.npz"
        results = ended(start(UPDATES, str(devices), str(path), hosts=hosts, devices=devices))
        assert [code for code, *_ in results] == [0] * hosts, results
        with np.load(path) as file:
            found[name] = dict(file)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1x4", "2x2", "2x1"])
def test_hosts_and_devices_compute_what_one_does(updates, name):
    expected, found = updates["1x1"], updates[name]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        # Gradients are taken at parameters that differ by rounding, so they differ by more, and
        # their norm is that of hundreds of thousands of squared pixels.
        close = {"state": (1e-5, 1e-5), "moments": (0, 1e-4 * np.abs(value).max(initial=1))}
        rtol, atol = close.get(key.partition("/")[0], (1e-3, 1e-4))
        np.testing.assert_allclose(found[key], value, rtol=rtol, atol=atol, err_msg=key)
        if key.startswith("metrics/"):  # of the first update: at the same parameters
            np.testing.assert_allclose(found[key][0], value[0], rtol=1e-5, atol=1e-5, err_msg=key)


def test_different_hosts_are_refused(tmp_path):
    arguments = (TRAIN, "--logdir", str(tmp_path / "run"))
    found = ended(start(*arguments, hosts=2, last=("--seed", "7")))
    for code, _, errors in found:
        assert code == 2
        assert "host 1 differs from host 0: seed 7, not 0" in errors
        assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_host_that_is_killed_ends_the_other(killed):
    two = start(WAIT, str(killed), hosts=2)
    for process in two:
        while process.stdout.readline() not in ("joined\n", ""):
            pass
    two[killed].kill()
    began, found = time.monotonic(), ended(two)
    assert time.monotonic() - began < 60
    assert found[killed][0] == -signal.SIGKILL
    if killed:
        assert found[0][0] == 75
        (line,) = found[0][2].splitlines()
        assert "host 0 ends, since another host has ended" in line
        assert "no sign of life from host 1" in line
    else:  # JAX's own service has ended, and JAX may abort the process first
        assert found[1][0] in (75, -signal.SIGABRT)


def trains(run: Path, steps: int) -> None:
    """Wait until a run has logged so many steps."""
    deadline = time.monotonic() + 300
    while not any(row["step"] >= steps for row in read_rows(run / "episodes.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def stopping() -> Iterator[list[subprocess.Popen]]:
    """Processes to kill at the end of a test."""
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        process.kill()


@pytest.mark.slow
def test_a_run_of_two_hosts_stops_and_continues_on_one_and_on_two(tmp_path, stopping):
    run = tmp_path / "run"
    arguments = (TRAIN, "--logdir", str(run), "--steps", "100000")
    # SIGTERM to the second host: both save, and leave with 75.
    two = start(*arguments, hosts=2)
    stopping += two
    trains(run, 80)
    two[1].send_signal(signal.SIGTERM)
    found = ended(two)
    assert [code for code, *_ in found] == [75, 75], found
    assert "stopped by SIGTERM" in found[0][1]
    assert "stopped" not in found[1][1], "the first host alone reports"
    (point,) = Run(run).checkpoints
    assert (point.problem, point.lost, point.chunks) == (None, (), 2)
    episodes = read_rows(run / "episodes.jsonl")
    assert {row["env"] for row in episodes} == {0, 1, 2, 3}
    # One host continues with the replay of both, and two again.
    before = point
    for hosts in (1, 2):
        steps = ("--steps", str(before.env_steps + 40))
        found = ended(start(*arguments[:3], *steps, hosts=hosts))
        assert [code for code, *_ in found] == [0] * hosts, found
        after = Run(run).checkpoints[-1]
        assert (after.problem, after.lost) == (None, ())
        assert after.rows > before.rows
        assert after.env_steps >= before.env_steps + 40
        before = after
