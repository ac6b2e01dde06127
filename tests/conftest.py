import os

import pytest


@pytest.fixture(autouse=True)
def _environment_of_its_own():
    """Give every test the environment that the suite was started with: a recipe's `env:` and launches change it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
