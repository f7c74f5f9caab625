"""The scripted environment of the environments' tests."""

from tests.envs.conftest import scripted_env

__all__ = ["scripted_env"]
