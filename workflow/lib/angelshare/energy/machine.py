"""Where a job ran: host, boot, container, cgroup, Slurm, software and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
from pathlib import Path
from typing import Any

from angelshare.energy.constants import cpu_model
from angelshare.energy.launch import launch_of
from angelshare.energy.probes.process_tree import ancestors, start_ticks
from angelshare.energy.sidecar import Env, Run

PACKAGES = ("torch", "transformers", "vllm", "lm-eval", "numpy", "pyarrow", "polars", "codecarbon")
SLURM = {
    "cluster": "SLURM_CLUSTER_NAME",
    "job_id": "SLURM_JOB_ID",
    "restart_count": "SLURM_RESTART_COUNT",
    "step_id": "SLURM_STEP_ID",
    "partition": "SLURM_JOB_PARTITION",
    "nodes": "SLURM_JOB_NODELIST",
}


def run_of(workflow_id: str, config_sha256: str | None) -> Run:
    """Where this process runs, and what tells later whether it is still alive."""
    slurm: dict[str, Any] = {
        name: os.environ[key] for name, key in SLURM.items() if key in os.environ
    }
    if "restart_count" in slurm:
        slurm["restart_count"] = int(slurm["restart_count"])
    launch = launch_of(os.environ)
    return Run(
        workflow_id=workflow_id,
        config_sha256=config_sha256,
        host=socket.gethostname(),
        boot_id=_read("/proc/sys/kernel/random/boot_id"),
        container=_container(),
        cgroup=_cgroup(),
        slurm=slurm or None,
        rank=launch.rank if launch else None,
        world=launch.world if launch else None,
        launch=launch.name if launch else None,
        pid=os.getpid(),
        pid_start=start_ticks(os.getpid()),
        pid_namespace=_namespace(),
    )


def is_alive(run: Run) -> bool | None:
    """Whether the process of ``run`` still lives; None when that cannot be told from here."""
    if run.host != socket.gethostname() or run.pid is None:
        return None
    if run.boot_id != _read("/proc/sys/kernel/random/boot_id"):
        return False
    if run.pid_namespace != _namespace():
        return None
    return start_ticks(run.pid) == run.pid_start


def descends_from(run: Run) -> bool:
    """Whether this process is the one of ``run`` or was started by it, directly or indirectly."""
    here = (run.host, run.boot_id, run.pid_namespace)
    if here != (socket.gethostname(), _read("/proc/sys/kernel/random/boot_id"), _namespace()):
        return False
    return (run.pid, run.pid_start) in ancestors(os.getpid())


def env_of() -> Env:
    """Software and hardware of this machine."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Env(
        os=platform.platform(),
        python=platform.python_version(),
        packages=packages,
        cpu_model=cpu_model(),
        cpu_count=os.cpu_count(),
        ram_gb=round(memory_bytes / 2**30, 1),
    )


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _cgroup() -> str | None:
    lines = (_read("/proc/self/cgroup") or "").splitlines()
    paths = [line.split(":", 2)[2] for line in lines if line.count(":") >= 2]
    return max(paths, key=len, default=None)


def _container() -> str | None:
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        if name in os.environ:
            return os.environ[name]
    return "docker" if os.path.exists("/.dockerenv") else None
