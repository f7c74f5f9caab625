"""Training on the device: what the replay holds and hands out, and settings that differ."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.presets import get_preset
from experiments import on_device
from experiments.study.plan import change

ROWS, LENGTH = 100, 10  # rows held of 4 environments; Catch lasts ten records


@pytest.fixture(scope="module")
def played():
    """A trainer, its values, and an agent after 1,000 vector steps of random play."""
    settings = {"replay.capacity": 4 * ROWS, "replay.prefill": 4000, "replay.batch": 8}
    config = change(get_preset("tiny"), {**settings, "train_ratio": 8.0, "replay.best_of": 4})
    trainer = on_device.Trainer(config)
    values = jax.tree.map(lambda x: x[0], on_device.values_of([config]))
    pupil = jax.jit(lambda: trainer.fill(trainer.begin(jnp.int32(3), values), values))()
    return trainer, values, pupil


@pytest.fixture(scope="module")
def batches(played):
    """Sixty batches in a row, as one `[8, 480]`."""
    trainer, values, pupil = played
    sample = jax.jit(lambda pupil: trainer.sample(pupil, values, jnp.int32(trainer.prefill)))
    found = []
    for number in range(60):
        keys = jax.vmap(jax.random.fold_in, (0, None))(pupil.keys, number)
        pupil, batch = sample(pupil._replace(keys=keys))
        found.append(jax.device_get(batch._replace(carry=None)))
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *found)


def test_the_episodes_held_are_known(played):
    trainer, _, pupil = played
    e = pupil.episodes
    numbers = np.arange(int(e.oldest), int(e.count))
    assert int(e.count) == 4 * (trainer.prefill // LENGTH + 1)
    # All that have a record in the last rows, and nothing else.
    assert int(e.start[numbers[0]]) + LENGTH > trainer.prefill + 1 - ROWS
    assert int(e.start[numbers[0] - 1]) + LENGTH <= trainer.prefill + 1 - ROWS
    ended = numbers[np.asarray(e.length[numbers]) == LENGTH]
    assert len(ended) == 4 * ROWS // LENGTH
    assert set(np.asarray(e.score[ended])) == {-1.0, 1.0}
    for i in ended[4:8]:
        rows = (int(e.start[i]) + np.arange(LENGTH)) % ROWS
        column = jax.tree.map(lambda x, i=i, r=rows: np.asarray(x)[r, int(e.env[i])], pupil.replay)
        assert column.is_first.tolist() == [True] + [False] * (LENGTH - 1)
        assert column.is_terminal.tolist() == [False] * (LENGTH - 1) + [True]
        assert column.reward.sum() == float(e.score[i])


def test_sequences_are_whole_episodes(batches):
    b = batches
    assert b.reset[b.is_first].all()
    assert (b.action[b.is_first] == -1).all()
    assert (b.action[~b.is_first] >= 0).all()
    follows = b.reset[:, 1:]
    assert follows[b.is_last[:, :-1]].all(), "after an end comes a new episode"
    # The ball is above everything else, and falls by one row a step.
    top = (b.image > 0).any((-2, -1)).argmax(-1)
    assert (np.diff(top, axis=1)[~follows] == 1).all()
    assert (np.diff(top, axis=1)[follows] != 1).any()


def test_every_fourth_sequence_reads_good_episodes(batches):
    scores = [batches.reward[i][batches.is_last[i]].mean() for i in range(8)]
    assert min(scores[0], scores[4]) > max(scores[1:4] + scores[5:])


def test_detours_and_played_steps_are_those_of_a_run(played):
    trainer, values, pupil = played
    values, first = values | {"behavior.detours": jnp.float32(0.1)}, trainer.prefill

    @jax.jit
    def steps(pupil):
        def one(pupil, i):
            pupil = trainer.act(pupil, values, first + i)
            step, record = pupil.played, pupil.record
            return pupil, (step.due[:, -1], record.action, step.is_first[:, -1])

        return jax.lax.scan(one, pupil, jnp.arange(3000))

    pupil, (own, action, is_first) = jax.device_get(steps(pupil))
    assert own[is_first].mean() > own[~is_first].mean(), "a detour ends with its episode"
    share = (~own).mean(0)
    assert (np.diff(share) > 0).all()
    assert 0.01 < share[0] < 0.15
    assert 0.2 < share[3] < 0.7
    goes_on = ~own[1:] & ~own[:-1] & ~is_first[1:] & (action[1:] >= 0) & (action[:-1] >= 0)
    assert (action[1:] == action[:-1])[goes_on].mean() > 0.85
    window = pupil.played
    np.testing.assert_array_equal(window.due, own[-window.due.shape[1] :].T)
    np.testing.assert_array_equal(window.is_first, is_first[-window.due.shape[1] :].T)


def test_agents_differ_in_their_settings_alone(played):
    trainer, _, _ = played
    configs = [change(trainer.config, changes) for changes in ({}, {"behavior.gamma": 0.5})]
    values = on_device.values_of(configs)
    np.testing.assert_allclose(values["behavior.gamma"], [0.997, 0.5])
    np.testing.assert_array_equal(values["replay.best_of"], [4, 4])

    @jax.jit
    def seen(values):
        """What networks and optimisers are built from."""
        config = trainer.learner(values).config
        return config.behavior.gamma * config.optim.actor_lr

    found = jax.vmap(seen)(values)
    np.testing.assert_allclose(found, trainer.config.optim.actor_lr * np.array([0.997, 0.5]))
    assert trainer.config.behavior.gamma == 0.997, "the trainer's own settings stay"


@pytest.mark.slow
def test_two_agents_train_and_a_page_is_written(tmp_path):
    agents = ["--agent", "", "--agent", "optim.actor_lr=1e-4", "--seeds", "0", "1"]
    options = ["--updates", "4", "--every", "2", "--out", str(tmp_path)]
    on_device.main(["tiny", *agents, *options])
    page = (tmp_path / "README.md").read_text()
    assert "| actor_lr=1e-4 |" in page
    assert (tmp_path / "agents.png").is_file()


@pytest.mark.parametrize(
    "arguments",
    [["crafter"], ["tiny", "--agent", "model.width=8"], ["tiny", "--all", "train_ratio=5"]],
)
def test_what_does_not_fit_is_refused(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        on_device.main([*arguments, "--out", str(tmp_path / "out")])
    assert error.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
