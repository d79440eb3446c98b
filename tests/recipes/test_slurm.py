"""The example for SLURM: what its jobs ask for, and that a run behind its cluster ends with rows."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from theodolite.dataset.reading import open_dataset

from ..typed import wrong

EXAMPLE = Path(__file__).parents[2] / "docs/slurm.py"


@pytest.fixture
def example(tmp_path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("slurm_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.OUT = tmp_path / "out"
    return module


def test_what_a_job_asks_for(example: Any, tmp_path: Path) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    from distributed.security import Security

    with example.make_cluster(jobqueue.SLURMCluster, Security.temporary()) as cluster:
        script = cluster.job_script()
        assert cluster.scheduler_address.startswith("tls://")
    for text in (
        "#SBATCH -p gpu",
        "#SBATCH -A my-account",
        "#SBATCH --gpus=1",
        "-t 24:00:00",
        "--lifetime 1425m",
    ):
        assert text in script, script
    for file in tmp_path.glob("*.pem"):
        assert file.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_run_behind_its_cluster(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cluster of this machine in the place of SLURM's: keys, scheduler and command are those of the example."""
    from distributed import LocalCluster

    class Here(LocalCluster):
        def __init__(self, *, security: Any, **_asked: Any) -> None:
            super().__init__(
                n_workers=0,
                threads_per_worker=1,
                processes=False,
                security=security,
                dashboard_address=wrong(None),
                protocol="tls://",
            )

        def scale(
            self, n: int = 1, memory: Any = None, cores: Any = None, *, jobs: int | None = None
        ) -> None:
            assert jobs in (None, example.JOBS)  # None: as it closes
            super().scale(n)

    monkeypatch.setitem(sys.modules, "dask_jobqueue", types.SimpleNamespace(SLURMCluster=Here))
    (tmp_path / "a.mp4").write_bytes(b"no video")
    example.RECIPE = "videos"
    example.OVERRIDES = [f"source.root={tmp_path}"]
    assert example.main() == 1
    (row,) = open_dataset(example.OUT).rows()
    assert row.reasons == ("unreadable_video",)
