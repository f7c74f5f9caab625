"""One dream that somebody steers: a state, what moves it, and the real environment beside it.

Nothing here knows a network or a page: the server calls :meth:`DreamSession.step` as often as it
shows a frame. Not thread-safe: call it from one thread.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.agent.acting import Observation, act
from emerald_jax.agent.agent import Agent
from emerald_jax.agent.dream import Dreamt, Shown, dream_step, sample_policy, show
from emerald_jax.agent.state import Learner, init_carry
from emerald_jax.config import ConfigError
from emerald_jax.envs.base import VectorEnv, VectorStep
from emerald_jax.envs.registry import make_vector_env
from emerald_jax.replay import ReplayError
from emerald_jax.run.recordings import Recordings
from emerald_jax.types import Array, Carry, Key, Params, State

#: Real frames the model reads before a dream begins from a recorded one.
CONTEXT = 8
#: Tokens colder or hotter than this are of no use, and 0 would divide.
TEMPERATURES = (0.05, 4.0)
_SEED_OFFSET = 3_000_017


class Picture(NamedTuple):
    """One frame of a played dream.

    Attributes:
        frame: `[height, width, 3]` uint8.
        reward: predicted reward that came with it.
        cont: predicted probability that the episode goes on.
        confidence: `[h, w]` float32, of each latent position; 1 on a frame that was read.
        step: imagined steps since the dream began.
        action: what led here; -1 where the dream begins.
        real: `[height, width, 3]` uint8 of the environment beside, or None.
        real_reward: its reward.
        real_over: its episode has ended; ``real`` is its last frame.
    """

    frame: np.ndarray
    reward: float
    cont: float
    confidence: np.ndarray
    step: int
    action: int
    real: np.ndarray | None
    real_reward: float
    real_over: bool


class DreamSession:
    """See the module docstring.

    Attributes:
        agent: whose dream it is.
        recordings: where a dream may begin.
        steps: decoding steps S; change it with :meth:`configure`.
        temperature: of the tokens.
    """

    def __init__(self, agent: Agent, recordings: Recordings, *, seed: int = 0) -> None:
        """Prepare; :meth:`begin_recorded` or :meth:`begin_real` makes the first frame.

        Args:
            agent: from :func:`loaded.load`.
            recordings: of the same run; may be empty.
            seed: of everything random.
        """
        self.agent, self.recordings = agent, recordings
        self.steps, self.temperature = agent.config.behavior.decode_steps, 1.0
        self._rng = np.random.default_rng(seed)
        self._seed, self._key = seed, jax.random.key(seed)
        self._see = jax.jit(partial(_see, learner=agent.learner))
        self._step = jax.jit(partial(_step, learner=agent.learner), static_argnames="steps")
        self._env: VectorEnv | None = None
        self._record: VectorStep | None = None
        self._count = 0
        self._dreamt = 0
        self._carry: Any = None
        self._choice: Any = None

    @property
    def beside(self) -> bool:
        """Whether the real environment runs beside this dream."""
        return self._record is not None

    def configure(self, *, steps: int | None = None, temperature: float | None = None) -> None:
        """Change how tokens are drawn from now on; a new S is compiled at the next step.

        Raises:
            ConfigError: when a value is out of range.
        """
        tokens = self.agent.config.tokens
        if steps is not None and not 0 <= steps <= tokens:
            raise ConfigError(f"decoding steps must lie in 0 … {tokens}, not {steps}")
        low, high = TEMPERATURES
        if temperature is not None and not low <= temperature <= high:
            raise ConfigError(f"temperature must lie in {low} … {high}, not {temperature}")
        self.steps = self.steps if steps is None else steps
        self.temperature = self.temperature if temperature is None else temperature

    def begin_recorded(self, env: int | None = None, row: int | None = None) -> Picture:
        """Read the recorded frames up to one, and dream from there.

        Args:
            env: environment that was recorded; None draws one.
            row: row of the frame; None draws one.

        Raises:
            ReplayError: when it is not recorded.
        """
        if not len(self.recordings):
            raise ReplayError("no frames are recorded: begin from the real environment instead")
        if env is None or row is None:
            clip = self.recordings.draw(CONTEXT, self._rng)
        else:
            clip = self.recordings.before(env, row, CONTEXT)
        self._record = None
        return self._read(clip.image, clip.action)

    def begin_real(self) -> Picture:
        """Begin a new episode of the real environment, which goes on beside the dream.

        Raises:
            EnvError: when it cannot be made here.
        """
        if self._env is None:
            config = self.agent.config
            envs = replace(config.envs, count=1, workers="inline")
            self._env = make_vector_env(config.env, envs, seed=self._seed + _SEED_OFFSET)
        self._record = self._env.reset()
        return self._read(self._record.image, np.array([-1], np.int32))

    def step(self, action: int | None) -> Picture:
        """Imagine one frame.

        Args:
            action: what to do; None lets the agent's policy choose.

        Raises:
            ConfigError: when there is no such action.
        """
        if self._carry is None:
            raise ConfigError("the dream has not begun: reset it first")
        if action is not None and not 0 <= action < self.agent.spec.num_actions:
            raise ConfigError(
                f"action {action} does not exist: choose below {self.agent.spec.num_actions}"
            )
        chosen = self._choice if action is None else np.array([action], np.int32)
        self._carry, dreamt, shown, choice = self._step(
            self.agent.params,
            self._carry,
            chosen,
            self._key,
            np.uint32(self._tick()),
            np.float32(self.temperature),
            steps=self.steps,
        )
        self._dreamt += 1
        taken = int(chosen[0])
        if self._record is not None and not self._record.is_last[0]:
            self._record = self._env.step(np.array([taken], np.int32))
        return self._picture(shown, dreamt.confidence, choice, taken)

    def close(self) -> None:
        """Close the real environment; safe to call twice."""
        if self._env is not None:
            self._env.close()
            self._env = self._record = None

    def _read(self, images: np.ndarray, actions: np.ndarray) -> Picture:
        """Forget everything, read real frames, show the newest as the model sees it."""
        self._carry = jax.device_put(
            init_carry(self.agent.learner, 1), jax.tree.leaves(self.agent.params)[0].sharding
        )
        self._dreamt = 0
        for image, action in zip(images, actions, strict=True):
            seen = Observation(image[None], action[None], action[None] < 0)
            self._carry, shown, choice = self._see(
                self.agent.params, self._carry, seen, self._key, np.uint32(self._tick())
            )
        return self._picture(shown, np.ones(self._carry.z.shape, np.float32), choice, -1)

    def _tick(self) -> int:
        """A number that no other draw of this session had."""
        self._count += 1
        return self._count

    def _picture(self, shown: Shown, confidence: Any, choice: Any, action: int) -> Picture:
        self._choice = np.asarray(choice)
        shown = jax.device_get(shown)
        confidence = np.asarray(confidence)[0].mean(-1)
        side = round(len(confidence) ** 0.5)
        record = self._record
        return Picture(
            frame=shown.frame[0],
            reward=float(shown.reward[0]),
            cont=float(shown.cont[0]),
            confidence=confidence.reshape(side, side),
            step=self._dreamt,
            action=action,
            real=None if record is None else record.image[0],
            real_reward=0.0 if record is None else float(record.reward[0]),
            real_over=record is not None and bool(record.is_last[0]),
        )


def _see(
    params: dict[str, Params],
    carry: Carry,
    seen: Observation,
    base: Key,
    index: Array,
    *,
    learner: Learner,
) -> tuple[Carry, Shown, Array]:
    """Read one real frame: the carry, what the model sees, what its policy would do."""
    acted = act(params, carry, seen, jax.random.fold_in(base, index), learner=learner)
    return acted.carry, show(params, acted.state, learner=learner), acted.action


def _step(
    params: dict[str, Params],
    carry: Carry,
    action: Array,
    base: Key,
    index: Array,
    temperature: Array,
    *,
    learner: Learner,
    steps: int,
) -> tuple[Carry, Dreamt, Shown, Array]:
    """Imagine one frame, show it, and say what the policy would do next."""
    model_key, policy_key = jax.random.split(jax.random.fold_in(base, index))
    options = dict(learner=learner, steps=steps, temperature=temperature)
    carry, dreamt = dream_step(params, carry, action, model_key, **options)
    state = State(dreamt.z, dreamt.h)
    choice = sample_policy(params, state, jnp.uint32(0), policy_key, learner=learner)
    return carry, dreamt, show(params, dreamt, learner=learner), choice
