"""A worker's seat in its group: its record and the lease that the record hangs on.

After `enter` one thread owns both. It keeps the lease, and whenever the record is not there as it should be
(a change, a lost lease, a hasty eviction, an empty store) it writes it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from rpcgroup.errors import MemberExistsError, RendezvousError, RendezvousUnavailableError
from rpcgroup.membership.etcd.client import CALL_SECONDS, EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.lease import Lease, is_lease_gone, revoke
from rpcgroup.membership.etcd.own_record import Entry, OwnRecord, left
from rpcgroup.membership.record import MemberRecord, MemberState

__all__ = ["Seat"]

REFUSED_SECONDS: Final = 1.0
"""The pause after etcd refused a write: it will not change its mind at once."""

EVICTION_SECONDS: Final = 1.0
"""Between the mark of an eviction and the end of the lease: written before that, the record would end with it."""

_log = logging.getLogger(__name__)


class Seat:
    """`on_new_lease` is called by the seat's thread when it replaced a lost lease, before it writes again."""

    def __init__(
        self, client: EtcdClient, keys: GroupKeys, ttl: int, on_new_lease: Callable[[], None]
    ) -> None:
        self._client = client
        self._on_new_lease = on_new_lease
        self._lease = Lease(client, ttl)
        self._stored = OwnRecord(client, keys, self._lease)
        self._changed = threading.Condition()
        # _changed guards all of the following.
        self._record = MemberRecord(name="")
        self._wanted = 0  # counts what _record should be; _written, what it is
        self._written = 0
        self._marked_until = math.inf  # when a record that stands as evicted is written again
        self._superseded: MemberExistsError | None = None
        self._dismissed = False  # evicted while it was leaving: it does not come back
        self._trouble: RendezvousError | None = None  # why the last write or keep-alive failed
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def record(self) -> MemberRecord:
        """As it should be, which in an outage is not what is stored."""
        with self._changed:
            return self._record

    @property
    def lease_id(self) -> int:
        return self._lease.id

    def enter(self, record: MemberRecord, seconds: float) -> Entry:
        """Raises `MemberExistsError`, `RendezvousUnavailableError`."""
        deadline = time.monotonic() + seconds
        self._lease.grant(seconds)
        try:
            entry = self._stored.create(record, deadline)
        except MemberExistsError:
            revoke(self._client, self._lease.id, left(deadline))
            raise
        with self._changed:
            self._record = entry.record
        return entry

    def start(self) -> None:
        name = f"rpcgroup-etcd-seat-{self._record.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)  # joined in stop()
        self._thread.start()

    def change(self, changes: dict[str, Any], seconds: float) -> MemberRecord:
        """Raises `RendezvousUnavailableError`, and the change is written later; `MemberExistsError`."""
        with self._changed:
            self._record = record = replace(self._record, **changes)
            number = self._want()
            self._changed.wait_for(lambda: self._written >= number or self._superseded, seconds)
            if self._superseded:
                raise self._superseded
            if self._written < number:
                what = f"the change of {', '.join(changes)} is pending: {self._trouble}"
                raise self._client.unavailable(seconds, what)
        return record

    def put_back(self) -> None:
        """My record was seen to go: write it again."""
        with self._changed:
            self._want()

    def was_marked(self) -> None:
        """My record was seen to stand as evicted. Its end follows, unless who evicts has died on the way.

        Who was asked to leave is out then; anybody else was taken for dead by mistake, and puts its record back.
        """
        with self._changed:
            if self._record.state is MemberState.DRAINING:
                self._dismissed = True
                return
            self._marked_until = time.monotonic() + EVICTION_SECONDS
            self._changed.notify_all()

    def stop(self, seconds: float | None = None) -> bool:
        """End the thread; the record stays as it is. False where it is still in a call after `seconds`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def leave(self, reason: str, seconds: float) -> None:
        """After `stop`: say farewell, delete the record and what is under the lease.

        Raises `RendezvousUnavailableError`; the lease ends by itself then.
        """
        deadline = time.monotonic() + seconds
        if self._superseded is None and not self._dismissed:
            try:
                self._say_farewell(replace(self._record, state=MemberState.LEAVING, reason=reason), deadline)
            except MemberExistsError:
                pass  # the record is another's: nothing of mine to take back
        revoke(self._client, self._lease.id, left(deadline))

    def _say_farewell(self, last: MemberRecord, deadline: float) -> None:
        try:
            self._stored.write(last, deadline)
        except RendezvousError as exc:
            if not is_lease_gone(exc):
                raise
            self._lease.grant(left(deadline))
            self._stored.write(last, deadline)
        self._stored.delete(last.name, deadline)

    def _want(self) -> int:
        self._marked_until = math.inf
        self._wanted += 1
        self._changed.notify_all()
        return self._wanted

    def _is_wanting(self) -> bool:
        return self._written < self._wanted and self._superseded is None and not self._dismissed

    # The seat's thread.
    def _run(self) -> None:
        due = time.monotonic() + self._lease.ttl / 3
        while self._wait_for_work(due):
            try:
                if time.monotonic() >= due:
                    self._keep_lease()
                    due = time.monotonic() + self._lease.ttl / 3
                self._write_what_is_wanted()
            except MemberExistsError as exc:
                self._give_up(exc)
            except RendezvousUnavailableError as exc:
                due = 0.0  # whatever failed, the lease may be gone
                self._note_trouble(exc)
                self._client.pause()
            except RendezvousError as exc:
                if str(exc) != str(self._trouble):
                    _log.error("the record of %r: %s; trying on", self._record.name, exc)
                self._note_trouble(exc)
                self._client.pause(REFUSED_SECONDS)

    def _wait_for_work(self, due: float) -> bool:
        """Until something is to be written or the lease to be kept; False at the end."""
        with self._changed:
            while not (self._stopping or self._is_wanting()):
                seconds = min(due, self._marked_until) - time.monotonic()
                if seconds <= 0:
                    break
                self._changed.wait(seconds)
            if time.monotonic() >= self._marked_until:
                self._want()
            return not self._stopping

    def _keep_lease(self) -> None:
        if not self._dismissed and not self._lease.keep_alive():
            self._renew()

    def _renew(self) -> None:
        """A new lease, under which the record is to be written again."""
        _log.warning("the lease of %r is gone; putting its record back", self._record.name)
        self._lease.grant(CALL_SECONDS)
        self._stored.forget()
        self._on_new_lease()
        self.put_back()

    def _write_what_is_wanted(self) -> None:
        with self._changed:
            if not self._is_wanting():
                return
            record, number = self._record, self._wanted
        try:
            self._stored.write(record, time.monotonic() + CALL_SECONDS)
        except RendezvousError as exc:
            if not is_lease_gone(exc):
                raise
            self._renew()
            return  # the thread comes back at once: there is more that is wanted
        with self._changed:
            self._written = number
            self._trouble = None
            self._changed.notify_all()

    def _note_trouble(self, exc: RendezvousError) -> None:
        with self._changed:
            self._trouble = exc

    def _give_up(self, exc: MemberExistsError) -> None:
        """For good: whoever has the name now is the member, and two would only fight over the record."""
        _log.error("%s; this worker is no member any more", exc)
        with self._changed:
            self._superseded = exc
            self._changed.notify_all()
