import functools
import itertools
import os

import numpy as np
import pytest

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, EnvSpec, VectorEnv
from emerald_jax.envs.host import HostVectorEnv, cores, group_sizes, make_host_vector_env
from emerald_jax.envs.workers import InlineGroup, WorkerGroup

SPEC = EnvSpec(name="scripted", image_shape=(4, 4, 3), num_actions=5)


def each_alone(group):
    return lambda factories, shape: [group([factory], shape) for factory in factories]


def all_together(group):
    return lambda factories, shape: [group(factories, shape)]


GROUPS = {
    "inline": all_together(InlineGroup),
    "inline alone": each_alone(InlineGroup),
    "worker": all_together(WorkerGroup),
    "workers": each_alone(WorkerGroup),
}


@pytest.fixture(params=GROUPS)
def make(request):
    made = []

    def build(*factories, seed=0, spec=SPEC, **settings):
        groups = GROUPS[request.param](factories, (4, 4, 3))
        made.append(HostVectorEnv(spec, groups, seed=seed, **settings))
        return made[-1]

    yield build
    for env in made:
        env.close()


def test_records_follow_the_rules(make, scripted_env):
    # Environment 0: episode 1 dies after 2 steps, episode 2 is cut after 3.
    # Environment 1: every episode takes 4 steps.
    env = make(scripted_env, functools.partial(scripted_env, lengths=(4,)))
    assert isinstance(env, VectorEnv)
    records = [env.reset(), *(env.step(np.full(2, a)) for a in [1, 2, 3, 4, 1, 2, 3])]
    table = [
        # pixel: episode, step, action; action, reward, first, last, terminal
        ((1, 0, 255), -1, 0, True, False, False),
        ((1, 1, 1), 1, 1, False, False, False),
        ((1, 2, 2), 2, 2, False, True, True),
        ((2, 0, 255), -1, 0, True, False, False),
        ((2, 1, 4), 4, 1, False, False, False),
        ((2, 2, 1), 1, 2, False, False, False),
        ((2, 3, 2), 2, 3, False, True, False),
        ((3, 0, 255), -1, 0, True, False, False),
    ]
    for record, (pixel, action, reward, first, last, terminal) in zip(records, table, strict=True):
        assert tuple(record.image[0, 0, 0]) == pixel
        assert record.action[0] == action
        assert record.reward[0] == reward
        assert (record.is_first[0], record.is_last[0]) == (first, last)
        assert record.is_terminal[0] == terminal
    assert [r.is_first[1] for r in records] == [True, *[False] * 4, True, False, False]
    assert [r.env_steps for r in records] == [0, 2, 2, 1, 2, 1, 2, 1]


def test_episodes_match_a_hand_count(make, scripted_env):
    env = make(scripted_env, functools.partial(scripted_env, lengths=(4,)))
    env.reset()
    episodes = [e for a in [1, 2, 3, 4, 1, 2] for e in env.step(np.full(2, a)).episodes]
    assert [(e.env, e.score, e.length, e.terminal) for e in episodes] == [
        (0, 1 + 2, 2, True),
        (1, 1 + 2 + 3 + 4, 4, True),
        (0, 1 + 2 + 3, 3, False),
    ]
    # The action given after the last frame (3, to environment 0) led nowhere.
    assert [e.extra["info"]["actions"] for e in episodes] == [[1, 2], [1, 2, 3, 4], [4, 1, 2]]


def test_records_keep_their_numbers(make, scripted_env, play):
    env = make(scripted_env, scripted_env)
    records, _ = play(env, 4)
    assert [r.image[1, 0, 0, 1] for r in records] == [0, 1, 2, 0, 1]
    first = records[0]
    dtypes = [getattr(first, f).dtype for f in first._fields[:-1]]
    assert dtypes == [np.uint8, np.int32, np.float32, bool, bool, bool]


def test_seeds_differ_between_environments_and_repeat(make, scripted_env):
    def seeds(seed, count):
        return make(*[scripted_env] * count, seed=seed).reset().image[:, 0, 1, 0].tolist()

    assert seeds(3, 4) == seeds(3, 4)
    assert seeds(3, 4)[:2] == seeds(3, 2)
    assert len(set(seeds(3, 4))) == 4
    assert seeds(4, 4) != seeds(3, 4)


def test_reset_cuts_running_episodes_short(make, scripted_env):
    env = make(scripted_env, scripted_env)
    env.reset()
    env.step(np.zeros(2, int))
    env.step_async(np.zeros(2, int))
    record = env.reset()
    assert record.is_first.all()
    assert not record.episodes
    assert [env.step(np.zeros(2, int)).is_last[0] for _ in range(3)] == [False, False, True]


