"""What all tests share: one thread a process, and their order."""

import os

# Before torch is imported, also by the processes that tests start: those that run the tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG = ("test_docs.py", "test_notebooks.py")


def pytest_collection_modifyitems(items):
    """Long ones first, so that at the end no worker is left with one while the others have nothing to do."""
    items.sort(key=lambda item: item.path.name not in LONG)
