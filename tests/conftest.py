import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores; before torch is imported


@pytest.fixture(autouse=True)
def _environment_of_its_own():
    """Give every test the environment that the suite was started with: a recipe's `env:` and launches change it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
