"""What `rpcgroup doctor` looks at: each check is a function that says what it found and how to mend it."""

from __future__ import annotations

import http.client
import importlib
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from rpcgroup import contract
from rpcgroup.environment import read_secret
from rpcgroup.errors import RpcGroupError
from rpcgroup.local.etcd_server import find_etcd
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.url import open_rendezvous, parse_rendezvous_url

__all__ = ["CHECKS", "Finding", "examine"]

OK, WARN, FAIL = "ok", "warn", "fail"

CLOCK_SKEW: Final = 5.0
"""Seconds; deadlines of drains are times of day, and a grace period is some tens of seconds."""
DESCRIPTORS: Final = 1024
"""Two or three connections to each peer, so this serves some hundred."""
OLDEST: Final = {"torch": (2, 6), "grpcio": (1, 49)}


@dataclass(frozen=True)
class Finding:
    """`verdict` is ok, warn or fail; `mend` says what to do where it is not ok."""

    check: str
    verdict: str
    text: str
    mend: str = ""


Check = Callable[[Mapping[str, str]], Finding]


def examine(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Run every check; one that breaks is a finding itself."""
    for name, check in CHECKS.items():
        try:
            yield check(environ)
        except Exception as exc:  # whatever is wrong with this machine must not hide the other findings
            yield Finding(name, FAIL, f"the check itself failed: {type(exc).__name__}: {exc}", "report this")


def python(_: Mapping[str, str]) -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", OK, f"{found} at {sys.executable}")


def torch(_: Mapping[str, str]) -> Finding:
    return package("torch", "pip install 'torch>=2.6', built for your hardware")


def grpcio(_: Mapping[str, str]) -> Finding:
    return package("grpcio", "pip install 'grpcio>=1.49'")


def package(name: str, mend: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, FAIL, "not installed", mend)
    if numbers(found) < OLDEST[name]:
        return Finding(name, FAIL, f"{found} is too old", mend)
    return Finding(name, OK, found)


def numbers(text: str) -> tuple[int, ...]:
    """`2.6.0+cpu` -> (2, 6, 0)."""
    parts = text.partition("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def cuda(_: Mapping[str, str]) -> Finding:
    try:
        library = importlib.import_module("torch")
    except ImportError:
        return Finding("cuda", WARN, "not looked for: that takes torch")
    if library.cuda.is_available():
        names = [library.cuda.get_device_name(i) for i in range(library.cuda.device_count())]
        return Finding("cuda", OK, f"{len(names)} devices: {', '.join(dict.fromkeys(names))}")
    if library.version.cuda and os.path.exists("/dev/nvidiactl"):
        mend = f"install a driver for CUDA {library.version.cuda}, or a torch built for yours (nvidia-smi)"
        return Finding("cuda", WARN, "this machine has a GPU that torch cannot use", mend)
    return Finding("cuda", OK, "no GPU; workers run on the CPU")


def etcd_program(environ: Mapping[str, str]) -> Finding:
    try:
        program = find_etcd()
    except RpcGroupError as exc:
        if environ.get(contract.ENV_RENDEZVOUS):
            return Finding("etcd program", OK, "none, and none is needed: the rendezvous is elsewhere")
        return Finding("etcd program", FAIL, str(exc), "pip install 'rpcgroup[local]'")
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    found = next((line.split()[-1] for line in answer.stdout.splitlines() if "etcd Version" in line), "")
    if not found:
        return Finding(
            "etcd program", FAIL, f"{program} does not run: {answer.stderr.strip()}", "reinstall it"
        )
    return Finding("etcd program", OK, f"{found} at {program}")


def etcd_reachable(environ: Mapping[str, str]) -> Finding:
    url = environ.get(contract.ENV_RENDEZVOUS)
    if not url:
        text = f"{contract.ENV_RENDEZVOUS} is not set; `rpcgroup run` starts an etcd of its own"
        return Finding("etcd reachable", OK, text)
    mend = f"check {contract.ENV_RENDEZVOUS}={url}: does etcd run there, and does a firewall let you through?"
    try:
        seat = open_rendezvous(url)
        try:
            members = seat.view().members
        finally:
            seat.close()
    except RpcGroupError as exc:
        return Finding("etcd reachable", FAIL, str(exc), mend)
    return Finding("etcd reachable", OK, f"{url}: {len(members)} members")


def secret(environ: Mapping[str, str]) -> Finding:
    named = environ.get(contract.ENV_SECRET_FILE) or environ.get(contract.ENV_SECRET)
    if not named and not environ.get(contract.ENV_RENDEZVOUS):
        return Finding("secret", OK, "not set; `rpcgroup run` makes one for each group")
    try:
        read_secret(environ)
    except RpcGroupError as exc:
        return Finding("secret", FAIL, str(exc), f"see {contract.ENV_SECRET_FILE}")
    path = environ.get(contract.ENV_SECRET_FILE)
    if not path:
        mend = f"put it in a file of mode 0600 and set {contract.ENV_SECRET_FILE}"
        return Finding("secret", WARN, f"in {contract.ENV_SECRET}, which child processes inherit", mend)
    return Finding("secret", OK, f"in {path}")


def clock(environ: Mapping[str, str]) -> Finding:
    url = environ.get(contract.ENV_RENDEZVOUS, "")
    if not url.startswith("etcd://") or EtcdCredentials.from_env().tls:
        return Finding("clock", OK, "not compared: no etcd to ask in plain text")
    place = parse_rendezvous_url(url).places[0]
    connection = http.client.HTTPConnection(place, timeout=5)
    try:
        connection.request("GET", "/version")
        told = connection.getresponse().headers["Date"]
    except (OSError, http.client.HTTPException) as exc:
        return Finding("clock", WARN, f"{place} does not tell its time: {exc}", "see etcd reachable")
    finally:
        connection.close()
    if told is None:
        return Finding("clock", OK, f"not compared: {place} does not tell its time")
    skew = time.time() - parsedate_to_datetime(told).timestamp()
    if abs(skew) > CLOCK_SKEW:
        mend = "synchronise both clocks (chrony, systemd-timesyncd): drains have deadlines by the clock"
        return Finding("clock", WARN, f"{skew:+.0f} s from that of {place}", mend)
    return Finding("clock", OK, f"within {CLOCK_SKEW:.0f} s of that of {place}")


def port(environ: Mapping[str, str]) -> Finding:
    host = environ.get(contract.ENV_HOST) or "127.0.0.1"
    number = environ.get(contract.ENV_PORT) or str(contract.DEFAULT_PORT)
    if not number.isdigit() or int(number) > 65535:
        return Finding(
            "port", FAIL, f"{contract.ENV_PORT}={number!r} is no port", "give a number up to 65535"
        )
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, int(number), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.bind(address)
            bound = probe.getsockname()
    except OSError as exc:
        mend = f"set {contract.ENV_HOST} to an address of this machine and {contract.ENV_PORT} to a free port"
        return Finding("port", FAIL, f"cannot listen on {host}:{number}: {exc.strerror or exc}", mend)
    which = "any free port" if number == "0" else f"port {bound[1]}"
    return Finding("port", OK, f"{which} on {host}")


def descriptors(_: Mapping[str, str]) -> Finding:
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < DESCRIPTORS:
        mend = f"ulimit -n {min(4096, hard) if hard > 0 else 4096}"
        return Finding("file descriptors", WARN, f"{limit} for each process: few for a large group", mend)
    return Finding("file descriptors", OK, f"{limit} for each process")


CHECKS: Final[Mapping[str, Check]] = {
    "python": python,
    "torch": torch,
    "grpcio": grpcio,
    "cuda": cuda,
    "etcd program": etcd_program,
    "etcd reachable": etcd_reachable,
    "secret": secret,
    "clock": clock,
    "port": port,
    "file descriptors": descriptors,
}
