"""``emerald-jax eval RUN [--episodes N] [--checkpoint STEP] [--mode sample|mode] [--video] …``."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

from emerald_jax.commands.env_words import add_env_words, envs_of, given_env_words
from emerald_jax.commands.words import Parser, tell
from emerald_jax.config import Config, ConfigError, EnvsConfig

#: Episodes that the benchmarks' protocols ask for, by family of environments, and of others.
EPISODES, OTHERS = {"crafter": 256, "atari": 100}, 16


def run(words: list[str]) -> int:
    """Reload a run, or play at random, and tell how it went."""
    parser = _parser()
    options = parser.parse_args(words)
    if options.episodes is not None and options.episodes < 1:
        raise ConfigError(f"--episodes is {options.episodes}: it must be at least 1")
    if options.random:
        if options.run or options.checkpoint is not None or options.video:
            raise ConfigError("--random ENV plays without a run: leave the run's options away")
        return _play_at_random(options)
    if not options.run:
        parser.error("the following arguments are required: RUN")
    return _play_a_run(options)


def _parser() -> Parser:
    parser = Parser("eval")
    parser.add_argument("run", metavar="RUN", nargs="?", help="run directory")
    parser.add_argument(
        "--episodes",
        type=int,
        help="episodes to play (256 in Crafter, 100 in an Atari game, else 16)",
    )
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="its number (the newest)")
    parser.add_argument(
        "--mode",
        choices=("sample", "mode"),
        default="sample",
        help="sample actions from the policy, as the paper does, or take the likeliest one "
        "(%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the play (%(default)s)")
    parser.add_argument("--video", action="store_true", help="film the first episode")
    parser.add_argument("--json", metavar="FILE", help="also write the result here")
    parser.add_argument(
        "--random", metavar="ENV", help="play ENV with uniformly random actions, without a run"
    )
    add_env_words(parser, "with --random: ")
    return parser


def _play_a_run(options: argparse.Namespace) -> int:
    if given_env_words(options):
        raise ConfigError("a run keeps the settings of its environment: they go with --random")
    from emerald_jax.saving.rundir import read_config

    config = read_config(options.run)
    exported = (Path(options.run) / "export.json").is_file()
    if exported and options.video:
        raise ConfigError(f"{options.run} is an export, which keeps no evaluations: no --video")
    from emerald_jax.training.evaluate import evaluate_run
    from emerald_jax.training.evaluations import result_of, save_evaluation

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        video, watch = None, None
        if options.video:
            from emerald_jax.viz.episode import EpisodeFilm

            video = Path(folder) / "episode.mp4"
            watch = stack.enter_context(EpisodeFilm(video))
        report = evaluate_run(
            Path(options.run),
            options.episodes or default_episodes(config.env),
            mode=options.mode,
            seed=options.seed,
            checkpoint=options.checkpoint,
            watch=watch,
        )
        stack.close()
        saved = None if exported else save_evaluation(options.run, report, video)
    _write_json(options.json, result_of(report))
    return tell(f"{report}\n" + (f"written to {saved}\n" if saved else ""))


def _play_at_random(options: argparse.Namespace) -> int:
    config = Config(env=options.random, envs=envs_of(options, EnvsConfig()))
    from emerald_jax.training.evaluate import evaluate_random
    from emerald_jax.training.evaluations import result_of

    episodes = options.episodes or default_episodes(config.env)
    report = evaluate_random(config, episodes, seed=options.seed)
    _write_json(options.json, result_of(report))
    return tell(f"{report}\n")


def default_episodes(env: str) -> int:
    """Episodes of the protocol that ``env`` is scored by."""
    return EPISODES.get(env.partition(":")[0], OTHERS)


def _write_json(path: str | None, result: dict) -> None:
    if path:
        from emerald_jax.saving.files import write_atomic

        write_atomic(Path(path), (json.dumps(result, indent=2) + "\n").encode())
