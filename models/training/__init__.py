"""Training on text: what a model is trained on, which models there are to train, and the runs.

Needs the extra `train`. The loop itself, checkpoints, mixed precision, accumulation and distribution are those of
`transformers.Trainer`.
"""
