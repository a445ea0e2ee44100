"""Exactly the GPUs a job may use: CUDA_VISIBLE_DEVICES in all its forms, Slurm's list, MIG."""

from __future__ import annotations

import pytest

from angelshare.energy.probes.nvml import select

UUIDS = ["GPU-aa11", "GPU-aa22", "GPU-bb33", "GPU-cc44"]
MIGS = ["MIG-1111@2", "MIG-1222@2", "MIG-9999@3"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", [(0, None)]),
        ("2,0", [(2, None), (0, None)]),
        (" 1 , 3 ", [(1, None), (3, None)]),
        ("1,1", [(1, None)]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", [(0, None)]),
        ("0,9,1", [(0, None)]),
        ("GPU-bb33", [(2, None)]),
        ("GPU-b", [(2, None)]),
        ("GPU-aa", []),
        ("GPU-cc44,GPU-aa11", [(3, None), (0, None)]),
        ("MIG-1111", [(2, "MIG-1111")]),
        ("MIG-1", []),
        ("MIG-1111,MIG-1222", [(2, "MIG-1111"), (2, "MIG-1222")]),
        ("MIG-GPU-bb33/3/0", [(2, "MIG-GPU-bb33/3/0")]),
        ("MIG-GPU-nobody/3/0", []),
    ],
)
def test_cuda_visible_devices(visible: str, expected: list[tuple[int, str | None]]) -> None:
    assert select({"CUDA_VISIBLE_DEVICES": visible}, UUIDS, MIGS)[0] == expected


def test_an_invalid_entry_is_said() -> None:
    remarks = select({"CUDA_VISIBLE_DEVICES": "0,9"}, UUIDS, MIGS)[1]
    assert remarks == ["CUDA_VISIBLE_DEVICES ends at its invalid entry '9'"]


def test_without_a_list_all_are_the_jobs() -> None:
    assert [index for index, _ in select({}, UUIDS, MIGS)[0]] == [0, 1, 2, 3]


def test_slurms_own_list_where_more_are_visible() -> None:
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        assert select({name: "1,3"}, UUIDS, [])[0] == [(1, None), (3, None)]
    assert select({"SLURM_JOB_GPUS": "2,3"}, UUIDS[:2], [])[0] == [(0, None), (1, None)]
    both = {"SLURM_JOB_GPUS": "1,3", "CUDA_VISIBLE_DEVICES": "0"}
    assert select(both, UUIDS, [])[0] == [(0, None)]
