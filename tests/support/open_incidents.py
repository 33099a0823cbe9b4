"""Read the open incidents of an outbox file in a transaction of its own connection."""

from contextlib import closing

import sqlalchemy as sa

from letopis.outbox.alerting.incident_table import open_incidents_of
from letopis.outbox.alerting.incidents import IncidentRecord


def open_incidents(connection: sa.Connection) -> tuple[IncidentRecord, ...]:
    """Return the incidents that are not over, the global ones first."""
    with closing(connection.connection.cursor()) as cursor:
        return open_incidents_of(cursor)
