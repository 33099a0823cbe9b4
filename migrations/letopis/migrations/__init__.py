"""The migrations of both ends, as package resources for Alembic: ``letopis.migrations:store`` and ``:outbox``."""
