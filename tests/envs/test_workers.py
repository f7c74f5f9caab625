import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from emerald_jax.envs import EnvError, EnvSpec
from emerald_jax.envs.vector import HostVectorEnv
from emerald_jax.envs.workers import WorkerSeats

SPEC = EnvSpec(name="scripted", image_shape=(4, 4, 3), num_actions=5)
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
from emerald_jax.envs.vector import make_host_vector_env

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


def make(*factories, **settings):
    """Every environment in a worker of its own; in one worker those that come as a tuple."""
    groups = [f if isinstance(f, tuple) else (f,) for f in factories]
    return HostVectorEnv(
        SPEC, [WorkerSeats(group, (4, 4, 3)) for group in groups], seed=0, **settings
    )


def pids_of(env):
    return [group.process.pid for group in env._groups]


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def gone(pids, seconds=5.0):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def children(pid):
    """Process ids of all descendants of ``pid``."""
    found = []
    for task in Path("/proc", str(pid), "task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children(child)]
    return found


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


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
    monkeypatch.setattr("emerald_jax.envs.supervision._CLOSE_SECONDS", 0.2)

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

    env = make(Stuck, scripted_env, Stuck, timeout=1.0)
    env.reset()
    old = pids_of(env)
    start = time.monotonic()
    record = env.step(np.array([4, 1, 4]))
    assert 1.0 <= time.monotonic() - start < 1.9
    assert record.is_last.tolist() == [True, False, True]
    assert [e.extra["fault"] for e in record.episodes] == [
        "gave no answer within envs.worker_timeout"
    ] * 2
    assert record.image[1, 0, 0].tolist() == [1, 1, 1]
    assert gone([old[0], old[2]], 0)
    assert env.step(np.array([0, 0, 0])).is_first.tolist() == [True, False, True]
    env.close()


@linux
def test_a_killed_worker_is_replaced_with_all_its_environments(scripted_env, caplog):
    # Environments 1 to 3 share a worker; at its death 2 is between two episodes, the others are
    # within one.
    long = functools.partial(scripted_env, lengths=(5,))
    env = make(long, (long, scripted_env, long))
    first = env.reset()
    env.step(np.full(4, 1))
    before = env.step(np.full(4, 1))
    assert before.is_last.tolist() == [False, False, True, False]
    old = pids_of(env)
    os.kill(old[1], signal.SIGKILL)
    record = env.step(np.full(4, 2))
    assert record.is_first.tolist() == [False, False, True, False]
    assert record.is_last.tolist() == [False, True, False, True]
    assert not record.is_terminal.any()
    fault = {"fault": "died (killed by signal 9)"}
    assert [(e.env, e.score, e.length, e.extra) for e in record.episodes] == [
        (1, 1 + 2, 3, fault),
        (3, 1 + 2, 3, fault),
    ]
    assert (record.image[[1, 3]] == before.image[[1, 3]]).all()
    assert record.image[0, 0, 0].tolist() == [1, 3, 2]
    # One event, told once; nobody else is touched, and every new world has a new seed.
    (log,) = caplog.records
    message = "environments 1 to 3 died (killed by signal 9); they are replaced and their episodes"
    assert message in log.getMessage()
    assert (env.faults, pids_of(env)[0]) == (1, old[0])
    after = env.step(np.full(4, 3))
    assert after.is_first.tolist() == [False, True, False, True]
    assert after.image[:, 0, 0].tolist() == [[1, 4, 3], [1, 0, 255], [1, 1, 3], [1, 0, 255]]
    seeds = after.image[:, 0, 1, 0]
    assert (seeds == first.image[:, 0, 1, 0]).tolist() == [True, False, False, False]
    env.close()
    assert gone([*old, *pids_of(env)], 0)


@linux
def test_one_that_raises_leaves_its_worker_and_its_neighbours_alone(scripted_env):
    fails = functools.partial(scripted_env, lengths=(9,), fail_at=2)
    calm = functools.partial(scripted_env, lengths=(9,))
    env = make((calm, fails, calm))
    old = pids_of(env)
    first = env.reset()
    before = env.step(np.full(3, 1))
    record = env.step(np.full(3, 2))
    assert record.is_last.tolist() == [False, True, False]
    assert record.image[:, 0, 0].tolist() == [[1, 2, 2], [1, 1, 1], [1, 2, 2]]
    assert (record.image[1] == before.image[1]).all()
    (episode,) = record.episodes
    assert episode.extra == {"fault": "raised ValueError: the cable is unplugged"}
    after = env.step(np.full(3, 3))
    assert after.is_first.tolist() == [False, True, False]
    assert after.image[:, 0, 0].tolist() == [[1, 3, 3], [1, 0, 255], [1, 3, 3]]
    seeds = after.image[:, 0, 1, 0] == first.image[:, 0, 1, 0]
    assert seeds.tolist() == [True, False, True]
    assert (env.faults, pids_of(env)) == (1, old)
    env.close()


@linux
@pytest.mark.parametrize("hangs", [0, 2])
def test_a_hang_takes_the_worker_after_one_timeout(scripted_env, hangs):
    class Stuck(scripted_env):
        def step(self, action):
            if action == 4:
                time.sleep(60)
            return super().step(action)

    env = make((Stuck, Stuck, Stuck), Stuck, timeout=1.0)
    env.reset()
    old = pids_of(env)
    start = time.monotonic()
    record = env.step(np.where(np.arange(4) == hangs, 4, 1))
    assert 1.0 <= time.monotonic() - start < 1.9
    # Its neighbours' new frames, known or not, are not shown: nobody saw the step end.
    assert record.is_last.tolist() == [True, True, True, False]
    assert record.image[:, 0, 0].tolist() == [*[[1, 0, 255]] * 3, [1, 1, 1]]
    assert {e.extra["fault"] for e in record.episodes} == {
        "gave no answer within envs.worker_timeout"
    }
    assert env.faults == 1
    assert gone(old[:1], 0)
    assert env.step(np.zeros(4, int)).is_first.tolist() == [True, True, True, False]
    env.close()


def test_the_timeout_is_that_of_one_environment_not_of_its_group(scripted_env):
    class Slow(scripted_env):
        def step(self, action):
            time.sleep(0.4)
            return super().step(action)

    env = make((Slow,) * 4, timeout=1.0)
    env.reset()
    start = time.monotonic()
    env.step(np.zeros(4, int))
    assert time.monotonic() - start > 1.5
    assert env.faults == 0
    env.close()


def test_a_worker_lost_while_one_begins_again_keeps_what_was_known(scripted_env, tmp_path):
    # At the second beginning of environment 2 the first try raises and the second kills the
    # worker, when the others have already answered: 0 within an episode, 1 at the end of one.
    class Cursed(scripted_env):
        def reset(self, **kwargs):
            tries = len(list(tmp_path.iterdir()))
            (tmp_path / str(tries)).touch()
            if tries == 1:
                raise OSError("no room")
            if tries == 2:
                os._exit(5)
            return super().reset(**kwargs)

    long, three = (functools.partial(scripted_env, lengths=(n,)) for n in (9, 3))
    env = make((long, three, functools.partial(Cursed, lengths=(2,))))
    env.reset()
    for action in (1, 2):
        record = env.step(np.full(3, action))
    assert record.is_last.tolist() == [False, False, True]
    record = env.step(np.full(3, 3))
    assert record.image[:, 0, 0].tolist() == [[1, 3, 3], [1, 3, 3], [1, 0, 255]]
    assert record.is_first.tolist() == [False, False, True]
    assert record.is_last.tolist() == [True, True, False]
    assert record.is_terminal.tolist() == [False, True, False]
    assert [e.extra for e in record.episodes] == [
        {"fault": "died (exit code 5)"},
        {"actions": [1, 2, 3]},
    ]
    assert [(e.score, e.length) for e in record.episodes] == [(6, 3), (6, 3)]
    assert env.faults == 2
    after = env.step(np.full(3, 0))
    assert after.is_first.tolist() == [True, True, False]
    env.close()


def test_spare_time_is_used_and_a_failure_there_is_told(scripted_env):
    class Eager(scripted_env):
        ahead = 0

        def work_ahead(self):
            self.ahead += 1
            if self.ahead == 300:
                raise ValueError("no more flour")
            return True

        def image(self, action):
            image = super().image(action)
            image[0, 2] = min(self.ahead, 255)
            return image

    env = make((scripted_env, functools.partial(Eager, lengths=(9,))))
    env.reset()
    time.sleep(0.5)
    record = env.step(np.zeros(2, int))
    assert record.is_last.tolist() == [False, True]
    assert record.episodes[0].extra == {"fault": "raised ValueError: no more flour"}
    assert env.step(np.zeros(2, int)).is_first[1]
    assert env.faults == 1
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
def test_no_environment_of_a_group_outlives_the_last_straw(scripted_env):
    env = make((scripted_env,) * 3, scripted_env, max_faults=0)
    env.reset()
    pids = pids_of(env)
    os.kill(pids[0], signal.SIGKILL)
    message = r"scripted: environments 0 to 2 died \(killed by signal 9\) \(failure 1, envs.max"
    with pytest.raises(EnvError, match=message):
        env.step(np.zeros(4, int))
    env.close()
    assert gone(pids, 0)


@linux
def test_a_worker_that_cannot_start_is_reported(scripted_env):
    parent = os.getpid()

    def factory():
        assert os.getpid() != parent
        os._exit(3)

    with pytest.raises(EnvError, match=r"environment 0 died \(exit code 3\) while it started"):
        make(*[factory] * 2)
    message = r"environments 1 to 2 died \(exit code 3\) while they started"
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
    assert [e.extra for e in episodes] == [{"jax": False, "threads": "1"}] * 2
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
    assert gone(family)
