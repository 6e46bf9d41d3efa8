"""A part of this machine that ends as a whole: own processes, mounts, network and host name. Linux, root.

Three processes: the caller waits outside; the first process inside takes in the orphans, as every first process
must; the third does the work. The end of the caller is the end of all that run inside, of their mounts and of
their network.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import traceback
from collections.abc import Callable
from typing import Final

__all__ = ["first_process", "run_inside"]

# <sched.h>; the module os has them from Python 3.12 on.
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
PR_SET_PDEATHSIG: Final = 1
PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

libc = ctypes.CDLL(None, use_errno=True)


def run_inside(work: Callable[[], object]) -> int:
    """Run `work` in new namespaces; the exit code: 0, or 1 if it raised (the traceback is on stderr).

    `PASSED_ON` signals are handed in. Call it in a process with one thread, which it moves for good to the new
    network and mounts. Raises `OSError` for who may not make namespaces.
    """
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot make namespaces: {os.strerror(number)}")
    if first := os.fork():
        return _wait_for(first)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if worker := os.fork():
        os._exit(_wait_for(worker))
    os._exit(_exit_code(work))


def first_process(outside: int) -> int:
    """The process id, as seen outside, of the first process inside; `outside` is the one in `run_inside`."""
    with open(f"/proc/{outside}/task/{outside}/children") as children:
        return int(children.read().split()[0])


def _wait_for(child: int) -> int:
    """Pass signals on to it, take in everyone else who ends here."""
    for number in PASSED_ON:
        signal.signal(number, lambda got, _: os.kill(child, got))
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status) & 0xFF


def _exit_code(work: Callable[[], object]) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        _own_mounts()
        work()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _own_mounts() -> None:
    """No mount gets out; volumes that a kubelet mounts reach its containers."""
    for command in (["--make-rprivate", "/"], ["--make-rshared", "/"], ["-t", "proc", "proc", "/proc"]):
        subprocess.run(["mount", *command], check=True)
