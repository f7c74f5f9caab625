import functools
import os
import signal
import time

import numpy as np
import pytest

from emerald_jax.envs import EnvError
from tests.envs.processes import gone, linux, make, pids_of


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

    env = make((Stuck, Stuck, Stuck), Stuck, timeout=2.0)
    env.reset()
    old = pids_of(env)
    start = time.monotonic()
    record = env.step(np.where(np.arange(4) == hangs, 4, 1))
    assert 2.0 <= time.monotonic() - start < 3.9  # one timeout, not two
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
        {"info": {"actions": [1, 2, 3]}},
    ]
    assert [(e.score, e.length) for e in record.episodes] == [(6, 3), (6, 3)]
    assert env.faults == 2
    after = env.step(np.full(3, 0))
    assert after.is_first.tolist() == [True, True, False]
    env.close()


def test_spare_time_is_used_and_a_failure_there_is_told(scripted_env, tmp_path):
    failed = tmp_path / "failed"

    class Eager(scripted_env):
        """Fails once, in spare time after a reset; what replaces it works."""

        ahead = 0

        def work_ahead(self):
            if self.episode == 0 or failed.exists():
                return False
            self.ahead += 1
            if self.ahead < 300:
                return True
            failed.touch()
            raise ValueError("no more flour")

    env = make((scripted_env, functools.partial(Eager, lengths=(9,))))
    env.reset()
    deadline = time.monotonic() + 30
    while not failed.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    record = env.step(np.zeros(2, int))
    assert record.is_last.tolist() == [False, True]
    assert record.episodes[0].extra == {"fault": "raised ValueError: no more flour"}
    assert env.step(np.zeros(2, int)).is_first[1]
    assert env.faults == 1
    env.close()


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
