import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, VectorEnv, make_vector_env, spec_of
from emerald_jax.envs.gymnax import GymnaxVectorEnv

CATCH = "gymnax:Catch-bsuite"


def make(name=CATCH, *, seed=0, **settings):
    return make_vector_env(name, EnvsConfig(**{"count": 4, "image_size": 16} | settings), seed=seed)


def ball_and_paddle(image):
    """Columns 0..4 of the ball and of the paddle, and the ball's row, in a 16-pixel image."""
    board = image[3:13, :15:3, 0] > 0  # 10 x 5 cells of 1 x 3 pixels
    rows, columns = np.nonzero(board)
    return columns[0], columns[-1], rows[0]


def test_spec():
    spec = spec_of(CATCH, EnvsConfig(image_size=16))
    assert spec == make().spec
    assert spec.image_shape == (16, 16, 3)
    assert (spec.num_actions, spec.time_limit) == (3, 1000)
    assert spec_of(CATCH, EnvsConfig(image_size=16, time_limit=7)).time_limit == 7


def test_catch_by_hand(play):
    # The ball starts in row 0 and falls one row per step: an episode takes 9 steps.
    env = make()
    assert isinstance(env, VectorEnv)
    records, actions = play(env, 25)
    episodes = [e for r in records for e in r.episodes]
    assert [(e.env, e.length, e.terminal) for e in episodes] == [
        (i, 9, True) for _ in range(2) for i in range(4)
    ]
    for t, record in enumerate(records):
        assert (record.is_first == (t % 10 == 0)).all()
        assert (record.is_last == (t % 10 == 9)).all()
        assert (record.is_terminal == record.is_last).all()
        taken = -1 if t % 10 == 0 else actions[t - 1]
        assert (record.action == taken).all()
        for i in range(4):
            ball, paddle, row = ball_and_paddle(record.image[i])
            assert row == t % 10
            # The reward sits on the frame that shows the ball in the paddle's row.
            wanted = (1 if ball == paddle else -1) if t % 10 == 9 else 0
            assert record.reward[i] == wanted
    scores = np.concatenate([records[9].reward, records[19].reward])
    assert [e.score for e in episodes] == scores.tolist()
    assert [r.env_steps for r in records[:11]] == [0, *[4] * 9, 0]


def test_time_limit_is_not_terminal():
    env = make(time_limit=4)
    env.reset()
    for t in range(1, 11):
        record = env.step(np.ones(4, np.int32))
        assert (record.is_last == (t % 5 == 4)).all()
        assert not record.is_terminal.any()
        assert [e.length for e in record.episodes] == [4] * int(record.is_last.sum())


def test_own_time_limit_is_not_terminal():
    # DeepSea is cut after its 8 rows by the environment's own limit or ends by itself; whichever
    # gymnax says must come out.
    game, params = gymnax.make("DeepSea-bsuite")
    env = make("gymnax:DeepSea-bsuite", count=1)
    env.reset()
    _, state = game.reset_env(jax.random.key(0), params)
    for _ in range(8):
        record = env.step(np.zeros(1, np.int32))
        _, state, _, terminated, _ = game.step_env(jax.random.key(1), state, 0, params)
        assert record.is_terminal[0] == bool(terminated)
        assert record.is_last[0] == bool(terminated | game.is_truncated(state, params))


def test_actions_after_last_frames_are_ignored():
    runs = []
    for after in (0, -1, 99):
        env = make()
        env.reset()
        for _ in range(9):
            env.step(np.zeros(4, np.int32))
        runs.append(env.step(np.full(4, after)).image)
    assert (runs[0] == runs[1]).all()
    assert (runs[0] == runs[2]).all()


def test_seeds(play):
    def end(seed, count=4):
        return play(make(seed=seed, count=count), 12)[0][-1].image

    assert (end(0) == end(0)).all()
    assert (end(0) != end(1)).any()
    starts = [make(seed=2, count=n).reset().image for n in (3, 8)]
    assert (starts[0] == starts[1][:3]).all()
    assert len(np.unique(starts[1], axis=0)) > 1


