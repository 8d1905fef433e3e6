"""The folders of small models, as the tests of encoders have them."""

from tests.encoders.conftest import folders

__all__ = ["folders"]
