import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from emerald_jax.envs import EnvError, guards, workers
from tests.envs.processes import alive, children, gone, linux, make, pids_of

ROOT = Path(__file__).parents[2]

# A training script as users write them: JAX at the top, no __main__ guard, an environment of its
# own that gets stuck.
SCRIPT = """
import signal, time
# What a shell starts with "&" ignores SIGINT, and so would this test run and all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
import gymnasium, jax, numpy as np
from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvSpec, make_vector_env
from emerald_jax.envs.host import make_host_vector_env

class Stuck(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return np.zeros((4, 4, 3), np.uint8), {}
    def step(self, action):
        time.sleep(120)

crafter = make_vector_env("crafter", EnvsConfig(count=2, workers="process", processes=2), seed=0)
crafter.reset()
spec = EnvSpec(name="stuck", image_shape=(4, 4, 3), num_actions=2)
stuck = make_host_vector_env(spec, Stuck, EnvsConfig(count=2, processes=2), seed=0)
stuck.reset()
stuck.step_async(np.zeros(2, int))
print(*[group.process.pid for env in (crafter, stuck) for group in env._groups], flush=True)
print(jax.devices()[0].platform, flush=True)
# Short naps: the kernel may hand a signal to a thread of JAX, which does not wake this one,
# and Python raises only here.
for _ in range(1200):
    time.sleep(0.1)
"""


@linux
def test_no_worker_outlives_close(scripted_env):
    env = make(*[scripted_env] * 3)
    pids = pids_of(env)
    assert len(set(pids)) == 3
    assert os.getpid() not in pids
    assert all(map(alive, pids))
    env.reset()
    env.step_async(np.zeros(3, int))
    env.close()
    assert gone(pids, 0)


@linux
def test_a_worker_that_ignores_everything_is_killed(scripted_env, monkeypatch):
    monkeypatch.setattr("emerald_jax.envs.host._CLOSE_SECONDS", 0.2)

    class Deaf(scripted_env):
        def step(self, action):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)

    env = make(Deaf, scripted_env)
    pids = pids_of(env)
    env.reset()
    env.step_async(np.zeros(2, int))
    time.sleep(0.2)
    env.close()
    assert gone(pids, 0)


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_killed_worker_is_replaced(scripted_env, number):
    env = make(scripted_env, scripted_env)
    env.reset()
    env.step(np.zeros(2, int))
    old = pids_of(env)
    os.kill(old[1], number)
    env._groups[1].process.join()
    record = env.step(np.zeros(2, int))
    (episode,) = [e for e in record.episodes if e.env == 1]
    assert episode.extra == {"fault": f"died (killed by signal {int(number)})"}
    assert (episode.length, episode.terminal) == (2, False)
    assert env.step(np.zeros(2, int)).is_first.all()
    new = pids_of(env)
    assert (new[0], env.faults) == (old[0], 1)
    assert new[1] != old[1]
    env.close()
    assert gone([*old, *new], 0)


@linux
def test_workers_are_out_of_reach_of_signals_to_the_group(scripted_env):
    # A cluster sends SIGTERM to the whole group; the parent saves first and then closes them.
    from multiprocessing import forkserver

    env = make(scripted_env, scripted_env)
    env.reset()
    for pid in [*pids_of(env), forkserver._forkserver._forkserver_pid]:
        assert os.getpgid(pid) != os.getpgid(0)
    env.close()


@linux
def test_one_killed_between_episodes_loses_none(scripted_env):
    env = make(scripted_env)
    env.reset()
    env.step(np.zeros(1, int))
    record = env.step(np.zeros(1, int))
    assert record.is_last.all()
    assert "fault" not in record.episodes[0].extra
    os.kill(pids_of(env)[0], signal.SIGKILL)
    record = env.step(np.zeros(1, int))
    assert record.is_first.all()
    assert (record.episodes, env.faults) == ((), 1)
    env.close()


