"""The last evaluation of a run: whole episodes with the final weights, before it says goodbye."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from emerald_jax.envs.base import VectorEnv, VectorStep
from emerald_jax.envs.playing import is_whole
from emerald_jax.ops.scores import crafter_score, success_rates
from emerald_jax.training.evaluate import play
from emerald_jax.training.result import Evaluation
from emerald_jax.training.state import Learner
from emerald_jax.types import Key, Params


def last_evaluation(
    learner: Learner,
    params: dict[str, Params],
    env: VectorEnv,
    key: Key,
    *,
    act: Callable,
    check: Callable[[], None],
) -> tuple[Evaluation | None, dict[str, float]]:
    """Play ``log.eval_episodes`` in the run's own environments, which must be saved before.

    They begin new episodes, and nothing is compiled: the run's own acting program plays.

    Args:
        learner: networks and settings.
        params: ``world_model`` and ``actor``.
        env: the run's environments, no step under way.
        key: consumed.
        act: the run's acting program.
        check: called at every vector step; what it raises ends the evaluation.

    Returns:
        What came of it, and the same as a row of numbers; None if every episode was cut by a fault.

    Raises:
        RunError: an action was not finite.
    """

    def watch(record: VectorStep) -> None:
        del record
        check()

    wanted = learner.config.log.eval_episodes
    played = play(learner, params, env, wanted, key, watch=watch, act=act)
    whole = [episode for episode in played if is_whole(episode)]
    if not whole:
        return None, {}
    scores = [episode.score for episode in whole]
    error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    length = statistics.fmean(episode.length for episode in whole)
    result = Evaluation(statistics.fmean(scores), error, length, len(whole))
    row = {
        "eval/return": result.score,
        "eval/return_error": error,
        "eval/length": length,
        "eval/episodes": float(len(whole)),
    }
    unlocked = [episode.extra.get("achievements") for episode in whole]
    if all(unlocked):
        row["eval/crafter_score"] = crafter_score(success_rates(unlocked, sorted(unlocked[0])))
    return result, row
