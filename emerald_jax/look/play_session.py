"""Dreams that are steered one step at a time: by a person, or as a Gymnasium environment.

:class:`DreamSession` holds the dream; ``emerald-jax play`` and :class:`DreamEnv` both step it. It
needs no page or network and is not thread-safe: call it from one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.agent import Agent
from emerald_jax.agent.dream import Dreamt, Shown, dream_step, read, sample_policy, show
from emerald_jax.agent.state import Learner
from emerald_jax.config import ConfigError
from emerald_jax.envs.base import EnvSpec, VectorEnv, VectorStep
from emerald_jax.envs.host import gymnasium_space
from emerald_jax.envs.registry import make_vector_env
from emerald_jax.replay import ReplayError
from emerald_jax.run.recordings import Recordings
from emerald_jax.types import Array, Carry, Key, Params, key_of

#: Real frames the model reads before a dream begins from a recorded one.
CONTEXT = 8
#: Range of temperatures; 0 would divide by zero.
TEMPERATURES = (0.05, 4.0)
_SEED_OFFSET = 3_000_017
#: Of one rollout, each with a leading dimension of 1: the carry, what the model's heads show, the
#: confidence of the tokens, and the policy's next action.
_Moved = tuple[Carry, Shown, Array, Array]
#: The session's base key, and a number that no other draw of the session had.
_Draw = tuple[Key, Array | np.uint32]


class Picture(NamedTuple):
    """One frame of a played dream.

    Attributes:
        frame: `[height, width, 3]` uint8.
        reward: predicted reward of the step to this frame.
        cont: predicted probability that the episode continues.
        confidence: `[h, w]` float32, of each latent position; 1 on a frame that was read.
        step: imagined steps since the dream began.
        action: the action that led here, an index or the entries of a vector; -1 where the dream
            begins.
        real: `[height, width, 3]` uint8 of the real environment, or None; ``real_reward`` is its
            reward, and after ``real_over`` it is the last frame of its episode.
    """

    frame: np.ndarray
    reward: float
    cont: float
    confidence: np.ndarray
    step: int
    action: int | list[float]
    real: np.ndarray | None
    real_reward: float
    real_over: bool


class DreamSession:
    """A dream, the policy's next choice in it, and optionally the real environment next to it.

    :meth:`begin`, :meth:`begin_recorded` or :meth:`begin_real` starts a dream. ``recordings`` of
    the agent's run may be empty; :meth:`configure` changes ``steps`` and ``temperature``.
    """

    def __init__(self, agent: Agent, recordings: Recordings, *, seed: int = 0) -> None:
        self.agent, self.recordings = agent, recordings
        self.steps, self.temperature = agent.config.behavior.decode_steps, 1.0
        self._read = jax.jit(partial(_read, learner=agent.learner))
        self._step = jax.jit(partial(_step, learner=agent.learner), static_argnames="steps")
        self._env: VectorEnv | None = None
        self._record: VectorStep | None = None
        self._dreamt, self._carry, self._choice = 0, None, None
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Repeat all draws from here on as in a new session with this seed."""
        self._seed, self._key, self._count = seed, key_of(seed), 0
        self._rng = np.random.default_rng(seed)

    @property
    def beside(self) -> bool:
        """Whether the real environment runs next to this dream."""
        return self._record is not None

    def configure(self, *, steps: int | None = None, temperature: float | None = None) -> None:
        """Change how tokens are drawn from now on; a new S is compiled at the next step.

        Raises ConfigError when a value is out of range.
        """
        tokens = self.agent.config.tokens
        if steps is not None and not 0 <= steps <= tokens:
            raise ConfigError(f"decoding steps must lie in 0 … {tokens}, not {steps}")
        low, high = TEMPERATURES
        if temperature is not None and not low <= temperature <= high:
            raise ConfigError(f"temperature must lie in {low} … {high}, not {temperature}")
        self.steps = self.steps if steps is None else steps
        self.temperature = self.temperature if temperature is None else temperature

    def begin(
        self, images: np.ndarray, actions: np.ndarray, *, real: VectorStep | None = None
    ) -> Picture:
        """Read real frames, and start a dream after the last one, which is reconstructed.

        ``images`` is `[T, height, width, 3]` uint8; ``actions`` `[T]` or `[T, A]`, none where an
        episode begins, led to each image. Each T is compiled once. ``real``: they are the
        environment's.
        """
        self._dreamt, self._record = 0, real
        actions = np.asarray(actions, self.agent.spec.actions.dtype)[:, None]
        return self._picture(
            self._read(self.agent.params, images[:, None], actions, self._draw()), -1
        )

    def begin_recorded(
        self, env: int | None = None, row: int | None = None, context: int = CONTEXT
    ) -> Picture:
        """Start a dream from at most ``context`` recorded frames of one episode.

        The last one is ``row`` of ``env``; None draws one. ReplayError when it is not recorded.
        """
        if not len(self.recordings):
            raise ReplayError("no frames are recorded: begin from the real environment instead")
        if env is None or row is None:
            clip = self.recordings.draw(context, self._rng)
        else:
            clip = self.recordings.before(env, row, context)
        return self.begin(clip.image, clip.action)

    def begin_real(self) -> Picture:
        """Begin an episode of the real environment, which then runs next to the dream."""
        if self._env is None:
            config = self.agent.config
            envs = replace(config.envs, count=1, workers="inline")
            self._env = make_vector_env(config.env, envs, seed=self._seed + _SEED_OFFSET)
        record = self._env.reset()
        return self.begin(record.image, record.action, real=record)

    def step(self, action: int | Sequence[float] | None) -> Picture:
        """Imagine one frame after an action, or after the policy's choice.

        Raises ConfigError when there is no such action.
        """
        if self._carry is None:
            raise ConfigError("the dream has not begun: reset it first")
        chosen = self._choice if action is None else check_action(action, self.agent.spec)[None]
        inputs = (self._carry, chosen, self._draw(), np.float32(self.temperature))
        moved = self._step(self.agent.params, *inputs, steps=self.steps)
        self._dreamt += 1
        if self._record is not None and not self._record.is_last[0]:
            self._record = self._env.step(chosen)
        return self._picture(moved, chosen[0].tolist())

    def close(self) -> None:
        """Close the real environment; safe to call twice."""
        if self._env is not None:
            self._env.close()
            self._env = self._record = None

    def _draw(self) -> _Draw:
        self._count += 1
        return self._key, np.uint32(self._count)

    def _picture(self, moved: _Moved, action: int | list[float]) -> Picture:
        self._carry, *found = moved
        shown, confidence, self._choice = jax.device_get(found)
        confidence = confidence[0].mean(-1)
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


