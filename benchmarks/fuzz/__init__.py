"""Random problems against oracles of their own: ``python -m benchmarks.fuzz``, see docs/fuzzing.md."""
