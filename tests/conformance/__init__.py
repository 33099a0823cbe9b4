"""Run the tests that every history store passes, on SQLite, PostgreSQL and MariaDB."""
