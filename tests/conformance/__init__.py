"""The one suite that every history store passes: the same tests on SQLite, PostgreSQL and MariaDB."""
