"""Data parallel training finds a gradient for every parameter, and it is that of one process."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from causality import random_ids
from maha import VOCAB, build
from torch.nn.parallel import DistributedDataParallel

from models import CausalLanguageModel

N = 12


def model(variant):
    return CausalLanguageModel(build(variant), aux_weight=0.1).train()


def worker(rank, variants, meeting, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for variant in variants:
        parallel = DistributedDataParallel(model(variant))  # a parameter without gradient would stop the second step
        for step in range(2):
            parallel.zero_grad()
            ids = random_ids(4, N, VOCAB, seed=step)[rank::2]
            parallel(ids, labels=ids).loss.backward()
        if rank == 0:
            results[variant] = [weight.grad.clone() for weight in parallel.module.parameters()]
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_give_the_gradients_of_one_with_the_same_batch(tmp_path):
    variants = ("default", "nash", "one scale", "budget that learns")
    meeting = (tmp_path / "meeting").as_uri()  # a file, not a port that another process may take in between
    with mp.Manager() as manager:
        results = manager.dict()
        mp.start_processes(worker, (variants, meeting, results), nprocs=2, start_method="spawn")
        for variant in variants:
            single = model(variant)
            ids = random_ids(4, N, VOCAB, seed=1)
            single(ids, labels=ids).loss.backward()
            for (name, weight), grad in zip(single.named_parameters(), results[variant], strict=True):
                # float32: the two halves are summed in another order
                torch.testing.assert_close(grad, weight.grad, atol=1e-5, rtol=1e-4, msg=f"{variant}: {name}")