@linux
def test_a_worker_that_hangs_is_replaced(scripted_env):
    class Stuck(scripted_env):
        def step(self, action):
            if action == 4:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(60)
            return super().step(action)

    env = make(Stuck, scripted_env, Stuck, timeout=2.0)
    env.reset()
    old = pids_of(env)
    start = time.monotonic()
    record = env.step(np.array([4, 1, 4]))
    assert 2.0 <= time.monotonic() - start < 3.9  # one timeout, not two
    assert record.is_last.tolist() == [True, False, True]
    assert [e.extra["fault"] for e in record.episodes] == [
        "gave no answer within envs.worker_timeout"
    ] * 2
    assert record.image[1, 0, 0].tolist() == [1, 1, 1]
    assert gone([old[0], old[2]], 0)
    assert env.step(np.array([0, 0, 0])).is_first.tolist() == [True, False, True]
    env.close()


def test_a_slow_caller_is_not_a_hanging_worker(scripted_env):
    env = make(scripted_env, timeout=0.5)
    env.reset()
    env.step_async(np.zeros(1, int))
    time.sleep(0.8)
    env.step_wait()
    assert env.faults == 0
    env.close()


@linux
def test_no_worker_outlives_the_last_straw(scripted_env):
    env = make(scripted_env, scripted_env, max_faults=0)
    env.reset()
    pids = pids_of(env)
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(EnvError, match=r"environment 0 died \(killed by signal 9\) \(failure 1"):
        env.step(np.zeros(2, int))
    env.close()
    assert gone(pids, 0)


@linux
def test_a_worker_that_cannot_start_is_reported(scripted_env):
    parent = os.getpid()

    def factory():
        assert os.getpid() != parent
        os._exit(3)

    with pytest.raises(EnvError, match=r"environment 0 could not start: died \(exit code 3\)"):
        make(*[factory] * 2)
    message = r"environments 1 to 2 could not start: died \(exit code 3\)"
    with pytest.raises(EnvError, match=message):
        make(scripted_env, (scripted_env, factory))


def test_workers_ignore_ctrl_c_and_use_one_thread(scripted_env):
    class Curious(scripted_env):
        def step(self, action):
            os.kill(os.getpid(), signal.SIGINT)
            image, *rest, _ = super().step(action)
            facts = {"jax": "jax" in sys.modules, "threads": os.environ["OMP_NUM_THREADS"]}
            return image, *rest, {"extra": facts}

    before = dict(os.environ)
    env = make(*[lambda: Curious(lengths=(1,))] * 2)
    env.reset()
    episodes = env.step(np.zeros(2, int)).episodes
    env.close()
    assert [e.extra for e in episodes] == [{"info": {"jax": False, "threads": "1"}}] * 2
    assert dict(os.environ) == before


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_killed_run(tmp_path, number):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    run = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    workers = [int(pid) for pid in run.stdout.readline().split()]
    assert len(workers) == 4
    assert run.stdout.readline() == "cpu\n"
    family = children(run.pid)
    assert set(workers) < set(family)
    for pid in workers:
        assert "libjax" not in Path(f"/proc/{pid}/maps").read_text()
    run.send_signal(number)
    run.wait(timeout=60)
    run.stdout.close()
    assert gone(family, 30)


def test_threads_may_start_workers_and_run_environments_at_the_same_time() -> None:
    surroundings = dict(os.environ), sys.stdout, vars(sys.modules["__main__"]).get("__spec__")
    first = threading.Event()

    def overlap(index: int) -> None:
        if index:
            first.wait(1)
        with workers._single_threaded(), workers._hidden_main(), guards.env_code():
            first.set()
            time.sleep(0.05 - 0.02 * index)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(overlap, range(3)))
    assert surroundings == (
        dict(os.environ),
        sys.stdout,
        vars(sys.modules["__main__"]).get("__spec__"),
    )
