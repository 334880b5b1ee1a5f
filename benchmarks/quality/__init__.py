"""What a true optimization in the fusion is worth, on real text: ``python -m benchmarks.quality``."""
