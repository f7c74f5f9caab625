"""MaskGIT's schedule and masks: exact counts, uniform choice, the lowest set."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from emerald_jax.ops.maskgit import (
    halton_ranks,
    lowest_confidence,
    mask_counts,
    random_mask,
    remask,
    remask_counts,
)

INF = np.inf


def test_schedule_by_hand():
    # cos(30 deg) * 512 = 443.4, cos(60 deg) * 512 = 256 exactly (float32 would give 255).
    assert mask_counts(512, 3) == (512, 443, 256)
    assert mask_counts(512, 1) == (512,)
    assert mask_counts(512, 2) == (512, 362)
    # cos(22.5 deg) * 4 = 3.7, cos(45 deg) * 4 = 2.8, cos(67.5 deg) * 4 = 1.5
    assert mask_counts(4, 4) == (4, 3, 2, 1)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 7, 48, 512])
def test_schedule_never_increases(num_tokens):
    for steps in {*range(1, min(num_tokens, 40) + 4), num_tokens, 2 * num_tokens + 3}:
        counts = mask_counts(num_tokens, steps)
        assert len(counts) == steps
        assert counts[0] == num_tokens
        assert min(counts) >= 1
        assert list(counts) == sorted(counts, reverse=True)
        for s in range(1, steps):
            # The formula holds except at integers, where rounding decides.
            exact = math.cos(math.pi * s / (2 * steps)) * num_tokens
            if abs(exact - round(exact)) > 1e-6:
                assert counts[s] == max(1, math.floor(exact))


def test_random_mask_has_exactly_the_right_count():
    num_tokens = 48
    u = np.float32([0, 0.1, 0.2, 0.37, 0.5, 0.61, 0.77, 0.9, 0.98, 0.99, 0.9999999])
    masks = np.asarray(random_mask(jax.random.key(0), num_tokens, jnp.asarray(u)))
    assert masks.shape == (len(u), num_tokens)
    assert masks.dtype == bool
    expected = [max(1, math.floor(math.cos(math.pi * x / 2) * num_tokens)) for x in u.astype(float)]
    assert expected[0] == num_tokens
    assert expected[-1] == 1
    np.testing.assert_array_equal(masks.sum(-1), expected)


def test_random_mask_chooses_uniformly():
    # Of 5 tokens, u = 0.7 masks floor(cos(63 deg) * 5) = 2: each of the ten pairs equally often.
    draws, num_tokens = 20_000, 5
    masks = np.asarray(random_mask(jax.random.key(1), num_tokens, jnp.full(draws, 0.7)))
    assert (masks.sum(-1) == 2).all()
    pairs = list(itertools.combinations(range(num_tokens), 2))
    seen = [(masks[:, a] & masks[:, b]).sum() for a, b in pairs]
    assert sum(seen) == draws
    assert scipy.stats.chisquare(seen).pvalue > 1e-3


def check_lowest(confidence, masked, count, resolution=0.0):
    result = np.asarray(lowest_confidence(jnp.asarray(confidence), jnp.asarray(masked), count))
    assert (result.sum(-1) == count).all()
    assert not (result & ~masked).any(), "a kept token went back to MASK"
    chosen = np.where(result, confidence, -INF).max(-1)
    spared = np.where(masked & ~result, confidence, INF).min(-1)
    finite = np.isfinite(chosen) & np.isfinite(spared)
    slack = np.where(finite, resolution * np.abs(np.where(finite, chosen, 0)), 0)
    assert (chosen <= spared + slack).all()
    return result


@pytest.mark.parametrize("num_tokens", [1, 2, 12, 512])
def test_lowest_confidence_selects_the_lowest(num_tokens):
    rng = np.random.default_rng(num_tokens)
    masked = rng.random((6, num_tokens)) < 0.7
    masked[:, 0] = True
    confidence = (rng.normal(size=(6, num_tokens)) * 5).astype(np.float32)
    fewest = int(masked.sum(-1).min())
    # The lowest bits of a number give way to its index: at 512 tokens 2^-14 of it is left.
    for count in {1, (fewest + 1) // 2, fewest}:
        check_lowest(confidence, masked, count, resolution=2.0**-13)


def test_lowest_confidence_by_hand():
    confidence = np.float32([-1.5, 0.25, -3, 2, -0.5, -2])
    everything = np.ones(6, bool)
    result = check_lowest(confidence, everything, 3)
    np.testing.assert_array_equal(result, [True, False, True, False, False, True])
    # Token 2 was kept earlier: it stays, however unsure.
    masked = np.array([True, True, False, True, True, True])
    result = check_lowest(confidence, masked, 3)
    np.testing.assert_array_equal(result, [True, False, False, False, True, True])


@pytest.mark.parametrize(
    "confidence",
    [
        [1.0] * 6,
        [-0.0, 0.0, -0.0, 0.0, 0.0, -0.0],
        [-INF, -INF, 3.0, -INF, -INF, -1.0],
        [-INF] * 6,
        [-3e38, 3e38, 3e38, -3e38, 1e-40, -1e-40],
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_ties_and_infinities_keep_the_count(confidence, count):
    masked = np.array([False, True, True, False, True, False])
    check_lowest(np.float32(confidence), masked, count)


def test_an_infinitely_confident_token_is_still_not_a_kept_one():
    confidence = np.full(6, INF, np.float32)
    masked = np.array([False, True, True, False, True, False])
    check_lowest(confidence, masked, 3)


def test_remasked_counts_by_hand():
    # Of 512 tokens 512, 443, 256 are MASK. Before the last step 512 - 443 = 69 are shown; half of
    # them go back. With (64, 35, 24, 12): 0, 0, min(29, 24) / 2, min(40, 12) / 2.
    assert remask_counts(mask_counts(512, 3)) == (0, 0, 34)
    assert remask_counts((64, 35, 24, 12)) == (0, 0, 12, 6)
    assert remask_counts((7,)) == (0,)


@pytest.mark.parametrize(("count", "again"), [(5, 0), (5, 2), (1, 0), (7, 3), (8, 3)])
def test_remasking_chooses_uniformly_among_shown_and_masked(count, again):
    draws, masked = (
        20_000,
        np.array([True] * 8 + [False] * 4)[np.random.default_rng(0).permutation(12)],
    )
    u = jax.random.uniform(jax.random.key(count), (draws, 12))
    mask = remask(u, jnp.broadcast_to(masked, u.shape), 8, count, again)
    mask = np.asarray(mask)
    assert (mask.sum(-1) == count).all()
    assert (mask[:, ~masked].sum(-1) == again).all()
    for chosen in (masked, ~masked):
        seen = mask[:, chosen].sum(0)
        assert seen.sum() in (0, draws * 8) or scipy.stats.chisquare(seen).pvalue > 1e-3


def test_the_balanced_order_by_hand():
    # Points (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), ... reach the cells 2, 1, 3, 0 of a
    # 2 x 2 grid: rows 1, 0, 1, 0 and columns 0, 1, 0 (again), 0. Then (5/8, 7/9): row 1, column 1.
    assert halton_ranks(4, 1)[:, 0].tolist() == [2, 1, 0, 3]
    # The first round shows group 0, 1, 0, 1 of positions 2, 1, 0, 3, the second round the others.
    assert halton_ranks(4, 2).tolist() == [[2, 6], [5, 1], [0, 4], [7, 3]]
    assert halton_ranks(1, 3).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("side", [2, 3, 4, 5, 9])
def test_the_balanced_order_spreads_over_the_grid(side):
    ranks = halton_ranks(side * side, 8)
    assert sorted(ranks.ravel()) == list(range(8 * side * side))
    for shown in range(side, 8 * side * side, side):
        parts = (ranks < shown).sum(1)
        assert parts.max() - parts.min() <= 1
    first = ranks.min(1).reshape(side, side) < side * side // 2
    for axis in (0, 1):  # half of the first round covers rows and columns evenly
        assert np.ptp(first.sum(axis)) <= max(2, side // 3)