def check_action(action: int | Sequence[float], spec: EnvSpec) -> np.ndarray:
    """One action in our type; ConfigError if it does not exist."""
    space = spec.actions
    try:
        checked = space.checked(action)
    except ValueError as error:
        raise ConfigError(f"an action {error}") from None
    if space.wrong(checked):
        raise ConfigError(f"action {action} does not exist: choose in {space.valid}")
    return checked.astype(space.dtype)


def _read(
    params: dict[str, Params], image: Array, action: Array, draw: _Draw, *, learner: Learner
) -> _Moved:
    """Read `[T, 1]` real frames, and show the last one."""
    read_key, policy_key = jax.random.split(jax.random.fold_in(*draw))
    carry, states = read(params, image, action, read_key, learner=learner)
    state = jax.tree.map(lambda x: x[-1], states)
    dreamt = Dreamt(state.z, state.h, jnp.ones(state.z.shape, jnp.float32))
    return carry, *_look(params, dreamt, policy_key, learner)


def _step(
    params: dict[str, Params], carry: Carry, action: Array, draw: _Draw, heat: Array, **options: Any
) -> _Moved:
    """Imagine one frame with the temperature ``heat``; options: ``learner`` and ``steps``."""
    model_key, policy_key = jax.random.split(jax.random.fold_in(*draw))
    carry, dreamt = dream_step(params, carry, action, model_key, temperature=heat, **options)
    return carry, *_look(params, dreamt, policy_key, options["learner"])


def _look(params: dict[str, Params], dreamt: Dreamt, key: Key, learner: Learner) -> tuple:
    choice = sample_policy(params, dreamt, jnp.uint32(0), key, learner=learner)
    return show(params, dreamt, learner=learner), dreamt.confidence, choice


