"""The sections of a report that need a trained model and recorded frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import jax
import numpy as np

from emerald_jax.replay import ReplayError
from emerald_jax.trained.filming import action_name
from emerald_jax.trained.loaded import Dream, LoadedAgent
from emerald_jax.trained.looking import attention_weights, by_distance, decoding_trace
from emerald_jax.trained.recordings import Clip, Recordings
from emerald_jax.training.state import count_parameters
from emerald_jax.types import Batch
from emerald_jax.viz import panels
from emerald_jax.viz.page import Picture, Section, Table
from emerald_jax.viz.strips import report_strip

#: Clips looked at, the frames seen of each, and the steps dreamt after them.
CLIPS, CONTEXT, HORIZON = 3, 4, 15
#: Decoding steps shown, where the run's own are fewer.
LEAST_STEPS = 3
#: Recorded actions counted, and steps of the policy's dream.
COUNTED, DREAMT = 20_000, 50


class ModelSections:
    """Makes the sections, each on demand."""

    def __init__(self, agent: LoadedAgent, recordings: Recordings, seed: int) -> None:
        """Prepare; nothing is computed yet.

        Args:
            agent: the trained agent.
            recordings: of its run.
            seed: of the clips that are looked at, and of the dreams.
        """
        self.agent, self.recordings, self.seed = agent, recordings, seed

    def sections(self) -> dict[str, Callable[[], Section]]:
        """Title to what makes it; making one may raise ReplayError or ValueError."""
        return {
            "Parameters": self._parameters,
            "Reconstructions and dreams": self._dreams,
            "Imagined against real reward": self._rewards,
            "Decoding steps": self._decoding,
            "Attention over the past": self._attention,
            "Actions": self._actions,
        }

    @cached_property
    def clips(self) -> list[Clip]:
        """Recorded stretches of equal length, as long as there are any."""
        rng = np.random.default_rng(self.seed)
        found = [self.recordings.draw(CONTEXT + HORIZON, rng) for _ in range(4 * CLIPS)]
        longest = max(len(clip) for clip in found)
        if longest <= CONTEXT:
            raise ReplayError(f"no recorded episode is longer than {CONTEXT} frames")
        whole = [clip for clip in found if len(clip) == longest]
        different = {(clip.env, clip.row): clip for clip in whole}
        return list(different.values())[:CLIPS]

    @cached_property
    def dream(self) -> Dream:
        """The clips' beginnings, dreamt on under the recorded actions."""
        image, action = (np.stack([getattr(c, n) for c in self.clips]) for n in ("image", "action"))
        return self.agent.imagine(
            image[:, :CONTEXT],
            action[:, :CONTEXT],
            key=jax.random.key(self.seed),
            horizon=image.shape[1] - CONTEXT,
            future=action[:, CONTEXT:],
        )

    def _parameters(self) -> Section:
        counts = count_parameters(self.agent.params)
        rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.items()]
        about = f"Weights after {self.agent.updates:,} updates."
        return Section("Parameters", about, (Table(rows),))

    def _dreams(self) -> Section:
        image = np.stack([clip.image for clip in self.clips])
        action = np.stack([clip.action for clip in self.clips])
        key = jax.random.key(self.seed)
        decoded = self.agent.imagine(image, action, key=key, horizon=1, steps=1).seen
        strip = report_strip(image, decoded, self.dream.frames, CONTEXT)
        about = (
            f"The model sees {CONTEXT} recorded frames; right of the orange line it dreams on with "
            "the recorded actions alone. The error row is brighter the further the dream is off."
        )
        picture = Picture(panels.png_of(strip), "real frames, reconstructions, dream, error", True)
        return Section("Reconstructions and dreams", about, (picture,))

    def _rewards(self) -> Section:
        real = np.stack([clip.reward for clip in self.clips])
        unseen = np.full((len(real), CONTEXT), np.nan)
        predicted, cont = (
            np.concatenate([unseen, x], axis=1) for x in (self.dream.rewards, self.dream.continues)
        )
        about = "The same dreams: what they promised, and what the recorded episodes gave."
        picture = Picture(
            panels.rewards(real, predicted, cont, CONTEXT), "imagined and real reward by step"
        )
        return Section("Imagined against real reward", about, (picture,))

    def _decoding(self) -> Section:
        learner = self.agent.learner
        prior = getattr(self.agent.config.model, "prior", "maskgit")
        if prior != "maskgit":
            return Section("Decoding steps", missing=f"this run's prior is {prior}")
        clip, steps = self.clips[0], max(LEAST_STEPS, self.agent.config.behavior.decode_steps)
        at = len(clip) // 2
        h = self._hidden(clip)[at]
        trace = jax.jit(partial(decoding_trace, learner=learner, steps=steps))(
            self.agent.params, h, jax.random.key(self.seed)
        )
        side = round(trace.masked.shape[1] ** 0.5)
        masked, sure = (
            np.asarray(x).mean(-1).reshape(steps, side, side)
            for x in (trace.masked, trace.confidence)
        )
        strip = panels.decoding_strip(np.asarray(trace.frame), masked, sure, clip.image[at])
        tokens = trace.masked[0].size
        counts = ", ".join(str(int(n)) for n in np.asarray(trace.masked).sum((1, 2)))
        about = (
            f"The prediction of one recorded frame from its past, in {steps} steps; {counts} of "
            f"{tokens} tokens were masked when each began. Dots: one for each tenth of a place's "
            "tokens that was masked. Tint: how unsure the model is there. A token that is drawn "
            "again later stands at its likeliest class."
        )
        return Section("Decoding steps", about, (Picture(panels.png_of(strip), "decoding steps"),))

    def _attention(self) -> Section:
        model = self.agent.config.model
        kind = getattr(model, "sequence", "tssm")
        if kind != "tssm":
            return Section("Attention over the past", missing=f"the {kind} has no attention")
        clip = self._past(model.context + 1)
        weights = jax.jit(partial(attention_weights, learner=self.agent.learner))(
            self.agent.params, self._sequence(clip), jax.random.key(self.seed)
        )
        # The newest steps see the most of the past.
        newest = by_distance(np.asarray(weights), model.context)[:, :, -(len(clip) // 4 + 1) :]
        ages = [0, *(2**i for i in range(12) if 2**i >= model.context / 16)]
        picture = panels.attention_map(newest.mean(axis=2), ages)
        about = (
            f"Mean attention of the last quarter of {len(clip)} recorded steps by distance; each "
            "block looks back at most "
            f"{model.context} steps, {model.blocks} blocks together "
            f"{model.blocks * model.context}."
        )
        return Section("Attention over the past", about, (Picture(picture, "attention"),))

    def _actions(self) -> Section:
        spec = self.agent.spec
        rows = self.recordings.newest(COUNTED)
        taken = rows["action"][~rows["is_first"]]
        starts = [clip for clip in self.clips for _ in range(8)]
        dream = self.agent.imagine(
            np.stack([clip.image[:CONTEXT] for clip in starts]),
            np.stack([clip.action[:CONTEXT] for clip in starts]),
            key=jax.random.key(self.seed),
            horizon=DREAMT,
        )
        shares = {
            f"recorded, the last {taken.size:,}": _shares(taken, spec.num_actions),
            f"the policy in dreams, {dream.actions.size:,}": _shares(
                dream.actions, spec.num_actions
            ),
        }
        names = [action_name(spec, i) for i in range(spec.num_actions)]
        about = "A policy that has collapsed to few actions shows here before losses tell."
        picture = Picture(panels.action_histogram(names, shares), "shares of the actions")
        return Section("Actions", about, (picture,))

    def _past(self, length: int) -> Clip:
        rng = np.random.default_rng(self.seed)
        return self.recordings.draw(length, rng)

    def _hidden(self, clip: Clip) -> np.ndarray:
        """h of every frame of a clip, `[T, D]`."""
        model, params = self.agent.learner.model, self.agent.params["world_model"]
        passed = jax.jit(lambda p, s, k: model.apply({"params": p}, s, k).state.h)
        return passed(params, self._sequence(clip), jax.random.key(self.seed))

    def _sequence(self, clip: Clip) -> Batch:
        """A clip as a sequence about whose past nothing is known."""
        reset = np.zeros(len(clip), bool)
        reset[0] = True
        carry = jax.tree.map(lambda x: x[0], self.agent.initial(1).carry)
        return Batch(*clip[:6], reset=reset, carry=carry)


def _shares(actions: np.ndarray, count: int) -> np.ndarray:
    counts = np.bincount(actions.ravel(), minlength=count)
    return counts / max(1, counts.sum())
