"""``export --as program``: the acting step with JAX alone."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest

import emerald_jax as ej
from emerald_jax import cli

#: Plays six steps with a program; two episodes.
FOREIGNER = """
import pathlib, sys
import jax, numpy as np
program = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
step = jax.jit(program.call)
memory = [np.zeros(x.shape, x.dtype) for x in program.in_avals[3:]]
image, first = np.load(sys.argv[2]), np.load(sys.argv[3])
for i in range(len(image)):
    action, *memory = step(image[i], first[i], jax.random.key_data(jax.random.key(i)), *memory)
    print(*action.tolist())
assert "emerald_jax" not in sys.modules
"""


def test_a_program_acts_as_the_agent_does(run, tmp_path, capsys):
    target, images, firsts = (tmp_path / name for name in ("a.jaxexport", "x.npy", "f.npy"))
    command = ["export", str(run), "--to", str(target), "--as", "program", "--batch", "2"]
    assert cli.main(command) == 0
    assert "2 environment(s) after 9 updates for cpu, cuda, tpu" in capsys.readouterr().out
    agent, rng = ej.load(run), np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 2, *agent.spec.image_shape), dtype=np.uint8)
    first = np.zeros((6, 2), bool)
    first[0], first[4, 1] = True, True
    np.save(images, image)
    np.save(firsts, first)
    state, expected = agent.initial(2), []
    for i in range(6):
        action, state = agent.act(image[i], state, jax.random.key(i), is_first=first[i])
        expected.append(" ".join(map(str, action.tolist())))
    command = [sys.executable, "-c", FOREIGNER, *map(str, (target, images, firsts))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--as", "program", "--dtype", "bfloat16"], "a program computes in float32"),
        (["--batch", "2"], "weights have no batch"),
        (["--as", "program", "--batch", "0"], "--batch"),
    ],
)
def test_what_does_not_go_together_is_refused(run, tmp_path, capsys, words, line):
    assert cli.main(["export", str(run), "--to", str(tmp_path / "x"), *words]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_without_flatbuffers_one_line_says_what_to_install(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("emerald_jax.agent.program.find_spec", lambda name: None)
    assert cli.main(["export", str(run), "--to", str(tmp_path / "x"), "--as", "program"]) == 2
    assert 'pip install "emerald-jax[program]"' in capsys.readouterr().err
