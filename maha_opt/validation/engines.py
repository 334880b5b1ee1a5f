"""Where the cells of a sweep are computed: the cores of this machine, or a Dask cluster; both through joblib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

from joblib import Parallel, cpu_count, parallel_config

from maha_opt.run_folder import versions

ENGINES = "'local', 'dask' or 'dask://HOST:PORT'"


def check_engine(engine: str) -> None:
    """Raises ValueError unless it is one of those that `parallel` takes."""
    if engine not in ("local", "dask") and not engine.startswith("dask://"):
        raise ValueError(f"engine must be {ENGINES}, but got {engine!r}.")


@contextmanager
def parallel(engine: str, jobs: int | None) -> Iterator[Parallel]:
    """What runs tasks side by side and yields their results as they end, in any order.

    Args:
        engine: "local": processes of this machine, through loky; with one job, this process. "dask": a Dask cluster of
            this machine, which ends with the context. "dask://HOST:PORT": a running one, by its scheduler.
        jobs: Number of workers; None: one for each core, or all of a running cluster.

    Raises:
        ValueError: If there is no such engine.
        OSError: If the scheduler does not answer.
        RuntimeError: If the cluster's workers have other versions of what the numbers depend on.
        ModuleNotFoundError: If dask or distributed is not installed.
    """
    check_engine(engine)
    with ExitStack() as stack:
        if engine == "local":
            jobs = cpu_count() if jobs is None else jobs
            stack.enter_context(parallel_config("loky", inner_max_num_threads=1))
        else:
            from distributed import Client, LocalCluster

            if engine == "dask":
                workers = cpu_count() if jobs is None else jobs
                cluster = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0")
                client = Client(stack.enter_context(cluster), set_as_default=False)
            else:
                client = Client(engine.replace("dask://", "tcp://"), timeout=10, set_as_default=False)
            stack.enter_context(client)
            _check_versions(cast(dict[str, dict[str, str | None]], client.run(versions)))
            stack.enter_context(parallel_config("dask", client=client))
            jobs = -1 if jobs is None else jobs
        yield Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=cast(str, 1))  # joblib says str


def _check_versions(found: dict[str, dict[str, str | None]]) -> None:
    own = versions()
    if not found:
        raise RuntimeError("engine: the Dask cluster has no workers.")
    for address, theirs in found.items():
        if wrong := [f"{name} {theirs.get(name)} (here {own[name]})" for name in own if theirs.get(name) != own[name]]:
            raise RuntimeError(f"engine: the worker at {address} has other versions: {', '.join(wrong)}.")
