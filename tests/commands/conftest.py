"""The scripted environment of the environments' tests, and a folder with a sweep."""

from tests.envs.conftest import scripted_env
from tests.sweep_cases import folder

__all__ = ["folder", "scripted_env"]
