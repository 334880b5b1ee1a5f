"""The order of the tests."""

LONG = ("test_notebooks.py", "test_docs.py")


def pytest_collection_modifyitems(items):
    """Long ones first, so that at the end no worker is left with one while the others have nothing to do."""
    items.sort(key=lambda item: item.path.name not in LONG)
