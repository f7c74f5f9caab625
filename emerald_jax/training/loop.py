"""The training loop, single-threaded, in a fixed order, so that a seed decides everything.

1. act on the newest records (this waits for the update in flight, whose parameters it uses);
2. send the actions to the environments;
3. start the updates that ``train_ratio`` requires, each on a batch that is already on the device,
   and fetch the next batch while they compute;
4. collect the environments' replies, store and log them.

A run on recorded data (``data``) has no environment: its replay is filled before the first step, a
vector step only counts ``envs.count`` steps, and so ``train_ratio`` and ``steps`` set the updates.

Everything that decides the future is in a checkpoint; keys are derived from counters.
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import ExitStack, closing
from typing import Any

import jax
import numpy as np

from emerald_jax.agent.state import RunError
from emerald_jax.config import Config
from emerald_jax.envs.base import EnvError, Episode, VectorEnv, VectorStep, check_same_spec
from emerald_jax.envs.playing import play_episodes
from emerald_jax.envs.registry import make_vector_env
from emerald_jax.process import StopSignals
from emerald_jax.replay import Replay, make_sampler
from emerald_jax.run.checkpoint import SaveClock, Store
from emerald_jax.run.directory import (
    PACE,
    CheckpointError,
    compare_settings,
    refuse_other_data,
    write_config,
    writing_in,
)
from emerald_jax.run.evaluations import EvalReport
from emerald_jax.training.detours import Detours
from emerald_jax.training.devices import TrainingAgent, gather
from emerald_jax.training.evaluate import report_of
from emerald_jax.training.faults import check_updates
from emerald_jax.training.narrator import Narrator

#: Counters of :class:`Loop` in a checkpoint.
COUNTERS = ("env_steps", "updates", "vector_steps")


class Loop:
    """One process' part of a run: takes an agent, environments, a replay, a log and a store.

    Attributes:
        generation: resumes of the run so far; part of the environments' seeds.
        env_steps: environment steps since the run began.
        updates: gradient updates since the run began.
        vector_steps: vector steps since the run began.
    """

    def __init__(
        self,
        config: Config,
        agent: TrainingAgent,
        env: VectorEnv | None,
        replay: Replay,
        narrator: Narrator,
        store: Store,
        signals: StopSignals,
        began: float,
        generation: int,
    ) -> None:
        """Restore the newest checkpoint, or start a new run; ``agent`` is compiled.

        ``env`` is None where the replay holds recorded data; ``began`` is when this process took up
        the run, by ``time.monotonic``.
        """
        self.config, self.agent, self.env, self.replay = config, agent, env, replay
        self.narrator, self.store, self.signals = narrator, store, signals
        self.hosts = hosts = store.hosts
        self.began, self.logdir, self.generation = began, narrator.logdir, generation
        self._warned: set[str] = set()
        self.pace = Pace(config)
        r, seed = config.replay, hosts.seed(config.seed)
        batch = r.batch // hosts.count
        self.sampler = make_sampler(r.sampler, replay, batch, r.length, seed, r.best_of)
        self.random = np.random.default_rng(seed)
        b, count = config.behavior, env.num_envs if env else 0
        self.detours = Detours(b.detours, b.horizon, agent.spec.actions, count)
        self.env_steps = self.updates = self.vector_steps = 0
        #: Metrics of the newest update until they are logged.
        self.metrics: dict[str, Any] | None = None
        #: Updates whose result has not been checked, each with its number and host batch.
        self.unchecked: list[dict[str, Any]] = []
        #: The next update's batch, on the host and on the devices.
        self.pending = self.on_device = None
        #: Why all hosts stop, and whether a checkpoint is due; see :meth:`_agree`.
        self._reason, self._due = "", False
        self.record = self.begin()
        self.clock = SaveClock(60 * config.log.checkpoint_minutes)
        narrator.begin(self.env_steps, self.updates)

    def run(self) -> str:
        """Train until a reason to stop: ``steps``, ``minutes`` or a signal's name; returns it."""
        first = self.vector_steps
        with jax.transfer_guard("disallow"):
            while not (stopped := self._stopped()):
                self.vector_step()
        if self.vector_steps > first:
            self._finish()
        return stopped

    def vector_step(self) -> None:
        """One step of all environments, if there are any, and the updates that go with it."""
        if self.env is None:
            with self.narrator.timed("device_wait"):
                self.check()
        else:
            self.env.step_async(self._actions())
        while self.pace.owes(self.env_steps, self.updates):
            self._update()
        self.vector_steps += 1
        if self.env is None:
            self.env_steps += self.config.envs.count
            self.store.advance(self.replay)
        else:
            with self.narrator.timed("env_wait"):
                self.record = self.env.step_wait()
            if self.hosts.count == 1:
                self.env_steps += self.record.env_steps
            else:
                self._agree()
            self.remember(self.record)
        self.narrator.progress(self.env_steps, self.updates)
        ended = self.store.poll()
        if ended is not None:
            self.clock.ended(ended)
        if self.clock.due() if self.hosts.count == 1 else self._due:
            self.save()

    def evaluate(self) -> EvalReport | None:
        """The final evaluation in the run's environments, if there is one; logs its row."""
        config, episodes = self.config, self.config.log.eval_episodes
        if not episodes or not self.updates or not config.env or not self.hosts.first:
            return None
        player, env = self.agent.evaluator(self.updates), self.env
        with ExitStack() as opened:
            if env is None:  # recorded in an environment that may be installed
                try:
                    env = make_vector_env(config.env, config.envs, seed=config.seed)
                    opened.enter_context(closing(env))
                    check_same_spec(self.agent.spec, env.spec)
                except EnvError as error:
                    self.narrator.say(f"not evaluated: {error}")
                    return None
            played = play_episodes(env, episodes, player, lambda record: self.signals.check())
            report = report_of(config.env, self.updates, "sample", tuple(played), {})
        if not report.episodes:  # faults cut all of them short
            return None
        self.narrator.evaluation(self.env_steps, report)
        return report

    def save(self) -> bool:
        """Start writing a checkpoint; False, without an error, where the disk is full."""
        self.check()
        spec = self.agent.spec
        saved = {
            "num_actions": spec.num_actions,
            "image_shape": list(spec.image_shape),
            "action_sizes": list(spec.action_sizes),
        }
        if self.config.data:
            saved["action_names"] = list(spec.action_names)
        metadata = {
            **{name: getattr(self, name) for name in (*COUNTERS, "generation")},
            "spec": saved,
            **self._own_state(),
            "pending": self.pending is not None,
            "paced_from": list(self.pace.point),
            "config": self.config.to_dict(),
        }
        if self.hosts.count > 1:
            metadata["hosts"] = self.hosts.exchange(self._own_state())
        self.clock.begun()
        # A checkpoint has to leave the device; the hot loop's guard is against accidents.
        with jax.transfer_guard("allow"):
            begun = self.store.save(self.updates, self._tree(), metadata, self.replay)
        if not begun:
            self.clock.ended(False)
        return begun

    def begin(self) -> VectorStep | None:
        """The first records, if any: those of the newest valid checkpoint, or first frames."""
        first = self.env.reset() if self.env else None
        if self.store.steps():
            restored = self.store.restore(self._tree(), self.replay)
            state = restored.tree["state"]
            tree = {**self.hosts.mine({**restored.tree, "state": {}}), "state": state}
            self._continue(tree, restored.metadata)
            if tree["env"]:
                return self.env.set_state(jax.tree.map(np.asarray, tree["env"]))
        else:
            if self.config.init_from:
                self.narrator.say(f"starts from the weights of {self.config.init_from}")
            self._rewind_log()
        if self.env:
            self.remember(first)
        return first

    def stage(self, batch: Any) -> None:
        """Keep a batch for the next update and start copying it to the devices."""
        self.pending, self.on_device = batch, self.agent.put(batch)

    def check(self) -> None:
        """Report updates that were not finite; RunError after too many in a row."""
        checked, self.unchecked = self.unchecked, []
        limit = self.config.log.max_bad_updates
        for message in check_updates(checked, self.agent.state, self.logdir, limit):
            self.narrator.say(message)

    def remember(self, record: VectorStep) -> None:
        """Store records in the replay and log finished episodes."""
        self.replay.append(record)
        self.store.advance(self.replay)
        self.narrator.episodes(self.env_steps, record)
        for kind in self.env.warnings.keys() - self._warned:
            self.narrator.say(self.env.warnings[kind])
            self._warned.add(kind)

    def _actions(self) -> np.ndarray:
        """One action per environment: random during prefill, then the policy's or a detour's."""
        if self.env_steps < self.config.replay.prefill:
            return self.env.spec.actions.sample(self.random, self.env.num_envs)
        try:
            with self.narrator.timed("device_wait"):
                action = self.agent.act(self.record, self.vector_steps)
        except RunError as error:
            self.check()
            raise RunError(
                f"the policy is not finite after {self.updates} updates; the last checkpoint in "
                f"{self.logdir} is valid: continue with smaller learning rates"
            ) from error
        self.check()
        own = np.ones(len(action), bool)
        if self.config.behavior.detours:
            action, own = self.detours(action, self.record.is_first, self.random)
        self.agent.remember(self.record, action, own)
        return action

    def _update(self) -> None:
        """Start one update and, while it computes, prepare the batch of the next."""
        if self.pending is None:
            self.stage(self.sampler.sample())
        self.metrics = self.agent.update(self.on_device, self.updates)
        self.unchecked.append({"update": self.updates, "batch": self.pending, **self.metrics})
        self.updates += 1
        with self.narrator.timed("replay"):
            self.stage(self.sampler.sample())
        if self.updates % self.config.log.every == 0:
            self._log()
        every = self.config.log.pictures
        if every and self.updates % every == 0:
            self._picture()

    def _log(self) -> None:
        """One row of metrics, each update's at most once; waits for the update in flight."""
        if self.metrics is not None:
            metrics = {**self.metrics, "train/skipped": self.agent.state.skipped}
            self.narrator.metrics(self.env_steps, self.updates, metrics, self.agent.spec)
        self.metrics = None

    def _picture(self) -> None:
        if self.config.log.pictures and self.updates and self.hosts.first:
            self.narrator.picture(self.env_steps, self.agent, self.updates)

    def _stopped(self) -> str:
        """Why to stop now; empty to continue."""
        if self.hosts.count == 1:
            return self._wish()
        return self._reason or ("steps" if self.env_steps >= self.config.steps else "")

    def _wish(self) -> str:
        """Why this host would stop now."""
        if self.signals.name:
            return self.signals.name
        if self.env_steps >= self.config.steps:
            return "steps"
        minutes = self.config.max_minutes
        return "minutes" if minutes and time.monotonic() - self.began > 60 * minutes else ""

    def _agree(self) -> None:
        """Count the steps and episodes of all hosts, and learn whether one wants to stop or save.

        All hosts call it after every vector step, so they take every decision together.
        """
        names = [field.name for field in dataclasses.fields(Episode)]
        episodes = [{n: getattr(e, n) for n in names} for e in self.record.episodes]
        own = {"steps": self.record.env_steps, "episodes": episodes, "stop": self._wish()}
        found = self.hosts.exchange({**own, "save": self.clock.due()})
        self.env_steps += sum(host["steps"] for host in found)
        self._reason = next((host["stop"] for host in found if host["stop"]), "")
        self._due = found[0]["save"]
        all_episodes = [
            Episode(**{**episode, "env": episode["env"] + index * self.env.num_envs})
            for index, host in enumerate(found)
            for episode in host["episodes"]
        ]
        self.record = self.record._replace(episodes=tuple(all_episodes))

    def _own_state(self) -> dict[str, Any]:
        """What this host draws from."""
        random = self.random.bit_generator.state
        state = {"sampler": self.sampler.state_dict(), "random": random}
        return {**state, "detours": self.detours.state_dict()}

    def _finish(self) -> None:
        """Log, draw and save the last point."""
        self._log()
        if not self.signals.name:  # on a signal, skip the pictures and save at once
            self._picture()
        if not (self.save() and self.store.wait()):
            known = self.store.steps()
            older = f"checkpoint {known[-1]}" if known else "nothing"
            raise CheckpointError(
                f"the last checkpoint cannot be written to {self.logdir}, {older} is kept: free "
                "some space and give the same command again"
            )

    def _continue(self, tree: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Continue from a checkpoint's arrays and counters, with our settings where they differ."""
        before = Config.from_dict(metadata["config"])
        differences = compare_settings(before, self.config)
        refuse_other_data(self.logdir, differences)
        self.agent.restore(tree)
        for name in COUNTERS:
            setattr(self, name, metadata[name])
        own = metadata.get("hosts", [metadata])
        if len(own) == self.hosts.count:
            self.sampler.load_state_dict(own[self.hosts.index]["sampler"])
            self.random.bit_generator.state = own[self.hosts.index]["random"]
            if known := own[self.hosts.index].get("detours"):
                self.detours.load_state_dict(known)
        else:  # the replay has been dealt again: all sequences begin anywhere in it
            seed = [self.hosts.seed(self.config.seed), self.generation]
            self.sampler.rng, self.random = map(np.random.default_rng, (seed, [*seed, 1]))
        if metadata["pending"]:
            self.stage(jax.tree.map(np.asarray, tree["pending"]))
        if any(difference.name in PACE for difference in differences):
            self.pace.restart(self.env_steps, self.updates)
        else:
            self.pace.point = tuple(metadata.get("paced_from", self.pace.point))
        if before.init_from:  # a run keeps the record of the weights it started from
            self.config = dataclasses.replace(self.config, init_from=before.init_from)
        self._rewind_log()
        say = self.narrator.say
        say(f"continues after {self.env_steps:,} steps and {self.updates:,} updates")
        for difference in differences:
            say(f"  {difference}")

    def _rewind_log(self) -> None:
        """Drop log rows after the restored step and write our settings to config.json."""
        with writing_in(self.logdir):
            self.narrator.rewind(self.env_steps)
            write_config(self.logdir, self.config)

    def _tree(self) -> dict[str, Any]:
        """Every array that decides the future, independent of the number of devices."""
        pending = self.pending or self.agent.blank_batch()
        env = self.env.get_state() if self.env else None
        tree = {**self.agent.tree(), "pending": pending, "env": env or {}}
        if self.hosts.count > 1:
            tree = {"state": tree.pop("state"), **gather(tree)}
        return tree


class Pace:
    """Number of updates that ``train_ratio`` requires for the environment steps taken.

    The ratio counts from a point, at first the end of prefill. A run that is resumed with another
    ratio counts from there: updates missing or spared at the old ratio are not made up for.
    """

    def __init__(self, config: Config) -> None:
        self._prefill = config.replay.prefill
        self._per_update = config.replay.batch * config.replay.length
        self._ratio = config.train_ratio
        self.point = (config.replay.prefill, 0)

    def owes(self, env_steps: int, updates: int) -> bool:
        """Whether another update is due after so many environment steps and updates."""
        steps, before = self.point
        owed = math.floor((env_steps - steps) * self._ratio / self._per_update)
        return env_steps > steps and updates < before + owed

    def restart(self, env_steps: int, updates: int) -> None:
        """Count from here, or from the end of prefill if that is still to come."""
        self.point = (max(env_steps, self._prefill), updates)
