"""Every setting of emerald_jax as typed, frozen dataclasses, and the rules between settings.

Each help text marks the source of its default: (P) the EMERALD paper, arXiv 2507.04075; (R) the
authors' released defaults as public reproductions record them; (D) DreamerV3, arXiv 2301.04104; (O)
our own choice where the sources give none. Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

#: Settings that runs of earlier versions may still name.
_GONE = ("behavior.noise_hold",)
#: Seeds lie in 0 … SEEDS - 1.
SEEDS = 2**63


class ConfigError(ValueError):
    """A setting, or a combination of settings, that cannot work; the message names the remedy."""


@dataclass(frozen=True, kw_only=True)
class EnvsConfig:
    """How environments are stepped. The top-level setting ``env`` selects the environment."""

    count: int = 16
    """Environments stepped in parallel. Crafter 16, Atari 100k 1. (P)"""
    image_size: int = 64
    """Height and width of the square RGB image the agent sees, in pixels. (P)"""
    time_limit: int = 0
    """Agent steps after which an episode is truncated; 0 keeps the environment's own limit."""
    workers: Literal["auto", "process", "inline"] = "auto"
    """Run host environments in worker processes or `inline`; `auto`: inline if just one. (O)"""
    processes: int = 0
    """Worker processes, at most one per environment; 0 uses one per available CPU core. (O)"""
    frame_skip: int = 0
    """Frames per action in `atari:` and `gym:` environments and your own; 0 keeps the
    environment's default: 4 for Atari, 2 for DM Control, 1 elsewhere. (P)"""
    image_key: str = ""
    """Entry of a dict observation that holds the image, in `gym:` environments and your own; empty
    uses the only image entry, `render` the output of the environment's `render()`."""
    both_ends: Literal["auto", "truncated", "terminated"] = "auto"
    """How to store an episode that a `gym:` environment or your own ends terminated and truncated
    at once. `auto`: truncated, or terminated if Gymnasium's TimeLimit counted the steps. (O)"""
    sticky: float = 0.0
    """Probability that a frame of an `atari:` game repeats the last action. (P)"""
    full_actions: bool = False
    """All 18 actions in `atari:` games instead of those that the game uses. (P)"""
    distribution_mode: Literal["hard", "easy"] = "hard"
    """Difficulty of `procgen:` levels. (D)"""
    num_levels: int = 0
    """Number of different `procgen:` levels; 0 is all. (D)"""
    start_level: int = 0
    """First of the `procgen:` levels. (D)"""
    backgrounds: bool = True
    """Pictures behind the `procgen:` levels; without them black: not the benchmark's. (D)"""
    fast_render: bool = False
    """Draw `dmc:` tasks without smooth edges and with coarse shadows: not the benchmark's. (O)"""
    worker_timeout: float = 120.0
    """Seconds that a worker may take to start, reset or step before it is replaced. (O)"""
    max_worker_failures: int = 10
    """Failed environments and lost workers, each replaced, after which the run ends. (O)"""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Kinds and sizes of the networks; grid, groups, classes define the latent z [h, w, G, K]."""

    latent: Literal["spatial", "vector"] = "spatial"
    """`spatial`: G categoricals at each of grid x grid positions (P); `vector`: G in total (D)."""
    sequence: Literal["tssm", "rssm"] = "tssm"
    """Network that computes h_t from the past: a transformer with a KV cache (P), or a GRU (D)."""
    prior: Literal["maskgit", "linear", "flow", "autoregressive"] = "maskgit"
    """Predictor of z_t from h_t: MaskGIT (P); only the linear dynamics head (P, ablation); discrete
    flow matching from noise (O); or autoregressive, one position after another (O)."""
    prior_input: Literal["h", "hz"] = "h"
    """Input of the priors of z_t: h_t (P); or h_t with the action and z_{t-1} around each position,
    for spatial latents (O)."""
    decoder_input: Literal["zh", "z"] = "zh"
    """Input of the image decoder: z_t and h_t (P), or only z_t (O)."""
    posterior: Literal["auto", "o", "oh"] = "auto"
    """Input of the posterior of z_t: image (P), or also h_t (D); `auto`: `oh` for the rssm. (O)"""
    grid: int = 4
    """Positions per side of the smallest feature maps and of a spatial latent, h = w. (P)"""
    groups: int = 32
    """Categorical variables per position, G. (P)"""
    classes: int = 32
    """Classes of each categorical, K. (P)"""
    channels: int = 32
    """Channels of the encoder's first stage; doubled at every stage. (R)"""
    center: bool = False
    """Encode and predict pixels as differences from their mean in the first batches; the last layer
    of the decoder then begins at zero. (O)"""
    width: int = 512
    """Width D of the sequence model, of h_t and of the head MLPs. (P)"""
    latent_width: int = 128
    """Channels of a position's embedded latent (a vector latent: the width). (R)"""
    blocks: int = 4
    """Blocks of the temporal transformer. (R)"""
    heads: int = 8
    """Attention heads, in the temporal transformer and in the predictor. (R)"""
    ff_ratio: int = 2
    """Hidden width of the feed-forward layers as a multiple of the transformer's width. (R)"""
    context: int = 64
    """Left attention context C of the temporal transformer, in steps. (R)"""
    predictor_width: int = 256
    """Width of the MaskGIT, flow or autoregressive predictor. (R)"""
    predictor_blocks: int = 2
    """Transformer blocks of the MaskGIT, flow or autoregressive predictor. (R)"""
    token_width: int = 32
    """Width of one embedded token (a class or MASK) in the predictor. (R)"""
    head_layers: int = 2
    """Hidden layers of the reward, continue, actor and critic MLPs. (D)"""
    bins: int = 255
    """Bins of the two-hot reward and value distributions, over symlog [-20, 20]. (D)"""
    unimix: float = 0.01
    """Share of the uniform distribution mixed into every categorical. (D)"""
    dropout: float = 0.1
    """Dropout rate of the transformers, only in the world-model loss. (R)"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. Parameters, probabilities, KLs, head outputs and returns stay float32. `auto`:
    bfloat16 on a TPU or a GPU with units for it (NVIDIA: capability 8.0 on), else float32. (O)"""
    remat: bool = False
    """Recompute every convolution stage and transformer block of the world model in the backward
    pass: less memory, more time; no effect on a CPU. (O)"""

    @property
    def positions(self) -> int:
        """Positions of the latent state, P."""
        return self.grid**2 if self.latent == "spatial" else 1

    @property
    def latent_channels(self) -> int:
        """Channels a position's one-hot latent is embedded to."""
        return self.latent_width if self.latent == "spatial" else self.width

    @property
    def posterior_sees_h(self) -> bool:
        """Whether z_t is inferred from the image and h_t, one step after another."""
        default = "oh" if self.sequence == "rssm" else "o"
        return (default if self.posterior == "auto" else self.posterior) == "oh"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the world-model losses and the floors below which a KL earns no gradient."""

    image: float = 1.0
    """Weight of the squared image error, summed over pixels and channels. (P)"""
    reward: float = 1.0
    """Weight of the two-hot reward cross-entropy. (P)"""
    cont: float = 1.0
    """Weight of the continue cross-entropy. (P)"""
    dyn: float = 0.5
    """Weight of KL(sg(posterior) || dynamics). (P)"""
    rep: float = 0.1
    """Weight of KL(posterior || sg(dynamics)). (P)"""
    mask: float = 0.5
    """Weight of the MaskGIT, flow or autoregressive predictor's KL. (P)"""
    free_nats: float = 1.0
    """Floor of the dynamics and representation KL, nats per latent position. (P)"""
    mask_free_nats: float = 1.0
    """Floor of the predictor's KL, nats per latent position. (P)"""