@pytest.mark.parametrize("name", [CATCH, "gymnax:Breakout-MinAtar"])
def test_state_continues_to_the_bit(name, play):
    env, other = make(name), make(name, seed=9)
    play(env, 13)
    state = env.get_state()
    assert all(type(v) is np.ndarray and v.dtype != object for v in state.values())
    rng = np.random.default_rng(1)
    actions = rng.integers(3, size=(20, 4))
    expected = [env.step(a) for a in actions]
    newest = other.set_state({k: v.copy() for k, v in state.items()})
    assert (newest.image == state["record.image"]).all()
    assert newest.episodes == ()
    for record in expected:
        again = other.step(actions[0])
        actions = actions[1:]
        for field in record._fields:
            np.testing.assert_array_equal(getattr(record, field), getattr(again, field))


def test_foreign_state_is_refused(play):
    env, smaller, breakout = make(), make(count=2), make("gymnax:Breakout-MinAtar")
    for e in (env, smaller, breakout):
        e.reset()
    for other in (smaller, breakout):
        with pytest.raises(EnvError, match="this state is not of"):
            env.set_state(other.get_state())
    with pytest.raises(EnvError, match="this state is not of"):
        env.set_state({})


def test_nothing_recompiles(play):
    env = make("gymnax:Breakout-MinAtar")
    play(env, 5)
    env.set_state(env.get_state())
    env.step(np.zeros(4, np.int64))
    env.reset()
    env.step(np.zeros(4, np.int32))
    assert env._advance._cache_size() == 1
    assert env._begin_all._cache_size() == 1


def test_no_implicit_transfers(play):
    with jax.transfer_guard("disallow"):
        # The guard does not reach constants of a trace, so compile first, as the loop does.
        with jax.transfer_guard("allow"):
            env = make()
            play(env, 1)
        env.step(np.zeros(4, np.int32))


def test_resets_a_state_whose_types_a_step_changes():
    class Drifting(type(gymnax.make("Catch-bsuite")[0])):
        """Resets to Python numbers, steps to arrays of other types."""

        def reset_env(self, key, params):
            observation, state = super().reset_env(key, params)
            return observation, state.replace(paddle_x=2, time=0)

        def step_env(self, key, state, action, params):
            *rest, state_ = super().step_env(key, state, action, params)[:2]
            _, _, reward, done, info = super().step_env(key, state, action, params)
            return *rest, state_.replace(time=state_.time + jnp.float32(0.5)), reward, done, info

    env = make()
    env._game = Drifting()
    env._dtypes = jax.eval_shape(env._settled_state, env._keys[0])
    assert env._dtypes.time.dtype == jnp.float32
    env.reset()
    env.step(np.zeros(4, np.int32))
    env.step(np.zeros(4, np.int32))
    assert env._carry.env.time.tolist() == [3.0] * 4
    assert env._advance._cache_size() == 1


def test_breakout_shows_every_channel(play):
    env = make("gymnax:Breakout-MinAtar", image_size=64)
    records, _ = play(env, 3)
    colours = np.unique(records[-1].image.reshape(-1, 3), axis=0)
    # Black, paddle, ball, trail, brick.
    assert len(colours) == 5
    # 10 cells of 6 pixels, centred.
    assert records[-1].image[:, :2].max() == 0
    assert records[-1].image[:, :, :2].max() == 0
    assert records[-1].image[:, :, 2].max() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gymnax:CartPole-v1", "not a grid"),
        ("gymnax:Pendulum-v1", "not a grid"),
        ("gymnax:FrozenLake-misc", "not a grid"),
        ("gymnax:Pong-misc", "does not fit an image of 16 pixels"),
    ],
)
def test_unsuitable_environments_are_refused(name, message):
    with pytest.raises(EnvError, match=message):
        make(name)


def test_order_and_close():
    env = GymnaxVectorEnv(CATCH, "Catch-bsuite", EnvsConfig(count=2, image_size=16), seed=0)
    for call in (env.step_wait, env.get_state, lambda: env.step(np.zeros(2, int))):
        with pytest.raises(EnvError):
            call()
    env.reset()
    env.step_async(np.zeros(2, int))
    for call in (env.get_state, lambda: env.step_async(np.zeros(2, int))):
        with pytest.raises(EnvError):
            call()
    env.close()
    env.close()
