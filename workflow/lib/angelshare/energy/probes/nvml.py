"""GPU energy counters (mJ), power (mW) and telemetry through NVML, for the devices a job may use.

Devices are known by UUID. A field that a device does not support is None, a device that is lost
gives rows of None until it answers again; nothing is ever turned into zero.
"""

from __future__ import annotations

import ctypes
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

LIBRARY = "libnvidia-ml.so.1"
COLUMNS = (
    "t_ns",
    "read_ns",
    "counter_mj",
    "average_mw",
    "instant_mw",
    "usage_mw",
    "util_percent",
    "memory_bytes",
    "temperature_c",
    "sm_mhz",
    "memory_mhz",
    "throttle",
)
POWER_FIELDS = (185, 186)
"""NVML_FI_DEV_POWER_AVERAGE and NVML_FI_DEV_POWER_INSTANT."""


def select(
    environment: Mapping[str, str], uuids: list[str], migs: list[str]
) -> tuple[list[tuple[int, str | None]], list[str]]:
    """The devices a job may use: (NVML index, MIG uuid or None) each, and remarks in words.

    ``CUDA_VISIBLE_DEVICES`` as CUDA reads it: indices, UUIDs or their prefixes, MIG names; the list
    ends at its first invalid entry; empty hides all. Without it, Slurm's own list counts where more
    GPUs are visible than it names. ``migs`` holds the names of the MIG instances of the machine.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        slurm = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS") or ""
        indices = [int(one) for one in slurm.split(",") if one.isdigit()]
        if not indices or len(indices) >= len(uuids):
            return [(index, None) for index in range(len(uuids))], []
        return [(index, None) for index in indices if index < len(uuids)], []
    chosen: list[tuple[int, str | None]] = []
    for entry in filter(None, (one.strip() for one in listed.split(","))):
        found = _resolve(entry, uuids, migs)
        if found is None:
            return chosen, [f"CUDA_VISIBLE_DEVICES ends at its invalid entry {entry!r}"]
        if found not in chosen:
            chosen.append(found)
    return chosen, []


def _resolve(entry: str, uuids: list[str], migs: list[str]) -> tuple[int, str | None] | None:
    if entry.isdigit():
        return (int(entry), None) if int(entry) < len(uuids) else None
    if entry.startswith("MIG-GPU-"):
        owner = entry[len("MIG-") :].split("/")[0]
        return (uuids.index(owner), entry) if owner in uuids else None
    if entry.startswith("MIG-"):
        hits = [name for name in migs if name.split("@")[0].startswith(entry)]
        return (int(hits[0].split("@")[1]), hits[0].split("@")[0]) if len(hits) == 1 else None
    found = [index for index, uuid in enumerate(uuids) if uuid.startswith(entry)]
    return (found[0], None) if len(found) == 1 and entry.startswith("GPU-") else None


def open_nvml(folder: str | None, environment: Mapping[str, str]) -> tuple[list[Gpu], list[str]]:
    """Open NVML with pynvml from ``folder``: the selected GPUs, and remarks in words.

    No library or no driver means no GPU and no remark; a driver that fails is a remark.
    """
    try:
        library = ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return [], []
    if folder is None:
        return [], ["NVML is there, but the module pynvml (nvidia-ml-py) is not installed"]
    import sys

    sys.path.append(folder)
    import pynvml

    try:
        pynvml.nvmlInit()
        return _inventory(pynvml, library, environment)
    except pynvml.NVMLError as error:
        absent = (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        return [], [] if error.value in absent else [f"NVML failed: {error}"]


def _inventory(
    nvml: Any, library: Any, environment: Mapping[str, str]
) -> tuple[list[Gpu], list[str]]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    uuids = [_string(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    migs = [f"{name}@{index}" for index, h in enumerate(handles) for name in _mig_names(nvml, h)]
    chosen, remarks = select(environment, uuids, migs)
    models = {_string(nvml.nvmlDeviceGetName(handle)) for handle in handles}
    numbered = environment.get("CUDA_VISIBLE_DEVICES", "GPU")[:1].isdigit()
    if numbered and len(models) > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        remarks.append(
            "GPUs of different models are chosen by number without CUDA_DEVICE_ORDER=PCI_BUS_ID; "
            "CUDA may number them otherwise than NVML"
        )
    merged: dict[int, list[str]] = {}
    for index, mig in chosen:
        merged.setdefault(index, []).extend([mig] if mig else [])
    return [Gpu(nvml, library, handles[i], i, names) for i, names in merged.items()], remarks


def _string(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _mig_names(nvml: Any, handle: Any) -> list[str]:
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:
        return []
    names = []
    for index in range(count):
        try:
            mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            names.append(_string(nvml.nvmlDeviceGetUUID(mig)))
        except nvml.NVMLError:
            continue
    return names


class Gpu:
    """One GPU that is read; `mig` names the job's instances on it.

    What is asked at every sample goes to the library's functions directly, with the memory for each
    answer prepared once: half the work of pynvml's own calls.
    """

    def __init__(self, nvml: Any, library: Any, handle: Any, index: int, mig: list[str]) -> None:
        self.nvml = nvml
        self.library = library
        self.handle = handle
        self.index = index
        self.mig = mig
        self.uuid = _string(nvml.nvmlDeviceGetUUID(handle))
        self.model = _string(nvml.nvmlDeviceGetName(handle))
        self.module = any(chip in self.model for chip in ("GH200", "GB200", "GB300"))
        self.calls: dict[str, tuple[Any, tuple[Any, ...], Any]] = {}
        self.telemetry: list[int | None] = []
        self._prepare()

    def _prepare(self) -> None:
        """Bind every question to the device's handle; one the library does not know is left out."""
        nvml, number, long = self.nvml, ctypes.c_uint, ctypes.c_ulonglong
        questions: dict[str, tuple[str, tuple[int, ...], Any]] = {
            "counter": ("TotalEnergyConsumption", (), long * 1),
            "usage": ("PowerUsage", (), number * 1),
            "util": ("UtilizationRates", (), number * 2),
            "memory": ("MemoryInfo", (), long * 3),
            "temperature": ("Temperature", (nvml.NVML_TEMPERATURE_GPU,), number * 1),
            "sm": ("ClockInfo", (nvml.NVML_CLOCK_SM,), number * 1),
            "clock": ("ClockInfo", (nvml.NVML_CLOCK_MEM,), number * 1),
            "why": ("CurrentClocksThrottleReasons", (), long * 1),
        }
        known = self.calls.keys() if self.calls else {*questions, "fields"}
        for field, (name, arguments, kind) in questions.items():
            answer = kind()
            function = getattr(self.library, f"nvmlDeviceGet{name}", None)
            if function is not None and field in known:
                self.calls[field] = (
                    function,
                    (self.handle, *arguments, ctypes.byref(answer)),
                    answer,
                )
        function = getattr(self.library, "nvmlDeviceGetFieldValues", None)
        if function is not None and "fields" in known:
            powers = (nvml.c_nvmlFieldValue_t * 2)()
            for power, field_id in zip(powers, POWER_FIELDS, strict=True):
                power.fieldId = field_id
                power.scopeId = nvml.NVML_POWER_SCOPE_MODULE if self.module else 0
            self.calls["fields"] = function, (self.handle, 2, ctypes.byref(powers)), powers

    def describe(self) -> dict[str, object]:
        """What the trace's header says of it; ``slices`` are MIG compute slices of 7."""
        return {
            "uuid": self.uuid,
            "model": self.model,
            "index": self.index,
            "driver": _string(self.nvml.nvmlSystemGetDriverVersion()),
            "power_limit_w": self._limit_w(),
            "power_scope": "module" if self.module else "gpu",
            "mig": self.mig,
            "mig_enabled": bool(_mig_names(self.nvml, self.handle)),
            "slices": sum(self._slices(name) for name in self.mig),
        }

    def _limit_w(self) -> float | None:
        try:
            return float(self.nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle)) / 1000
        except self.nvml.NVMLError:
            return None

    def _slices(self, name: str) -> int:
        try:
            handle = self.nvml.nvmlDeviceGetHandleByUUID(name)
            return int(self.nvml.nvmlDeviceGetAttributes(handle).gpuInstanceSliceCount)
        except self.nvml.NVMLError:
            return 0

    def counter(self) -> int | None:
        """The energy counter in millijoules since the driver was loaded."""
        return self._ask("counter")

    def sample(self, look: bool = True) -> list[int | None]:
        """One row in the order of :data:`COLUMNS`; ``t_ns`` is the middle of the counter's read.

        The older power reading is asked for only where the driver has not both of the newer ones.
        Without ``look`` utilisation (which the driver itself averages over up to a second), memory,
        temperature and clocks are those of the last look.
        """
        begin = time.monotonic_ns()
        counter = self._ask("counter")
        took = time.monotonic_ns() - begin
        average, instant = self._powers()
        ask = self._ask
        if look:
            self.telemetry = [
                ask("util"),
                ask("memory", 2),
                ask("temperature"),
                ask("sm"),
                ask("clock"),
            ]
        return [
            begin + took // 2,
            took,
            counter,
            average,
            instant,
            ask("usage") if average is None or instant is None else None,
            *self.telemetry,
            ask("why"),
        ]

    def _powers(self) -> tuple[int | None, int | None]:
        """Milliwatts of :data:`POWER_FIELDS`."""
        call = self.calls.get("fields")
        if call is None or not self._answered("fields", call):
            return None, None
        average, instant = call[2]
        return (
            None if average.nvmlReturn else average.value.uiVal,
            None if instant.nvmlReturn else instant.value.uiVal,
        )

    def _ask(self, field: str, place: int = 0) -> int | None:
        """A number of the answer; None where the field is unsupported or cannot be read now."""
        call = self.calls.get(field)
        if call is None or not self._answered(field, call):
            return None
        value: int = call[2][place]
        return value

    def _answered(self, field: str, call: tuple[Any, tuple[Any, ...], Any]) -> bool:
        """Make a call; an unsupported field is never asked for again."""
        function, arguments, _ = call
        code = function(*arguments)
        if code == 0:
            return True
        if code in (self.nvml.NVML_ERROR_NOT_SUPPORTED, self.nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            del self.calls[field]
        elif field == "counter":
            self._find_again()
        return False

    def _find_again(self) -> None:
        try:
            self.handle = self.nvml.nvmlDeviceGetHandleByUUID(self.uuid)
        except self.nvml.NVMLError:
            return
        self._prepare()
