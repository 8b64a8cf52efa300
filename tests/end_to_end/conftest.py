"""Torch process groups without Ray, as the training tests have them."""

from tests.training.conftest import in_group

__all__ = ["in_group"]