class DreamEnv(gymnasium.Env):
    """An agent's world model as a Gymnasium environment: every frame is imagined.

    An episode begins after real frames. A step returns the imagined frame and the predicted reward.
    The episode terminates when the predicted probability to continue falls below 0.5, and is
    truncated after ``horizon`` steps. ``info`` holds that probability as ``cont`` and the
    ``confidence`` of the latent positions, `[h, w]`. ::

        agent, recordings = ej.load("runs/catch"), ej.Recordings("runs/catch")
        env = ej.DreamEnv(agent, recordings, horizon=50)
        observation, info = env.reset(seed=0)
        done = False
        while not done:
            observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
            done = terminated or truncated

    Attributes:
        session: the dream itself.
        horizon: steps after which an episode is truncated.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        agent: Agent,
        recordings: Recordings,
        *,
        horizon: int = 50,
        context: int = CONTEXT,
        steps: int | None = None,
        temperature: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        """Prepare; :meth:`reset` starts a dream.

        Args:
            agent: from :func:`emerald_jax.load`.
            recordings: of the same run; may be empty if every reset names a start.
            horizon: steps after which an episode is truncated.
            context: maximum number of recorded frames read before an episode.
            steps: decoding steps S; None uses the run's setting.
            temperature: of the tokens.
            render_mode: ``rgb_array`` or None.

        Raises:
            ConfigError: when a value is out of range.
        """
        if horizon < 1 or context < 1:
            raise ConfigError(f"horizon {horizon} and context {context} must be 1 or more")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode must be rgb_array or None, not {render_mode!r}")
        self.session = DreamSession(agent, recordings)
        self.session.configure(steps=steps, temperature=temperature)
        self.horizon, self._context, self.render_mode = horizon, context, render_mode
        spec = agent.spec
        self.observation_space = gymnasium.spaces.Box(0, 255, spec.image_shape, np.uint8)
        self.action_space = gymnasium_space(spec.actions)
        self._picture: Picture | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a dream.

        Args:
            seed: of this and all later episodes; None continues the sequence of draws.
            options: the start: ``env`` and ``row`` of a recorded frame, or ``image``
                `[T, height, width, 3]` uint8 and ``action`` `[T]` or `[T, A]`, the action that led
                to each image (none where an episode begins). Empty or None draws a recorded clip.

        Returns:
            The last real frame as the model reconstructs it, and ``info``.

        Raises:
            ReplayError: when the start is not recorded.
            ConfigError: when the options do not describe a start.
        """
        super().reset(seed=seed)
        self.session.reseed(int(self.np_random.integers(2**31)))
        given = options or {}
        if set(given) not in ({"image", "action"}, {"env", "row"}, set()):
            raise ConfigError(f"options must be image and action, or env and row, not {[*given]}")
        if "image" in given:
            image, action = np.asarray(given["image"]), np.asarray(given["action"])
            one = self.session.agent.spec.actions.shape
            wanted = (*action.shape[:1], *self.observation_space.shape)
            fits = image.dtype == np.uint8 and image.shape == wanted and action.size
            if not fits or action.shape[1:] != one:
                form = f"action [{', '.join(map(str, ('T', *one)))}]"
                raise ConfigError(
                    f"a start is image [T, height, width, 3] uint8 and {form}, not "
                    f"{image.shape} {image.dtype} and {action.shape}"
                )
            self._picture = self.session.begin(image, action)
        else:
            self._picture = self.session.begin_recorded(**given, context=self._context)
        return self._picture.frame, self._info()

    def step(
        self, action: int | np.integer | np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Imagine one step.

        Returns:
            The imagined frame, the predicted reward, terminated, truncated, and ``info``.

        Raises:
            ConfigError: before the first reset, or when there is no such action.
        """
        action, sizes = np.asarray(action), self.session.agent.spec.action_sizes
        if sizes and action.shape == (len(sizes),):
            # The Box of a mixed action also has values between two classes.
            action = np.where(np.array(sizes) > 0, np.rint(action), action)
        picture = self._picture = self.session.step(action)
        over = picture.step >= self.horizon
        return picture.frame, picture.reward, picture.cont < 0.5, over, self._info()

    def render(self) -> np.ndarray | None:
        """The newest frame, `[height, width, 3]` uint8; None without ``rgb_array``."""
        if self.render_mode is None or self._picture is None:
            return None
        return self._picture.frame

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    def _info(self) -> dict[str, Any]:
        return {"cont": self._picture.cont, "confidence": self._picture.confidence}
