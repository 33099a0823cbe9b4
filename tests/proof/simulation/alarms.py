"""Check which alerts a bot's owners and operators got, and whether they should have."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from letopis.outbox.alerting.channels import Alert
from letopis.outbox.alerting.incidents import LATE, IncidentKind
from letopis.outbox.alerting.notifications import Incident
from tests.proof.simulation.ledger import OutboxLedger


@dataclass
class Alarms:
    ledger: OutboxLedger
    say: Callable[[str], None]
    broken: Callable[[str], None]
    kills: bool = False
    failing: float = 0.0
    stuck: Counter[str] = field(default_factory=Counter)
    recovered: Counter[str] = field(default_factory=Counter)
    alerts: Counter[str] = field(default_factory=Counter)
    over: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    _keys: set[str] = field(default_factory=set)
    _open: set[tuple[str, str | None]] = field(default_factory=set)

    def fails(self, chance: random.Random) -> bool:
        """Return True if a notification fails this time."""
        return self.failing > 0 and chance.random() < self.failing

    def telling(self, incident: Incident) -> None:
        """A user is being notified; if that is cut off, the outcome is unknown."""
        if not incident.recovered:
            self._open.add((str(incident.incident_id), incident.owner_id or incident.conversation_id))

    def told(self, incident: Incident) -> None:
        who = incident.owner_id or incident.conversation_id
        blocked = incident.kind is IncidentKind.CONVERSATION_BLOCKED
        what = f"{incident.kind} {incident.conversation_id}" if blocked else str(incident.kind)
        self._once(f"user {who} {incident.key}", f"user {who}, {incident.kind}")
        pair = (str(incident.incident_id), who)
        self.say(f"told {who} of {incident.kind} {incident.state} {incident.reason}")
        if incident.recovered:
            # A process killed between recording a notification and sending it leaves the outcome unknown.
            if pair not in self._open and not self.kills:
                self.broken(f"{who} was told that {incident.kind} is over, of which they had not heard")
            self.recovered[what] += 1
            return
        self.stuck[what] += 1
        if blocked and incident.reason != LATE:
            name = incident.conversation_id or ""
            if not any(place == name for place, _ in self.ledger.bad):
                self.broken(f"{who} was told that {name!r} is blocked, in which nothing is refused")

    def alerted(self, alert: Alert) -> None:
        self._once(f"operators {alert.key}", f"operators, {alert.title}")
        kind = str(alert.facts["kind"])
        self.say(f"alert {kind} reminder={alert.facts['reminder']} recovered={alert.recovered}")
        if alert.recovered:
            self.over[kind] += 1
        elif alert.facts["reminder"]:
            self.repeats += 1
        else:
            self.alerts[kind] += 1

    def _once(self, key: str, what: str) -> None:
        if key in self._keys:
            self.broken(f"told twice of the same: {what}")
        self._keys.add(key)

    @property
    def count(self) -> int:
        """How many notifications there were."""
        return sum((self.stuck + self.recovered + self.alerts + self.over).values()) + self.repeats
