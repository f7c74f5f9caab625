"""The README names the files between the command and the loss, and they are the real ones."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import pytest

from emerald_jax import cli, losses

ROOT = Path(__file__).resolve().parents[1]


class SeenError(Exception):
    """Ends the run where the loss is reached."""


def test_the_readme_lists_the_stack_from_the_command_to_the_loss(tmp_path, monkeypatch) -> None:
    files: list[str] = []

    def latent_losses(*_):
        for frame in traceback.extract_stack()[:-1]:
            path = Path(frame.filename)
            if path.is_relative_to(ROOT / "emerald_jax"):
                name = path.relative_to(ROOT).as_posix()
                files.extend([name] if name not in files else [])
        raise SeenError

    monkeypatch.setattr(losses, "latent_losses", latent_losses)
    with pytest.raises(SeenError):
        cli.main(["train", "tiny", "--logdir", str(tmp_path / "run"), "--devices", "1", "--quiet"])
    assert len(files) <= 5
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d+\. `(emerald_jax/[a-z_/]+\.py)`", text, flags=re.MULTILINE)
    assert files == listed
