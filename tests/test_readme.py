"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split("\n", 1)[0] for block in BLOCKS])
def test_every_python_example_of_the_readme_runs(block):
    torch.manual_seed(0)
    names = {"Y": torch.randn(2, 6, 4, 256), "available": torch.ones(2, 6, 4, dtype=torch.bool)}
    exec(compile(block, str(README), "exec"), names)
    if "solution" in names:
        assert torch.isfinite(names["solution"].weights).all()
