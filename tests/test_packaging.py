"""What a wheel must hold is in the wheel: data files, packages, and a public face that is typed."""

from __future__ import annotations

import configparser
import importlib.util
from pathlib import Path

import pytest

import emerald_jax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "emerald_jax"


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_data_file_is_declared(setup_cfg: configparser.ConfigParser) -> None:
    patterns = setup_cfg["options.package_data"]["emerald_jax"].split()
    declared = {path for pattern in patterns for path in PACKAGE.glob(pattern) if path.is_file()}
    files = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert files == declared
    assert PACKAGE / "py.typed" in files


def test_every_folder_with_code_is_a_package() -> None:
    # `packages = find:` passes over folders without one.
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_public_face_is_complete_and_documented() -> None:
    for name in emerald_jax.__all__:
        value = getattr(emerald_jax, name)
        assert value is not None
        if callable(value):
            assert value.__doc__, f"{name} has no docstring"
    assert set(emerald_jax.__all__) <= set(dir(emerald_jax))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        emerald_jax.nonsense  # noqa: B018


def test_the_version_is_one(setup_cfg: configparser.ConfigParser) -> None:
    assert setup_cfg["metadata"]["version"] == "attr: emerald_jax.__version__"
    log = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {emerald_jax.__version__}" in log


def test_the_documentation_reads_the_code() -> None:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    settings = hooks.settings()
    for name in ("--model.width", "--behavior.decode-steps", "--log.quiet", "--train-ratio"):
        assert f"| `{name}` |" in settings
    assert "Imagined steps H per rollout. *(paper)*" in settings
    api = hooks.api()
    assert len(emerald_jax.__all__) <= 36, "users need about thirty names"
    missing = [n for n in emerald_jax.__all__ if not n.startswith("__") and f".{n}\n" not in api]
    assert missing == []
    assert "### crafter-small" in hooks.presets()
