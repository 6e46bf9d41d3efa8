"""Which gradients arrived: the proof that no call was lost and none was run twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Account", "Ledger"]


@dataclass
class Account:
    """What one life of one trainer sent. A trainer that is started again under its name is another life."""

    trainer: str
    epochs: Counter[int] = field(default_factory=Counter)
    repeated: int = 0
    skipped: int = 0
    sent: int | None = None
    """What the trainer says it sent, once it has said farewell; None while it lives, or if it was killed."""
    next_number: int = 0

    @property
    def arrived(self) -> int:
        return sum(self.epochs.values())

    @property
    def lost(self) -> int:
        """A killed trainer's last call may be cut off; of it counts only what is missing in between."""
        return self.skipped if self.sent is None else self.sent - self.arrived


class Ledger:
    """Accounts by life. Not thread-safe."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}

    def enter(self, trainer: str, life: str, epoch: int, number: int) -> None:
        """A gradient arrived. A trainer numbers them from 0, and sends one when the last is answered."""
        account = self._account(trainer, life)
        if number < account.next_number:
            account.repeated += 1
            return
        account.skipped += number - account.next_number
        account.next_number = number + 1
        account.epochs[epoch] += 1

    def close(self, trainer: str, life: str, sent: int) -> None:
        """The trainer leaves and says how many gradients it sent."""
        self._account(trainer, life).sent = sent

    @property
    def arrived(self) -> int:
        return sum(account.arrived for account in self.accounts.values())

    @property
    def lost(self) -> int:
        return sum(account.lost for account in self.accounts.values())

    @property
    def repeated(self) -> int:
        return sum(account.repeated for account in self.accounts.values())

    def _account(self, trainer: str, life: str) -> Account:
        return self.accounts.setdefault(life, Account(trainer))
