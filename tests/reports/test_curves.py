"""Published learning curves: windows before points, normalised scores, deviations."""

import pytest

from emerald_jax.config import Config, EnvsConfig
from emerald_jax.reports import curves
from emerald_jax.reports.runs import read_runs
from emerald_jax.reports.write import write_report
from emerald_jax.scores import aggregate, procgen


def rows(*pairs):
    return [{"step": step, "score": score, "length": 9} for step, score in pairs]


def test_windows_by_hand(make_run):
    # Pong: random -20.7, human 14.6. Points are frames, four per step; the window is 5 M frames.
    episodes = rows((1_000_000, -99.0), (2_000_000, 14.6), (2_499_999, -20.7), (3_000_000, 77.0))
    paths = [make_run("a", "atari200m", episodes=episodes)]
    (entry,) = curves.entries(curves.ATARI, read_runs(paths))
    ((game, score, normalised),) = entry.results
    assert (entry.protocol, entry.deviations, game) == ("10,000,000", (), "Pong")
    assert score == pytest.approx((14.6 - 20.7) / 2)
    assert normalised == pytest.approx(0.5)
    table = curves.table(curves.ATARI, [], [entry])
    assert table.rows[0][:4] == ("ours: atari200m", "10,000,000", "1", "0.500")
    assert table.rows[0][-1] == "**no**: 1 of 57 games"
    # DreamerV3 in the same game at the same point: (14.23 + 20.7) / 35.3.
    label = "dreamerv3 (published, these games)"
    assert (label, "10,000,000", "1", "0.990") in [row[:4] for row in table.rows]
    (pong,) = curves.games_table(curves.ATARI, [entry]).rows
    assert pong == ("Pong", "-3.0", "-20.7", "14.6", "20.4", *pong[5:])


def test_a_short_run_counts_with_its_last_episodes_and_says_so(make_run):
    envs = {"distribution_mode": "easy", "num_levels": 200, "image_size": 32, "time_limit": 99}
    envs["backgrounds"] = False
    path = make_run("a", "procgen", episodes=rows(*((9 * t, 7.5) for t in range(150))), envs=envs)
    (entry,) = curves.entries(curves.PROCGEN, read_runs([path]))
    assert entry.protocol == "1,300"
    assert entry.deviations == (
        "last 100 training episodes, before 1,000,000 frames",
        "images of 32 pixels, not 64",
        "easy levels, not hard",
        "200 levels, not all",
        "no backgrounds",
        "time limit 99",
    )
    assert entry.normalised == {"coinrun": [0.5]}  # between 5 and 10


def test_returns_of_dm_control_are_out_of_1000(make_run):
    # A point is in frames, two per step: the window ends at step 50,000 and has 25,000 steps.
    episodes = rows((24_999, 0), (30_000, 300), (50_000, 600), (60_000, 1000))
    paths = [make_run("a", "dmc-vision", episodes=episodes)]
    (entry,) = curves.entries(curves.CONTROL, read_runs(paths))
    assert (entry.protocol, entry.deviations) == ("100,000", ())
    assert entry.normalised == {"walker-walk": [0.45]}
    (walk,) = curves.games_table(curves.CONTROL, [entry]).rows
    assert walk[:4] == ("walker-walk", "450.0", "0.0", "1000.0")
    at = curves.published(curves.CONTROL, 1_000_000)
    assert set(at) == {"dreamerv3", "drqv2", "curl", "sac", "ppo"}
    envs = {"frame_skip": 4, "fast_render": True, "time_limit": 100}
    path = make_run("b", "dmc-vision", episodes=episodes, envs=envs)
    (entry,) = curves.entries(curves.CONTROL, read_runs([path]))
    limit = "time limit 200 frames, not 1,000"
    assert entry.deviations == ("frame skip 4, not 2", "fast rendering", limit)


def test_seeds_are_averaged_and_games_aggregated(make_run):
    found = [
        make_run(f"{game}{seed}", "procgen", env=f"procgen:{game}", seed=seed, episodes=episodes)
        for game, seed, score in (("coinrun", 0, 5), ("coinrun", 1, 10), ("maze", 0, 13))
        for episodes in [rows((1_000_000, score))]
    ]
    (entry,) = curves.entries(curves.PROCGEN, read_runs(found))
    assert entry.normalised == {"coinrun": [0.0, 1.0], "maze": [1.5]}
    gap = aggregate(entry.normalised)["gap"]
    assert gap.value == pytest.approx(1 / 3)  # of 1, 0 and 0


def test_published_aggregates():
    # The mean that DreamerV3's paper states for Procgen is 66 %.
    at = curves.published(curves.PROCGEN, 50_000_000)
    means = {
        agent: aggregate({g: [x] for g, x in row.items()})["mean"] for agent, row in at.items()
    }
    assert means["dreamerv3"].value == pytest.approx(0.66, abs=0.01)
    missing = curves.published(curves.ATARI, 200_000_000)["dreamerv3"]
    assert len(missing) == 42  # the other curves end earlier


@pytest.mark.parametrize(
    ("env", "envs", "title"),
    [
        ("atari:Pong", {}, None),
        ("atari:Pong", {"sticky": 0.25}, "Atari 200M"),
        ("atari:Zaxxon", {"full_actions": True}, "Atari 200M"),
        ("atari:Adventure", {"sticky": 0.25}, None),
        ("procgen:maze", {}, "Procgen"),
        ("dmc:cartpole-swingup", {}, "DM Control from pixels"),
        ("dmc:humanoid-walk", {}, None),
        ("crafter", {}, None),
    ],
)
def test_the_benchmark_of_a_run(env, envs, title):
    found = curves.benchmark_of(Config(env=env, envs=EnvsConfig(**envs)))
    assert (found and found.title) == title


def test_sections_of_a_report(make_run, tmp_path):
    paths = [
        make_run("a", "atari200m", episodes=rows((2_500_000, 3.0))),
        make_run("p", "procgen", episodes=rows((50, 3.0), (1_000_000, 3.0))),
        make_run("d", "dmc-vision", episodes=rows((50_000, 3.0))),
        make_run("k", "atari100k", episodes=rows((50, 3.0))),
    ]
    text = write_report(paths, tmp_path / "out")
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    control = "## DM Control from pixels"
    assert sections == ["## Atari 100k", "## Atari 200M", "## Procgen", control, "## Runs"]
    for name in ("atari200m.png", "procgen.png", "dmc-vision.png"):
        assert f"]({name})" in text
        assert (tmp_path / "out" / name).stat().st_size > 5000
    assert set(procgen()["agents"]) == {"dreamerv3", "ppo", "ppg"}
    assert all(f"{agent} (published, these games)" in text for agent in procgen()["agents"])