def test_action_after_a_last_frame_may_be_anything(make, scripted_env):
    env = make(scripted_env, scripted_env)
    env.reset()
    env.step(np.array([0, 0]))
    env.step(np.array([0, 0]))
    assert env.step(np.array([-1, 99])).is_first.all()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 5]), "action 5 of environment 1 is not in 0 … 4"),
        (np.array([-1, 0]), "action -1 of environment 0"),
        (np.array([0.5, 0]), "actions must be .2. integers"),
        (np.array([0]), "actions must be .2. integers"),
    ],
)
def test_wrong_actions_are_refused(make, scripted_env, actions, message):
    env = make(scripted_env, scripted_env)
    env.reset()
    with pytest.raises(EnvError, match=message):
        env.step(actions)


def test_wrong_order_is_refused(make, scripted_env):
    env = make(scripted_env)
    with pytest.raises(EnvError, match="step before reset"):
        env.step(np.zeros(1, int))
    env.reset()
    with pytest.raises(EnvError, match="step_wait without step_async"):
        env.step_wait()
    env.step_async(np.zeros(1, int))
    with pytest.raises(EnvError, match="step_async twice"):
        env.step_async(np.zeros(1, int))


def test_a_failing_environment_is_replaced_and_its_episode_cut(make, scripted_env, caplog):
    # Environment 1 raises at its second step, in its second episode too.
    env = make(scripted_env, functools.partial(scripted_env, lengths=(4,), fail_at=2))
    env.reset()
    before = env.step(np.array([1, 2]))
    record = env.step(np.array([1, 3]))
    fault = "raised ValueError: the cable is unplugged"
    assert (record.image[1] == before.image[1]).all()
    assert record.is_last.tolist() == [True, True]
    assert record.is_terminal.tolist() == [True, False]
    assert (record.action[1], record.reward[1]) == (3, 0)
    (_, episode) = record.episodes
    assert (episode.env, episode.score, episode.length, episode.terminal) == (1, 1, 2, False)
    assert episode.extra == {"fault": fault}
    assert env.faults == 1
    (log,) = caplog.records
    assert log.levelname == "WARNING"
    message = log.getMessage()
    assert message.startswith(
        f"scripted: environment 1 {fault}; it is replaced and its episode cut"
    )
    assert "failure 1 of at most 10" in message
    assert "Traceback" in message
    # A new environment: its first episode again, under another seed.
    new = env.step(np.array([0, 0]))
    assert new.is_first.tolist() == [True, True]
    assert (new.image[1, 0, 0] == (1, 0, 255)).all()
    assert new.image[1, 0, 1, 0] != before.image[1, 0, 1, 0]
    assert check_records([before, record, new, env.step(np.array([0, 0]))])


def check_records(records):
    for before, after in itertools.pairwise(records):
        assert (after.is_first == before.is_last).all()
        assert not (after.is_terminal & ~after.is_last).any()
    return True


def test_too_many_failures_end_the_run(make, scripted_env):
    fails = functools.partial(scripted_env, lengths=(9,), fail_at=2)
    env = make(scripted_env, fails, max_faults=2)
    env.reset()
    for _ in range(2):
        assert [env.step(np.zeros(2, int)).is_last[1] for _ in range(3)] == [False, True, False]
    env.step(np.zeros(2, int))
    message = (
        r"^scripted: environment 1 raised ValueError: the cable is unplugged "
        r"\(failure 3, envs.max_worker_failures is 2\)\n"
    )
    with pytest.raises(EnvError, match=message) as caught:
        env.step(np.zeros(2, int))
    assert "Traceback" in caught.value.__notes__[0]
    assert "in step" in caught.value.__notes__[0]
    env.close()
    env.close()


def test_a_failing_reset_is_tried_again(make, scripted_env, tmp_path):
    class Flaky(scripted_env):
        def reset(self, **kwargs):
            tries = len(list(tmp_path.iterdir()))
            (tmp_path / str(tries)).touch()
            if tries in (0, 2, 3):
                raise OSError("no room")
            return super().reset(**kwargs)

    env = make(Flaky, max_faults=3)
    assert env.reset().is_first.all()
    assert env.faults == 1
    # The episode ends well after two steps; it is the next one that cannot begin at once.
    ends = [env.step(np.zeros(1, int)) for _ in range(3)]
    assert [e.extra for r in ends for e in r.episodes] == [{"info": {"actions": [0, 0]}}]
    assert ends[-1].is_first.all()
    assert env.faults == 3


def test_one_that_never_resets_ends_the_run(make, scripted_env):
    class Broken(scripted_env):
        def reset(self, **kwargs):
            raise OSError("no room")

    env = make(Broken)
    with pytest.raises(EnvError, match=r"environment 0 raised OSError: no room .failure 11"):
        env.reset()


