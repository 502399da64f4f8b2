"""Where a process stands among those of its run: by TPU pods, SLURM steps, or three variables of the environment."""

import dataclasses
import math
import os

import jax

from fourreal.errors import UserError, one_line

COORDINATOR, COUNT, ID = "FOURREAL_COORDINATOR", "FOURREAL_PROCESS_COUNT", "FOURREAL_PROCESS_ID"
TIMEOUT = "FOURREAL_START_TIMEOUT"  # seconds until all processes must have joined


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one of several processes stands."""

    host: str
    """of process 0"""
    port: int
    """of process 0; JAX takes the next one"""
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None
    """the only devices of its host that it uses; None: all"""
    names: tuple[str, ...] = ()
    """what the cluster calls the processes, where it says so"""

    @property
    def coordinator(self) -> str:
        """As the user writes it."""
        return f"{self.host}:{self.port}"

    @property
    def jax_port(self) -> int:
        """Of JAX's service."""
        return self.port + 1 if self.port < 65535 else self.port - 1

    def name(self, index: int) -> str:
        """A process as its user knows it."""
        return f"{index} ({self.names[index]})" if self.names else str(index)


def start_timeout() -> float:
    """Seconds from the environment; raises UserError."""
    text = os.environ.get(TIMEOUT, "300")
    try:
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    except ValueError:
        pass
    raise UserError(f"{TIMEOUT} is '{text}': give seconds, above 0")


def find_place(timeout: float) -> Place | None:
    """This process's place by the environment; None where it is alone.

    Raises UserError for variables that are wrong, TimeoutError where the cluster does not say who the others are.
    """
    if given := {name: os.environ[name] for name in (COORDINATOR, COUNT, ID) if os.environ.get(name)}:
        return named_place(given)
    # JAX's detection asks the cloud's metadata server, so only where it is sure to be.
    from jax._src import cloud_tpu_init, clusters
    from jax._src.clusters import cloud_tpu_cluster

    asked = wanted_platforms()
    pod = cloud_tpu_init.running_in_cloud_tpu_vm and (not asked or "tpu" in asked)
    if not pod and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:  # which srun alone sets
        return None
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
    except (RuntimeError, OSError) as error:
        raise TimeoutError(f"the other hosts could not be found ({one_line(error)}): set {COORDINATOR}") from error
    coordinator, count, index, local_devices = found
    if coordinator is None or count == 1:
        return None
    names = pod_names(count, cloud_tpu_cluster.BaseTpuCluster._get_num_slices()) if pod else ()
    host, _, port = coordinator.rpartition(":")
    return Place(host, int(port), count, index, tuple(local_devices) if local_devices else None, names)


def wanted_platforms() -> str:
    """The platforms that the user or JAX has chosen, or nothing."""
    return jax.config.jax_platforms or ""


def pod_names(count: int, slices: int) -> tuple[str, ...]:
    """Workers as the cloud counts them."""
    each = count // slices
    return tuple((f"slice {i // each}, " if slices > 1 else "") + f"worker {i % each}" for i in range(count))


def named_place(given: dict[str, str]) -> Place | None:
    """The place that our variables name; None for one process alone."""
    missing = [name for name in (COORDINATOR, COUNT, ID) if name not in given]
    if missing:
        raise UserError(f"{next(iter(given))} is set, {missing[0]} is not: set all of {COORDINATOR}, {COUNT} and {ID}")
    host, _, port = given[COORDINATOR].rpartition(":")
    if not host or not (port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f"{COORDINATOR} is '{given[COORDINATOR]}': give host:port of process 0, as in first-host:8476")
    for name, least in ((COUNT, 1), (ID, 0)):
        if not given[name].isdecimal() or int(given[name]) < least:
            raise UserError(f"{name} is '{given[name]}': give a whole number from {least} on")
    count, index = int(given[COUNT]), int(given[ID])
    if index >= count:
        raise UserError(f"{ID} is {index} with {COUNT} {count}: processes are numbered from 0 to {count - 1}")
    return Place(host.strip("[]"), int(port), count, index) if count > 1 else None
