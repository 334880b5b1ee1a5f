"""A small run that the tests of training share."""

import pytest

pytest.importorskip("transformers", reason="Hugging Face transformers is not installed: pip install 'maha-opt[train]'")

from small import settings

from models.training.runs import train


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run that came to its end; not to be written to."""
    return train(settings(), tmp_path_factory.mktemp("run") / "run", say=lambda line: None)