def test_one_that_cannot_be_made_is_not_tried_again(make):
    def factory():
        raise OSError("no room")

    with pytest.raises(EnvError, match="environment 0 could not start: raised OSError: no room"):
        make(factory)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 3)), None])
def test_a_wrong_image_is_a_failure(make, scripted_env, image):
    class Lying(scripted_env):
        def image(self, action):
            return image if self.t == 2 else super().image(action)

    env = make(functools.partial(Lying, lengths=(9,)))
    env.reset()
    assert env.step(np.zeros(1, int)).episodes == ()
    (episode,) = env.step(np.zeros(1, int)).episodes
    assert "not a uint8 image of [4, 4, 3]" in episode.extra["fault"]

    class Hopeless(scripted_env):
        def image(self, action):
            return image

    # An environment that has never worked is not tried again.
    with pytest.raises(
        EnvError, match=r"^scripted: environment 0 gave .* at a reset, not a uint8 im"
    ):
        make(Hopeless).reset()


def test_extra_of_numpy_values_is_kept_as_json(make, scripted_env):
    class Lying(scripted_env):
        def step(self, action):
            return *super().step(action)[:4], {"extra": {"x": np.int64(3)}}

    env = make(functools.partial(Lying, lengths=(1,)))
    env.reset()
    (episode,) = env.step(np.zeros(1, int)).episodes
    assert episode.extra == {"info": {"x": 3}}
    assert type(episode.extra["info"]["x"]) is int


def test_state_of_host_environments_cannot_be_saved(make, scripted_env):
    env = make(scripted_env)
    assert env.get_state() is None
    with pytest.raises(EnvError, match="cannot be restored"):
        env.set_state({})


def test_other_spaces_are_refused(make, scripted_env):
    for spec, message in [
        (EnvSpec(name="x", image_shape=(8, 8, 3), num_actions=5), "not a uint8 image of"),
        (
            EnvSpec(name="x", image_shape=(4, 4, 3), num_actions=6),
            r"takes Discrete\(5\), not 6 actions",
        ),
    ]:
        with pytest.raises(EnvError, match=message):
            make(scripted_env, spec=spec)


@pytest.mark.parametrize(
    ("count", "workers", "kind"),
    [
        (1, "auto", InlineGroup),
        (2, "auto", WorkerGroup),
        (2, "inline", InlineGroup),
        (1, "process", WorkerGroup),
    ],
)
def test_workers_setting(scripted_env, count, workers, kind):
    env = make_host_vector_env(SPEC, scripted_env, EnvsConfig(count=count, workers=workers), seed=0)
    assert {type(group) for group in env._groups} == {kind}
    assert env.num_envs == count
    env.close()


def test_groups_are_as_alike_as_can_be():
    assert group_sizes(16, 2) == [8, 8]
    assert group_sizes(5, 2) == [3, 2]
    assert group_sizes(7, 3) == [3, 2, 2]
    assert group_sizes(2, 8) == [1, 1]


@pytest.mark.parametrize(("processes", "sizes"), [(2, [3, 2]), (1, [5]), (9, [1] * 5)])
def test_processes_setting(scripted_env, processes, sizes):
    env = make_host_vector_env(SPEC, scripted_env, EnvsConfig(count=5, processes=processes), seed=0)
    assert [len(group.frames) for group in env._groups] == sizes
    assert len({group.process.pid for group in env._groups}) == len(sizes)
    env.close()


def test_one_process_per_core_is_the_default(scripted_env, monkeypatch):
    monkeypatch.setattr("emerald_jax.envs.host.cores", lambda: 3)
    env = make_host_vector_env(SPEC, scripted_env, EnvsConfig(count=4), seed=0)
    assert [len(group.frames) for group in env._groups] == [2, 1, 1]
    env.close()
    assert 1 <= cores() <= os.cpu_count()


def test_the_grouping_changes_nothing(scripted_env, play):
    lengths = [(2, 3), (4,), (1,), (3, 1), (5, 2)]
    factories = [functools.partial(scripted_env, lengths=n) for n in lengths]
    factories[3] = functools.partial(factories[3], fail_at=5)
    runs = []
    for sizes in ([5], [3, 2], [1, 1, 3], [1] * 5):
        left = iter(factories)
        groups = [WorkerGroup(list(itertools.islice(left, size)), (4, 4, 3)) for size in sizes]
        env = HostVectorEnv(SPEC, groups, seed=7)
        runs.append(play(env, 20)[0])
        assert env.faults == 2
        env.close()
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert one.episodes == other.episodes
            for field in one._fields[:-1]:
                np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
