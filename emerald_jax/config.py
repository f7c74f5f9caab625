"""Every setting of emerald_jax as typed, frozen dataclasses; ``rules.py`` says what they must obey.

Where a default comes from is marked in each help text:
(P) the EMERALD paper, arXiv 2507.04075; (R) the authors' released defaults as public reproductions
record them; (D) DreamerV3, arXiv 2301.04104; (O) our own choice where the sources are silent.

The named configurations live in ``presets.py``. Nothing heavy is imported here.

The rules a configuration must obey: each returns None, or one line that says what to do.

``Config.validate`` asks them in order; the first complaint is the one the user reads.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any, Literal


class ConfigError(ValueError):
    """A setting, or a combination of settings, that cannot work; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class EnvsConfig:
    """How environments are stepped. Which one is the top-level setting ``env``."""

    count: int = 16
    """Environments stepped side by side. Crafter 16, Atari 100k 1. (P)"""
    image_size: int = 64
    """Height and width of the square RGB image the agent sees, in pixels. (P)"""
    time_limit: int = 0
    """Agent steps after which an episode is cut (not a death); 0 keeps the environment's own."""
    workers: Literal["auto", "process", "inline"] = "auto"
    """Host environments: in processes of their own (`process`), or all in this one (`inline`);
    `auto` keeps a single one in this one. (O)"""
    processes: int = 0
    """Worker processes that host environments are divided over, at most one per environment; 0
    takes one per CPU core that this process may use. (O)"""
    frame_skip: int = 0
    """Frames each action lasts in `atari:` and `gym:` environments and your own; 0 keeps the
    environment's own: 4 for Atari, 1 elsewhere. (P)"""
    image_key: str = ""
    """Entry of a dict observation that is the image, in `gym:` environments and your own; empty
    takes the only one there is, `render` what the environment draws."""
    worker_timeout: float = 120.0
    """Seconds an environment in a worker process may take to start, reset or step before the
    process is replaced, with all environments in it. (O)"""
    max_worker_failures: int = 10
    """Failures before the run ends: an environment that raised, or a worker process that hung or
    was killed; each is replaced. (O)"""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Kinds and sizes of the networks; grid, groups and classes shape the latent z [h, w, G, K]."""

    latent: Literal["spatial", "vector"] = "spatial"
    """`spatial`: G categoricals at each of grid x grid positions (P); `vector`: G in all, from the
    flattened grid (D)."""
    sequence: Literal["tssm", "rssm"] = "tssm"
    """What makes h_t of the past: a transformer with a cache (P), or a GRU (D)."""
    prior: Literal["maskgit", "linear", "autoregressive"] = "maskgit"
    """What predicts z_t from h_t in imagination: the MaskGIT predictor (P); the linear dynamics
    head alone, no predictor (P, ablation); or one position after another (O)."""
    decoder_input: Literal["zh", "z"] = "zh"
    """What the image decoder sees: z_t and h_t (P), or z_t alone (O)."""
    posterior: Literal["auto", "o", "oh"] = "auto"
    """What the posterior of z_t sees: the image (P), or the image and h_t (D), which only the rssm
    can have. `auto` is each one's own: `o` for the tssm, `oh` for the rssm. (O)"""
    grid: int = 4
    """Positions per side of the encoder's last and the decoder's first feature map, and of a
    spatial latent, h = w. (P)"""
    groups: int = 32
    """Categorical variables per position, G. (P)"""
    classes: int = 32
    """Classes of each categorical, K. (P)"""
    channels: int = 32
    """Channels of the encoder's first stage; doubled at every stage. (R)"""
    width: int = 512
    """Width D of the sequence model, of h_t and of the head MLPs. (P)"""
    latent_width: int = 128
    """Channels a position's one-hot latent is embedded to before it is flattened. A vector latent,
    which is one position, is embedded to the width. (R)"""
    blocks: int = 4
    """Blocks of the temporal transformer. (R)"""
    heads: int = 8
    """Attention heads, in the temporal transformer and in the predictor. (R)"""
    ff_ratio: int = 2
    """Hidden width of the feed-forward layers as a multiple of the transformer's width. (R)"""
    context: int = 64
    """Left attention context C of the temporal transformer, in steps. (R)"""
    predictor_width: int = 256
    """Width of the MaskGIT or autoregressive predictor. (R)"""
    predictor_blocks: int = 2
    """Transformer blocks of the MaskGIT or autoregressive predictor. (R)"""
    token_width: int = 32
    """Width of one embedded token (a class or MASK) in the predictor. (R)"""
    head_layers: int = 2
    """Hidden layers of the reward, continue, actor and critic MLPs. (D)"""
    bins: int = 255
    """Bins of the two-hot reward and value distributions, over symlog [-20, 20]. (D)"""
    unimix: float = 0.01
    """Share of the uniform distribution mixed into every categorical. (D)"""
    dropout: float = 0.1
    """Dropout rate of the transformers, in the world-model loss only. (R)"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; parameters, logits, KLs and returns stay float32. `auto`: bfloat16 on a GPU
    or TPU, float32 on a CPU. (O)"""
    remat: bool = False
    """Recompute every convolution stage and transformer block of the world model in the backward
    pass: less memory, more time; no difference on a CPU. (O)"""

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
        own = "oh" if self.sequence == "rssm" else "o"
        return (own if self.posterior == "auto" else self.posterior) == "oh"


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
    """Weight of the MaskGIT or autoregressive predictor's KL. (P)"""
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
    """Every how many posterior states a rollout starts. (R)"""
    decode_steps: int = 3
    """MaskGIT decoding steps S; 0 samples the linear dynamics head, whatever the prior. The
    autoregressive prior takes one step per position, the linear one none. (P)"""
    gamma: float = 0.997
    """Discount per agent step. (D)"""
    lam: float = 0.95
    """Lambda of the lambda-return. (D)"""
    entropy: float = 3e-4
    """Weight of the policy entropy bonus. (D)"""
    return_decay: float = 0.99
    """Decay per update of the return range's moving average. (D)"""
    slow_rate: float = 0.02
    """Share of the critic that moves into the slow critic per update. (D)"""
    slow_weight: float = 1.0
    """Weight of the critic's cross-entropy to the slow critic's mean. (D)"""
    noise_hold: int = 1
    """Vector steps for which a training environment keeps the random number that picks its actions.
    1 draws it anew each time. (R) With more, each action is still as probable as the policy has it,
    but a policy that does not care where it goes will go one way for a while, and so see more.
    Evaluation always draws anew. (O)"""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Three Adam optimisers, no weight decay."""

    model_lr: float = 1e-4
    """Learning rate of the world model. (D)"""
    actor_lr: float = 3e-5
    """Learning rate of the actor. (D)"""
    critic_lr: float = 3e-5
    """Learning rate of the critic. (D)"""
    model_eps: float = 1e-8
    """Adam epsilon of the world model. (D)"""
    agent_eps: float = 1e-5
    """Adam epsilon of the actor and the critic. (D)"""
    model_clip: float = 1000.0
    """Largest global gradient norm of the world model. (D)"""
    agent_clip: float = 100.0
    """Largest global gradient norm of the actor and of the critic. (D)"""
    micro_batch: int = 0
    """Sequences whose gradients are computed at once, at most; those of a batch are summed. Fewer
    need less memory; 0 takes all on a GPU or TPU, on a CPU as many as suit its caches. (O)"""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What is remembered and how batches are drawn from it."""

    capacity: int = 1_000_000
    """Records kept, over all environments; the oldest go first. One record is one frame. (P)"""
    sampler: Literal["streams", "windows"] = "streams"
    """`streams`: successive chunks of whole episodes with the transformer's memory carried along
    (P); `windows`: independent windows with an empty memory, kept for comparison (O)."""
    best_of: int = 1
    """Every fourth sequence of `streams` draws this many episodes and reads the one with the
    highest return. 1 draws evenly (P); more show a rare success more often than it happens (O)."""
    batch: int = 16
    """Sequences per batch, B. (P)"""
    length: int = 64
    """Steps per sequence, L. (P)"""
    prefill: int = 1024
    """Environment steps of random play before the first update. (O)"""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes, and how often."""

    every: int = 50
    """Updates between two rows of metrics.jsonl and TensorBoard scalars. (O)"""
    pictures: int = 2000
    """Updates between two pictures; one more is drawn at the end; 0 draws none. (O)"""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints; one more is written at the end. (O)"""
    keep: int = 3
    """Checkpoints kept. (O)"""
    eval_episodes: int = 16
    """Episodes played with the final weights before a finished run ends; 0 plays none. (O)"""
    max_bad_updates: int = 5
    """Non-finite updates in a row after which the run stops. (O)"""
    quiet: bool = False
    """No progress bar and no narration: only the result line. (O)"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. `emerald-jax presets` lists the named ones."""

    preset: str = "crafter"
    """Name of the preset this configuration started from."""
    env: str = "crafter"
    """Environment: `crafter`, `gymnax:Catch-bsuite`, … (`emerald-jax envs` lists them)."""
    steps: int = 10_000_000
    """Environment steps of the whole run, prefill included, over all environments. (P)"""
    max_minutes: float = 0.0
    """Wall-clock minutes after which the run ends cleanly; 0 sets no limit."""
    train_ratio: float = 64.0
    """Replayed steps per environment step; 64 at 16 x 64 batches and 16 environments is one update
    per vector step. Atari 100k: 1024. (P)"""
    seed: int = 0
    """Seed of parameters, sampling, replay and environments."""
    logdir: str = ""
    """Run directory; empty makes runs/PRESET-SEED, or runs/PRESET-ENV-SEED with another environment
    than the preset's. The same directory continues its run."""
    devices: int = 0
    """Local devices to train on with pmap; 0 takes all that JAX finds."""
    init_from: str = ""
    """Run or export whose weights a new run starts from; empty starts from random ones. (O)"""
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
        """Down-sampling stages of the encoder: each halves the image until it meets the grid."""
        return int(math.log2(self.envs.image_size // self.model.grid))

    @property
    def updates_per_vector_step(self) -> float:
        """Gradient updates owed for one step of all environments."""
        return self.train_ratio * self.envs.count / (self.replay.batch * self.replay.length)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of :meth:`to_dict`.

        Args:
            values: nested dict; missing keys take their defaults.

        Raises:
            ConfigError: on a key that is no setting, naming the nearest one.
        """
        return _build(cls, values, "")

    def validate(self, num_devices: int = 1) -> None:
        """Refuse impossible combinations with one line that says what to do.

        Args:
            num_devices: local devices the batch is split over.

        Raises:
            ConfigError: on the first impossible combination found.
        """
        for rule in RULES:
            message = rule(self)
            if message:
                raise ConfigError(message)
        if self.replay.batch % num_devices:
            raise ConfigError(
                f"replay.batch {self.replay.batch} does not divide over {num_devices} devices: "
                f"choose a multiple of {num_devices}, or set --devices"
            )


def _build(cls: type, values: dict[str, Any], path: str) -> Any:
    """Dataclass ``cls`` from a nested dict; ``path`` names where we are, for messages."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; nearest: {path}{near[0]}" if near else ""
            raise ConfigError(f"unknown setting {path}{key}{hint}")
        nested = _GROUPS.get(key) if cls is Config else None
        kwargs[key] = _build(nested, value, f"{path}{key}.") if nested else value
    return cls(**kwargs)


_GROUPS: dict[str, type] = {
    "envs": EnvsConfig,
    "model": ModelConfig,
    "loss": LossConfig,
    "behavior": BehaviorConfig,
    "optim": OptimConfig,
    "replay": ReplayConfig,
    "log": LogConfig,
}


def _positive(config: Config) -> str | None:
    """Counts that must be at least one, probabilities that must lie in [0, 1)."""
    at_least_one = {
        "envs.count": config.envs.count,
        "model.grid": config.model.grid,
        "model.groups": config.model.groups,
        "model.channels": config.model.channels,
        "model.blocks": config.model.blocks,
        "model.heads": config.model.heads,
        "model.context": config.model.context,
        "behavior.horizon": config.behavior.horizon,
        "behavior.start_stride": config.behavior.start_stride,
        "behavior.noise_hold": config.behavior.noise_hold,
        "replay.batch": config.replay.batch,
        "replay.best_of": config.replay.best_of,
        "log.every": config.log.every,
        "log.keep": config.log.keep,
        "steps": config.steps,
    }
    for name, value in at_least_one.items():
        if value < 1:
            return f"{name} is {value}: it must be at least 1"
    if config.model.classes < 2 or config.replay.length < 2:
        return "model.classes and replay.length must be at least 2"
    if not 0 <= config.model.dropout < 1 or not 0 <= config.model.unimix < 1:
        return "model.dropout and model.unimix must lie in [0, 1)"
    if config.train_ratio <= 0:
        return f"train_ratio is {config.train_ratio}: it must be positive"
    return None


def _envs(config: Config) -> str | None:
    envs = config.envs
    for name in ("time_limit", "processes", "frame_skip", "max_worker_failures"):
        if getattr(envs, name) < 0:
            return f"envs.{name} is {getattr(envs, name)}: it must not be negative"
    if not envs.worker_timeout > 0:
        return f"envs.worker_timeout is {envs.worker_timeout}: it must be positive"
    if envs.processes and envs.workers == "inline":
        return (
            f"envs.processes {envs.processes} goes unused with envs.workers inline: "
            "leave it at 0, or choose --envs.workers process"
        )
    return None


def _grid_reachable(config: Config) -> str | None:
    size, grid = config.envs.image_size, config.model.grid
    ratio = size // grid
    if size % grid or ratio < 2 or ratio & (ratio - 1):
        return (
            f"envs.image_size {size} cannot reach model.grid {grid} by halving: "
            f"choose an image size of grid times a power of two, such as {grid * 16}"
        )
    return None


def _widths_divide(config: Config) -> str | None:
    m = config.model
    split = {
        "width": m.width if m.sequence == "tssm" else m.heads,
        "predictor_width": m.predictor_width if m.prior != "linear" else m.heads,
    }
    for name, width in split.items():
        if width % m.heads:
            return f"model.{name} {width} does not divide by model.heads {m.heads}"
    if m.sequence == "tssm" and m.width % 2:
        return f"model.width {m.width} must be even: its positions are sines and cosines"
    return None


def _variants_go_together(config: Config) -> str | None:
    m = config.model
    if m.posterior == "oh" and m.sequence == "tssm":
        return (
            "model.posterior oh needs model.sequence rssm: the transformer reads all z_t at once, "
            "before there is any h_t; choose --model.posterior o"
        )
    if m.prior == "autoregressive" and m.latent == "vector":
        return (
            "model.prior autoregressive goes from position to position and model.latent vector has "
            "only one: choose --model.prior maskgit or linear"
        )
    return None


def _decode_steps(config: Config) -> str | None:
    most = config.tokens if config.model.prior == "maskgit" else math.inf
    if not 0 <= config.behavior.decode_steps <= most:
        return (
            f"behavior.decode_steps {config.behavior.decode_steps} must lie between 0 and the "
            f"{config.tokens} tokens of a latent state"
        )
    return None


def _starts_exist(config: Config) -> str | None:
    if config.behavior.start_stride > config.replay.length:
        return (
            f"behavior.start_stride {config.behavior.start_stride} leaves no start in sequences of "
            f"replay.length {config.replay.length}: choose a smaller stride"
        )
    return None


def _search(config: Config) -> str | None:
    replay, hold = config.replay, config.behavior.noise_hold
    if hold > 10_000:
        return f"behavior.noise_hold is {hold}: no game needs more than 10000 steps"
    if replay.best_of > 1 and replay.sampler == "windows":
        return "replay.best_of is for replay.sampler streams: windows know no episodes"
    if replay.best_of > 1 and replay.batch < 4:
        return (
            "replay.best_of is for every fourth sequence, and replay.batch "
            f"{replay.batch} has fewer than four: choose a larger batch, or --replay.best-of 1"
        )
    return None


def _replay_holds_a_batch(config: Config) -> str | None:
    rows = config.replay.capacity // config.envs.count
    if rows <= config.replay.length:
        return (
            f"replay.capacity {config.replay.capacity} keeps {rows} steps of each of "
            f"{config.envs.count} environments, fewer than replay.length {config.replay.length}: "
            f"choose at least {(config.replay.length + 1) * config.envs.count}"
        )
    if config.replay.prefill < config.replay.length * config.envs.count:
        return (
            f"replay.prefill {config.replay.prefill} is less than one sequence per environment: "
            f"choose at least {config.replay.length * config.envs.count}"
        )
    return None


def _optim(config: Config) -> str | None:
    if config.optim.micro_batch < 0:
        return f"optim.micro_batch is {config.optim.micro_batch}: it must not be negative"
    return None


def _log(config: Config) -> str | None:
    log = config.log
    for name, value in {
        "max_minutes": config.max_minutes,
        "log.pictures": log.pictures,
        "log.eval_episodes": log.eval_episodes,
    }.items():
        if value < 0:
            return f"{name} is {value}: it must not be negative"
    if not log.checkpoint_minutes > 0:
        return f"log.checkpoint_minutes is {log.checkpoint_minutes}: it must be positive"
    return None


#: Asked in this order.
RULES = (
    _positive,
    _envs,
    _grid_reachable,
    _widths_divide,
    _variants_go_together,
    _decode_steps,
    _starts_exist,
    _search,
    _replay_holds_a_batch,
    _optim,
    _log,
)