@dataclass(frozen=True, kw_only=True)
class BehaviorConfig:
    """Imagination, and the actor and critic that learn inside it."""

    horizon: int = 15
    """Imagined steps H per rollout. (P)"""
    start_stride: int = 4
    """Distance between two rollout starts, in posterior states. (R)"""
    decode_steps: int = 3
    """Decoding steps S of MaskGIT and flow; 0 samples the linear dynamics head with any prior. The
    autoregressive prior always takes one step per position. (P)"""
    decode_method: Literal["maskgit", "mdlm", "remdm", "halton"] = "maskgit"
    """Tokens that a MaskGIT decoding step draws again: the least confident of those drawn before
    (`maskgit`, P); a random part of those (`mdlm`); a random part of all (`remdm`); or by a fixed
    balanced order of positions (`halton`). (O)"""
    decode_noise: float = 1.0
    """Scale of the Gumbel noise on the confidence of `maskgit`; 0: none. (P)"""
    gamma: float = 0.997
    """Discount per agent step. (D)"""
    lam: float = 0.95
    """Lambda of the lambda-return. (D)"""
    soft_continue: bool = False
    """Weigh what follows an imagined step by the probability that the episode continues, not by 0
    or 1. (D, version of 2024)"""
    entropy: float = 3e-4
    """Weight of the policy entropy bonus. (D)"""
    return_decay: float = 0.99
    """Decay per update of the return range's moving average. (D)"""
    slow_rate: float = 0.02
    """Share of the critic that is mixed into the slow critic per update. (D)"""
    slow_weight: float = 1.0
    """Weight of the critic's cross-entropy to the slow critic's mean. (D)"""
    real_weight: float = 0.0
    """Weight of the actor's and the critic's losses on the steps just played, with their real
    rewards, beside those in imagination, as in Dyna; 0: imagination alone. (P)"""
    detours: float = 0.0
    """Probability per step that training repeats a random action for 1 to H steps. (O)"""

    @property
    def decoding(self) -> dict[str, Any]:
        """``method`` and ``noise``, the keyword arguments of ``imagination.decode``."""
        return {"method": self.decode_method, "noise": self.decode_noise}


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Three Adam optimisers, no weight decay."""

    model_lr: float = 1e-4
    """Learning rate of the world model. (D)"""
    actor_lr: float = 3e-5
    """Learning rate of the actor. (D)"""
    critic_lr: float = 3e-5
    """Learning rate of the critic. (D)"""
    anneal: bool = False
    """All three rates and ``behavior.entropy`` fall linearly, from their values at the first update
    to zero at the last one of ``steps``. (O)"""
    model_eps: float = 1e-8
    """Adam epsilon of the world model. (D)"""
    agent_eps: float = 1e-5
    """Adam epsilon of the actor and the critic. (D)"""
    model_clip: float = 1000.0
    """Largest global gradient norm of the world model. (D)"""
    agent_clip: float = 100.0
    """Largest global gradient norm of the actor and of the critic. (D)"""
    micro_batch: int = 0
    """Most sequences whose gradients are computed at once; fewer need less memory. 0: all on a GPU
    or TPU, on a CPU as many as fit its caches. (O)"""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """The replay store and its sampler."""

    capacity: int = 1_000_000
    """Records kept, over all environments; the oldest go first. One record is one frame. (P)"""
    compress: bool = False
    """Hold images compressed, without loss: Atari frames need a sixth of the memory or less, and a
    batch more time of the host's cores, while the device computes. (O)"""
    sampler: Literal["streams", "windows"] = "streams"
    """`streams`: successive chunks of complete episodes, with the transformer's memory kept from
    chunk to chunk (P); `windows`: independent windows with an empty memory, for comparison (O)."""
    best_of: int = 1
    """Every fourth sequence of `streams` draws this many episodes and reads the one with the
    highest return. 1 draws uniformly (P); more over-sample rare successes (O)."""
    batch: int = 16
    """Sequences per batch, B. (P)"""
    length: int = 64
    """Steps per sequence, L. (P)"""
    prefill: int = 1024
    """Environment steps of random play before the first update. (O)"""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Outputs of a run, and their frequency."""

    every: int = 50
    """Updates between two rows of metrics.jsonl and TensorBoard scalars. (O)"""
    pictures: int = 2000
    """Updates between two pictures; another one is drawn at the end; 0 draws none. (O)"""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints; another one is written at the end. (O)"""
    keep: int = 3
    """Checkpoints kept. (O)"""
    eval_episodes: int = 16
    """Episodes played with the final weights before a finished run ends; 0 plays none. (O)"""
    max_bad_updates: int = 5
    """Non-finite updates in a row after which the run stops. (O)"""
    quiet: bool = False
    """No progress bar and no messages, only the result line. (O)"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run. `emerald-jax presets` lists the named configurations."""

    preset: str = "crafter"
    """Name of the preset this configuration started from."""
    env: str = "crafter"
    """Environment: `crafter`, `gymnax:Catch-bsuite`, … (`emerald-jax envs` lists them)."""
    steps: int = 10_000_000
    """Environment steps of the complete run over all environments, including prefill. (P)"""
    max_minutes: float = 0.0
    """Wall-clock minutes after which the run ends cleanly; 0 sets no limit."""
    train_ratio: float = 64.0
    """Replayed steps per environment step after prefill; 64 at 16 x 64 batches and 16 environments
    is one update per vector step. Atari 100k: 1024. (P)"""
    seed: int = 0
    """Seed of parameters, sampling, replay and environments."""
    logdir: str = ""
    """Run directory; an existing run in it is resumed. Empty: runs/PRESET-SEED, or
    runs/PRESET-ENV-SEED with another environment than the preset's."""
    devices: int = 0
    """Local devices to train on with pmap; 0 uses all accelerators, and on a CPU two virtual
    devices for a small model, else one."""
    distributed: Literal["auto", "off"] = "auto"
    """`auto`: processes that SLURM, Open MPI, Kubernetes or Cloud TPU started together train one
    run; `off`: each trains its own. (O)"""
    data: str = ""
    """Recorded data to train on instead of an environment: a folder of `emerald-jax collect` or of
    mp4 videos, or `minari:NAME`; they decide `env`. Empty: play in `env`. (O)"""
    init_from: str = ""
    """Run or export whose weights a new run starts with; empty starts with random weights. (O)"""
    envs: EnvsConfig = field(default_factory=EnvsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    behavior: BehaviorConfig = field(default_factory=BehaviorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def tokens(self) -> int:
        """Tokens per latent state, N = P * G."""
        return self.model.positions * self.model.groups

    @property
    def stages(self) -> int:
        """Down-sampling stages of the encoder: halvings from the image to the grid."""
        return int(math.log2(self.envs.image_size // self.model.grid))

    @property
    def updates_per_vector_step(self) -> float:
        """Gradient updates per step of all environments."""
        return self.train_ratio * self.envs.count / (self.replay.batch * self.replay.length)

    @property
    def total_updates(self) -> int:
        """Gradient updates of the complete run, at least.

        Prefill owes no updates, and those owed for the last vector step are not made. Episodes that
        end shortly before the end can add one vector step.
        """
        steps = self.steps - self.envs.count - self.replay.prefill
        return max(0, int(steps * self.train_ratio // (self.replay.batch * self.replay.length)))

    def to_dict(self) -> dict[str, Any]:
        """Nested dict, JSON-compatible."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of :meth:`to_dict`; missing settings keep defaults, unknown ones raise."""
        return _build(cls, values, "")

    def validate(self, num_devices: int = 1) -> None:
        """Refuse impossible settings: ConfigError with one line, for the first problem found.

        ``num_devices``: local devices that the batch is split over.
        """
        for rule in _RULES:
            for problem in rule(self):
                raise ConfigError(problem)
        if self.replay.batch % num_devices:
            raise ConfigError(
                f"replay.batch {self.replay.batch} does not divide over {num_devices} devices: "
                f"choose a multiple of {num_devices}, or set --devices"
            )


def nearest(name: str, choices: Iterable[str], prefix: str = "") -> str:
    """``; nearest: …`` for a message about an unknown name; empty when none is similar."""
    found = difflib.get_close_matches(name, choices, n=1)
    return f"; nearest: {prefix}{found[0]}" if found else ""


def _build(cls: type, values: dict[str, Any], path: str) -> Any:
    """Dataclass ``cls`` from a nested dict; ``path`` is the prefix of names in messages."""
    types = get_type_hints(cls)
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        if f"{path}{key}" in _GONE:
            continue
        if key not in types:
            raise ConfigError(f"unknown setting {path}{key}{nearest(key, types, path)}")
        is_group = dataclasses.is_dataclass(types[key])
        kwargs[key] = _build(types[key], value, f"{path}{key}.") if is_group else value
    return cls(**kwargs)


# The rules yield problems: one line each that names the problem and the remedy.

#: Phrase after "it must", the test of a value, and the settings that must pass it.
_BOUNDS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "not be negative",
        lambda value: value >= 0,
        """envs.time_limit envs.processes envs.frame_skip envs.max_worker_failures
        envs.num_levels envs.start_level
        behavior.real_weight
        optim.micro_batch max_minutes log.pictures log.eval_episodes""",
    ),
    (
        "be at least 1",
        lambda value: value >= 1,
        """envs.count model.grid model.groups model.channels model.blocks model.heads model.context
        behavior.horizon behavior.start_stride replay.batch replay.best_of
        log.every log.keep steps""",
    ),
    ("be at least 2", lambda value: value >= 2, "model.classes replay.length"),
    ("be positive", lambda x: x > 0, "train_ratio envs.worker_timeout log.checkpoint_minutes"),
    (
        "be at least 0 and below 1",
        lambda value: 0 <= value < 1,
        "model.dropout model.unimix envs.sticky behavior.detours",
    ),
    ("lie in 0 … 1000", lambda value: 0 <= value <= 1000, "behavior.decode_noise"),
    (f"lie in 0 … {SEEDS - 1}", lambda value: 0 <= value < SEEDS, "seed"),
)


def _values_are_in_bounds(config: Config) -> Iterator[str]:
    for must, holds, names in _BOUNDS:
        for name in names.split():
            value = operator.attrgetter(name)(config)
            if not holds(value):
                yield f"{name} is {value}: it must {must}"


def _environments_fit(config: Config) -> Iterator[str]:
    envs, grid = config.envs, config.model.grid
    if envs.processes and envs.workers == "inline":
        yield f"envs.processes {envs.processes} goes unused with envs.workers inline: leave it at 0"
    ratio = envs.image_size // grid
    if envs.image_size % grid or ratio < 2 or ratio & (ratio - 1):
        yield (
            f"envs.image_size {envs.image_size} cannot reach model.grid {grid} by halving: "
            f"choose an image size of grid times a power of two, such as {grid * 16}"
        )


def _networks_fit(config: Config) -> Iterator[str]:
    m = config.model
    with_heads = {"width": m.sequence == "tssm", "predictor_width": m.prior != "linear"}
    for name, has_heads in with_heads.items():
        if has_heads and getattr(m, name) % m.heads:
            yield f"model.{name} {getattr(m, name)} does not divide by model.heads {m.heads}"
    if m.sequence == "tssm" and m.width % 2:
        yield f"model.width {m.width} must be even: its positions are sines and cosines"
    if m.posterior == "oh" and m.sequence == "tssm":
        yield (
            "model.posterior oh needs model.sequence rssm: the transformer reads all z_t at once, "
            "before any h_t is known; choose --model.posterior o"
        )
    if m.prior_input == "hz" and m.latent == "vector":
        yield "model.prior_input hz needs positions: choose --model.latent spatial"
    if m.prior == "autoregressive" and m.latent == "vector":
        yield (
            "model.prior autoregressive predicts one position after another, and model.latent "
            "vector has only one: choose --model.prior maskgit or linear"
        )


def _imagination_fits(config: Config) -> Iterator[str]:
    b, tokens = config.behavior, config.tokens
    if b.decode_steps < 0 or (b.decode_steps > tokens and config.model.prior == "maskgit"):
        yield f"behavior.decode_steps {b.decode_steps} must lie between 0 and the {tokens} tokens"
    if b.start_stride > config.replay.length:
        yield (
            f"behavior.start_stride {b.start_stride} leaves no start in sequences of "
            f"replay.length {config.replay.length}: choose a smaller stride"
        )


def _replay_fits(config: Config) -> Iterator[str]:
    replay, count = config.replay, config.envs.count
    if replay.best_of > 1 and replay.sampler == "windows":
        yield "replay.best_of needs replay.sampler streams: windows ignore episodes"
    if replay.best_of > 1 and replay.batch < 4:
        yield (
            "replay.best_of applies to every fourth sequence, and replay.batch "
            f"{replay.batch} has fewer than four: choose a larger batch, or --replay.best-of 1"
        )
    rows = replay.capacity // count
    if rows <= replay.length:
        yield (
            f"replay.capacity {replay.capacity} keeps {rows} steps of each environment, not more "
            f"than replay.length {replay.length}: choose at least {(replay.length + 1) * count}"
        )
    if replay.prefill < replay.length * count:
        yield (
            f"replay.prefill {replay.prefill} is less than one sequence per environment: "
            f"choose at least {replay.length * count}"
        )


#: Later rules rely on earlier ones.
_RULES = (_values_are_in_bounds, _environments_fit, _networks_fit, _imagination_fits, _replay_fits)
