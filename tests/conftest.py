"""What all tests share: one thread a process, drawn examples that are always the same, and their order."""

import os

from hypothesis import HealthCheck, settings

# Before torch is imported, also by the processes that tests start: those that run the tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No clock decides a result: neither a deadline nor how long it took to draw.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

LONG = ("test_docs.py", "test_notebooks.py")


def pytest_collection_modifyitems(items):
    """Long ones first, so that at the end no worker is left with one while the others have nothing to do.

    Workers begin with a part of the list each and then steal from one another: so half of the long ones stand in the
    middle, where the second of two workers begins.
    """
    long = [item for item in items if item.path.name in LONG]
    others = [item for item in items if item.path.name not in LONG]
    middle = len(others) // 2
    items[:] = long[::2] + others[:middle] + long[1::2] + others[middle:]
