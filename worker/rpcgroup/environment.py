"""What whoever started this worker tells it, read once by `init_rpc`."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rpcgroup import contract
from rpcgroup.errors import GroupError
from rpcgroup.transport.credentials import TlsFiles

__all__ = [
    "Environment",
    "has_secret",
    "host_identity",
    "own_address",
    "read_secret",
    "read_tls_files",
]


@dataclass(frozen=True)
class Environment:
    """Empty where the variable is not set."""

    rendezvous: str
    name: str
    role: str
    host: str
    port: int
    pod_name: str
    pod_uid: str
    stats_interval: float
    compat: str
    role_device_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Environment:
        """Raises `GroupError` naming the variable that cannot be used."""
        return cls(
            rendezvous=environ.get(contract.ENV_RENDEZVOUS, ""),
            name=environ.get(contract.ENV_NAME, ""),
            role=environ.get(contract.ENV_ROLE, ""),
            host=environ.get(contract.ENV_HOST, ""),
            port=int(_number(environ, contract.ENV_PORT, contract.DEFAULT_PORT)),
            pod_name=environ.get(contract.ENV_POD_NAME, ""),
            pod_uid=environ.get(contract.ENV_POD_UID, ""),
            stats_interval=_number(environ, contract.ENV_STATS_INTERVAL, contract.DEFAULT_STATS_INTERVAL),
            compat=environ.get(contract.ENV_COMPAT, ""),
            role_device_maps=_device_maps(environ),
        )


def has_secret(environ: Mapping[str, str] = os.environ) -> bool:
    return bool(environ.get(contract.ENV_SECRET_FILE) or environ.get(contract.ENV_SECRET))


def read_secret(environ: Mapping[str, str] = os.environ) -> bytes:
    """The group's secret; raises `GroupError` that says where it is looked for."""
    path = environ.get(contract.ENV_SECRET_FILE)
    if path:
        try:
            secret = Path(path).read_bytes().strip()
        except OSError as exc:
            where = f"{contract.ENV_SECRET_FILE}={path}"
            raise GroupError(f"cannot read the group's secret from {where}: {exc.strerror}") from exc
        if _is_open_to_all(path):
            raise GroupError(f"the group's secret {path} can be read by everybody: chmod o-rwx {path}")
    else:
        secret = environ.get(contract.ENV_SECRET, "").encode()
    if not secret:
        raise GroupError(
            "the group has no secret: RPC runs code, so peers must prove one. Set "
            f"{contract.ENV_SECRET_FILE} to a file that holds it (or {contract.ENV_SECRET}), the same for all "
            "members, e.g. made by: openssl rand -hex 32"
        )
    return secret


def read_tls_files(environ: Mapping[str, str] = os.environ) -> TlsFiles | None:
    """None where the group does without TLS; raises `GroupError` where some of the three are given and not all."""
    names = contract.ENV_TLS_CA_FILE, contract.ENV_TLS_CERT_FILE, contract.ENV_TLS_KEY_FILE
    missing = [name for name in names if not environ.get(name)]
    if len(missing) == len(names):
        return None
    if missing:
        raise GroupError(f"TLS needs all of {', '.join(names)}; not set: {', '.join(missing)}")
    authorities, certificate, key = (Path(environ[name]) for name in names)
    if key.exists() and _is_open_to_all(key):
        raise GroupError(f"the private key {key} can be read by everybody: chmod o-rwx {key}")
    return TlsFiles(authorities, certificate, key)


def _is_open_to_all(path: str | Path) -> bool:
    """By its mode, on a file system that somebody here can write to. A pod's mounts of Secrets are read-only: what
    is in there is the container's, under whatever user it runs."""
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    return not read_only and bool(stat.S_IMODE(os.stat(path).st_mode) & 0o007)


def own_address(host: str, port: int) -> str:
    """The address of the interface that reaches the rendezvous: what peers can reach, as far as anyone can tell."""
    try:
        family, kind, proto, _, target = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(target)  # sends nothing: the kernel picks the route
            address: str = probe.getsockname()[0]
    except OSError:
        return "127.0.0.1"
    return address


def host_identity() -> str:
    """Names the running kernel: equal for two processes of one host, whatever their namespaces."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1
    if value < 0:
        raise GroupError(f"{name}={text!r}: expected a number that is not negative")
    return value


def _device_maps(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By the target's role, the devices as torch prints them."""
    text = environ.get(contract.ENV_DEVICE_MAPS, "")
    if not text:
        return {}
    from rpcgroup.devices import as_device_map, maps_text  # with torch, which the commands do without

    try:
        maps = json.loads(text)
        return maps_text({role: as_device_map(device_map) for role, device_map in maps.items()})
    except (ValueError, TypeError, AttributeError, RuntimeError) as exc:  # torch's for what is no device
        raise GroupError(
            f"{contract.ENV_DEVICE_MAPS}={text!r}: expected the device maps by role, as in "
            f'{{"server": {{"cuda:0": "cuda:1"}}}}: {exc}'
        ) from exc
