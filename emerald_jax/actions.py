"""What an agent chooses at each step: categories and numbers side by side.

A single category (a discrete action space) is an int32 class index `[]`. All other spaces are a
float32 vector `[A]` with one entry per category, its class index, or per number, which lies in
[-1, 1]. Replay, networks and policy use this form; ``envs/gym.py`` converts it to an environment's
own at the environment. Where no action led into a frame, -1 stands in place of an index, NaN in
every entry of a vector, and the networks read zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ActionSpace:
    """The entries of an action.

    Attributes:
        sizes: per entry the number of its classes, or 0 for a number in [-1, 1].
    """

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, actions: ActionSpace | int) -> ActionSpace:
        """``actions`` itself, or the discrete space of so many actions."""
        return cls((int(actions),)) if isinstance(actions, int | np.integer) else actions

    @property
    def discrete(self) -> bool:
        """Whether an action is one class index and not a vector."""
        return len(self.sizes) == 1 and self.sizes[0] > 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one action: `[]`, or `[A]`."""
        return () if self.discrete else (len(self.sizes),)

    @property
    def dtype(self) -> type[np.generic]:
        """Of one action: int32, or float32."""
        return np.int32 if self.discrete else np.float32

    @property
    def width(self) -> int:
        """Length of the vector that networks read: a one-hot per category, or the number."""
        return sum(size or 1 for size in self.sizes)

    @property
    def outputs(self) -> int:
        """Length of the actor's output: a logit per class, mean and deviation of a number."""
        return sum(size or 2 for size in self.sizes)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest value of every entry, each `[A]` float32."""
        sizes = np.array(self.sizes, np.float32)
        return np.where(sizes == 0, -1, 0).astype(np.float32), np.where(sizes == 0, 1, sizes - 1)

    def groups(self) -> list[tuple[int, int]]:
        """Entries that share a distribution, `(entry, size)`; numbers in a row are one group.

        ``size`` is the number of classes of a category, or minus the count of the numbers.
        """
        found, at = [], 0
        for size, run in groupby(self.sizes):
            count = len(list(run))
            parts = [(at + i, size) for i in range(count)] if size else [(at, -count)]
            found, at = found + parts, at + count
        return found

    def none(self, *lead: int) -> np.ndarray:
        """`[*lead]` or `[*lead, A]`: no action."""
        return np.full((*lead, *self.shape), -1 if self.discrete else np.nan, self.dtype)

    def idle(self, *lead: int) -> np.ndarray:
        """`[*lead]` or `[*lead, A]`: first class of each category, numbers in their middle."""
        return np.zeros((*lead, *self.shape), self.dtype)

    def sample(self, rng: np.random.Generator, *lead: int, dtype: Any = np.int32) -> np.ndarray:
        """Uniformly random actions `[*lead]` or `[*lead, A]`.

        ``dtype`` of discrete actions also decides which ones a generator draws.
        """
        if self.discrete:
            return rng.integers(self.sizes[0], size=lead, dtype=dtype)
        (low, high), sizes = self.bounds, np.array(self.sizes)
        u = rng.random((*lead, len(sizes)), np.float32)
        index = np.minimum(np.floor(u * sizes), high)
        return np.where(sizes == 0, low + u * (high - low), index).astype(np.float32)

    def replaced(self, actions: np.ndarray, where: np.ndarray, by: np.ndarray) -> np.ndarray:
        """``actions`` `[...]` or `[..., A]` with one action ``by`` where `[...]` is True."""
        where = where.reshape(*where.shape, *(1 for _ in self.shape))
        return np.where(where, by, actions)

    def checked(self, actions: Any, *lead: int) -> np.ndarray:
        """``actions`` `[*lead]` or `[*lead, A]` in our type; numbers are cut to [-1, 1].

        ValueError, which continues "actions ", on another shape or kind of number. Classes are
        checked by :meth:`wrong`.
        """
        actions, shape = np.asarray(actions), (*lead, *self.shape)
        kinds, what = ("iu", "integers") if self.discrete else ("iuf", "numbers")
        if actions.shape != shape or actions.dtype.kind not in kinds:
            raise ValueError(f"must be {list(shape)} {what}, got {actions.dtype} {actions.shape}")
        if self.discrete:
            return actions
        actions = actions.astype(np.float32)
        return np.where(np.array(self.sizes) == 0, np.clip(actions, -1, 1), actions)

    def wrong(self, actions: np.ndarray) -> np.ndarray:
        """`[...]` bool: which of the :meth:`checked` actions `[...]` do not exist."""
        if self.discrete:
            return (actions < 0) | (actions >= self.sizes[0])
        low, high = self.bounds
        fits = (low <= actions) & (actions <= high)  # also False for NaN
        whole = (np.array(self.sizes) == 0) | (actions == np.rint(actions))
        return ~(fits & whole).all(-1)

    def shares(self, actions: np.ndarray) -> list[np.ndarray]:
        """Shares of the classes of every category among actions `[n]` or `[n, A]`."""
        columns = zip(self.sizes, actions.reshape(-1, len(self.sizes)).T, strict=True)
        counts = [np.bincount(x.astype(int), minlength=size) for size, x in columns if size]
        return [count / max(1, len(actions)) for count in counts]

    def scaled(self, actions: np.ndarray) -> np.ndarray:
        """Vectors `[..., A]` with every entry in [-1, 1], from the first class to the last."""
        sizes = np.array(self.sizes)
        return np.where(sizes == 0, actions, 2 * actions / np.maximum(sizes - 1, 1) - 1)

    @property
    def valid(self) -> str:
        """The valid actions, for messages."""
        if self.discrete:
            return f"0 … {self.sizes[0] - 1}"
        ranges = [f"0 … {size - 1}" if size else "-1 … 1" for size in self.sizes]
        return f"[{', '.join(ranges[:8])}{', …' if len(ranges) > 8 else ''}]"

    def __str__(self) -> str:
        if self.discrete:
            return f"{self.sizes[0]} actions"
        classes = [str(size) for size in self.sizes if size]
        numbers = len(self.sizes) - len(classes)
        parts = [f"{numbers} number{'s' * (numbers > 1)}"] if numbers else []
        if classes:
            kind = "category" if len(classes) == 1 else "categories"
            parts.append(f"{len(classes)} {kind} of {', '.join(classes)} classes")
        return f"actions of {' and '.join(parts)}"


def absent(action: Any) -> Any:
    """Where no action led into a frame: `[...]` bool for `[...]` int or `[..., A]` float.

    For arrays of NumPy and of JAX.
    """
    if action.dtype.kind != "f":
        return action < 0
    entry = action[..., 0]
    return entry != entry  # NaN alone differs from itself
