"""Three Adam optimisers behind one interface: world model, actor, critic (section 6)."""

from __future__ import annotations

import optax

from emerald_jax.config import OptimConfig
from emerald_jax.types import Params

#: The parameter groups, each with its own optimiser, in the order metrics list them.
GROUPS = ("world_model", "actor", "critic")


def build_optimizers(config: OptimConfig) -> dict[str, optax.GradientTransformation]:
    """Global-norm clip, then Adam, one chain per parameter group (DreamerV3; no weight decay).

    Each works on its group as one flat vector: a few long operations instead of some for every
    array, and checkpoints with few leaves.
    """
    agent = {"eps": config.agent_eps, "clip": config.agent_clip}
    settings = {
        "world_model": {"lr": config.model_lr, "eps": config.model_eps, "clip": config.model_clip},
        "actor": {"lr": config.actor_lr, **agent},
        "critic": {"lr": config.critic_lr, **agent},
    }
    return {
        name: optax.flatten(
            optax.chain(optax.clip_by_global_norm(s["clip"]), optax.adam(s["lr"], eps=s["eps"]))
        )
        for name, s in settings.items()
    }


def apply_gradients(
    optimizers: dict[str, optax.GradientTransformation],
    grads: dict[str, Params],
    opt_state: dict[str, optax.OptState],
    params: dict[str, Params],
) -> tuple[dict[str, Params], dict[str, optax.OptState]]:
    """One step of every optimiser; all gradients were taken at ``params``."""
    new_params, new_state = {}, {}
    for name, optimizer in optimizers.items():
        updates, new_state[name] = optimizer.update(grads[name], opt_state[name], params[name])
        new_params[name] = optax.apply_updates(params[name], updates)
    return new_params, new_state
