"""Whose counters are whose. Pure.

The program counts by index, and an index gets another owner when its backend is
gone. What a name counted must not go backwards when it comes back under another
index, nor jump to what somebody else counted there before: so each index has the
count at which its present owner began, and each name what it counted elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from reconciler.rates import NOTHING, Count

FIELDS = tuple(one.name for one in fields(Count))


@dataclass(frozen=True, slots=True)
class Account:
    """Whose an index is, and what it said when that began."""

    owner: str
    base: Count = NOTHING


@dataclass(frozen=True, slots=True)
class Ledger:
    """None yet: the first owners get all that was counted."""

    accounts: Mapping[int, Account] = field(default_factory=dict)
    carried: Mapping[str, Count] = field(default_factory=dict)

    def fits(self, owners: Mapping[int, str]) -> bool:
        """Whether these owners are known already; indexes that have none now keep theirs."""
        return all(
            at in self.accounts and self.accounts[at].owner == owner
            for at, owner in owners.items()
        )  # fmt: skip

    def follow(self, owners: Mapping[int, str], counts: Mapping[int, Count]) -> "Ledger":
        """With new owners. `counts` were read before anything was counted for these."""
        accounts, carried = dict(self.accounts), dict(self.carried)
        for at, owner in owners.items():
            before = self.accounts.get(at)
            if before is not None and before.owner == owner:
                continue
            read = counts.get(at, NOTHING)
            if before is not None:
                counted = carried.get(before.owner, NOTHING) + read.since(before.base)
                carried[before.owner] = counted
            accounts[at] = Account(owner, read if self.accounts else NOTHING)
        return Ledger(accounts, carried)

    def totals(self, counts: Mapping[int, Count]) -> dict[str, Count]:
        """What each name ever counted, whatever index it had."""
        found = dict(self.carried)
        for at, account in self.accounts.items():
            counted = counts.get(at, NOTHING).since(account.base)
            found[account.owner] = found.get(account.owner, NOTHING) + counted
        return found


# ---- as a document


def document(ledger: Ledger) -> dict[str, Any]:
    return {
        "accounts": {
            str(at): {"owner": account.owner, "base": _counts(account.base)}
            for at, account in ledger.accounts.items()
        },
        "carried": {owner: _counts(count) for owner, count in ledger.carried.items()},
    }


def _counts(count: Count) -> dict[str, int]:
    return {name: getattr(count, name) for name in FIELDS}


def parse(content: Mapping[str, Any]) -> Ledger:
    """KeyError, TypeError or ValueError for anything that `document` did not write."""
    return Ledger(
        {
            int(at): Account(str(account["owner"]), Count(**account["base"]))
            for at, account in content["accounts"].items()
        },
        {str(owner): Count(**count) for owner, count in content["carried"].items()},
    )
