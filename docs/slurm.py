"""A corpus on a SLURM cluster: one worker a job, one GPU a worker, jobs that come and go. Edit the three lines.

    pip install "theodolite[cluster]"
    python slurm.py    # on a login node, in tmux: it starts the jobs and holds the dataset; run again, it goes on

The folders must be seen from every node. A job that ends at its time limit loses the clips it had in flight; they are
taken up by the next one.
"""

import sys
from pathlib import Path
from typing import Any

PARTITION, ACCOUNT, JOBS, HOURS = "gpu", "my-account", 16, 24
RECIPE, OVERRIDES = "corpus/sekai-game", ["source.root=/data/sekai"]
OUT = Path("/data/runs/sekai-game")


def make_cluster(cluster_class: Any, security: Any) -> Any:
    """Jobs of 16 cores, 128 GB and one GPU, each of which is one dask worker."""
    return cluster_class(
        queue=PARTITION,
        account=ACCOUNT,
        cores=16,
        processes=1,
        memory="128GB",
        walltime=f"{HOURS:02d}:00:00",
        job_extra_directives=["--gpus=1"],
        # Ends by itself a quarter before its limit, spread over some minutes, and the next job takes its place.
        worker_extra_args=["--lifetime", f"{60 * HOURS - 15}m", "--lifetime-stagger", "5m"],
        security=security,
        shared_temp_directory=str(OUT.parent),  # keys for the nodes, readable by you alone
    )


def main() -> int:
    """Annotate what the dataset still lacks."""
    import dask
    from dask_jobqueue import SLURMCluster
    from distributed.security import Security
    from theodolite.recipes.loader import load_recipe
    from theodolite.recipes.run import RunOptions, run_annotate

    # A scheduler runs whatever it is sent: without keys everybody on the cluster could.
    security = Security.temporary()
    keys = {
        "distributed.comm.require-encryption": True,
        "distributed.comm.tls.ca-file": security.tls_ca_file,
        "distributed.comm.tls.client.cert": security.tls_client_cert,
        "distributed.comm.tls.client.key": security.tls_client_key,
    }
    with dask.config.set(keys), make_cluster(SLURMCluster, security) as cluster:
        cluster.scale(jobs=JOBS)
        options = RunOptions(scheduler=cluster.scheduler_address)
        text, code = run_annotate(load_recipe(RECIPE, OVERRIDES), OUT, options)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
