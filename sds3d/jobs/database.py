"""The SQLite file of a job store: its tables, its version, and its faults by name."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from sds3d.errors import output_error
from sds3d.jobs.errors import StoreError

SCHEMA_VERSION = 3
BUSY_SECONDS = 15.0
"""How long a transaction waits for those of other processes."""

_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    turn INTEGER NOT NULL,
    state TEXT NOT NULL,
    request TEXT,
    config TEXT NOT NULL,
    folder TEXT,
    worker TEXT,
    created REAL NOT NULL,
    queued_at REAL NOT NULL,
    not_before REAL NOT NULL DEFAULT 0,
    started REAL,
    finished REAL,
    step INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL,
    eta_seconds REAL,
    failures INTEGER NOT NULL DEFAULT 0,
    max_failures INTEGER NOT NULL,
    timeout_seconds REAL,
    error TEXT,
    reason TEXT,
    reused INTEGER NOT NULL DEFAULT 0,
    degraded TEXT,
    previous TEXT,
    pause_at INTEGER
);
CREATE INDEX jobs_by_turn ON jobs (state, turn);
CREATE INDEX jobs_by_folder ON jobs (folder);
CREATE TABLE job_folders (
    job_id TEXT NOT NULL,
    folder TEXT NOT NULL,
    PRIMARY KEY (job_id, folder)
);
CREATE INDEX job_folders_by_folder ON job_folders (folder);
CREATE TABLE workers (
    name TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    doing TEXT NOT NULL,
    heartbeat REAL NOT NULL
);
"""


_UPGRADES = {
    1: "ALTER TABLE jobs ADD COLUMN pause_at INTEGER",
    2: """
CREATE TABLE IF NOT EXISTS job_folders (
    job_id TEXT NOT NULL,
    folder TEXT NOT NULL,
    PRIMARY KEY (job_id, folder)
);
CREATE INDEX IF NOT EXISTS job_folders_by_folder ON job_folders (folder);
INSERT OR IGNORE INTO job_folders SELECT id, folder FROM jobs WHERE folder IS NOT NULL;
INSERT OR IGNORE INTO job_folders SELECT id, json_extract(previous, '$.folder') FROM jobs
    WHERE json_extract(previous, '$.folder') IS NOT NULL
""",
}
"""What makes the next version of each earlier one."""


class Database:
    """One connection to the file, shared by the threads of a process, one at a time.

    The file is in WAL mode, which needs all its processes on one host. Raises StoreError for a
    file that is none of ours, damaged, of a later version, or locked for too long, and OutputError
    where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._named_errors():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        with self.transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                _execute_all(connection, _SCHEMA)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version in _UPGRADES:
                for earlier in range(version, SCHEMA_VERSION):
                    _execute_all(connection, _UPGRADES[earlier])
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} was made by another version of this program (its schema is "
                    f"{version}, this is {SCHEMA_VERSION}): use that version, or move the file "
                    "away; the runs' folders stay usable"
                )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and alone with the file from its beginning on."""
        with self._lock, self._named_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk has rolled back already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """What a SELECT finds, without waiting for writers."""
        with self._lock, self._named_errors():
            return self._connection.execute(statement, values).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreError(
                    f"the job store {self.path} was locked for more than {BUSY_SECONDS:g} s: "
                    "end the program that holds it, then try again"
                ) from error
            if code == sqlite3.SQLITE_FULL:
                raise output_error(OSError(28, "No space left on device"), self.path) from error
            if code in (
                sqlite3.SQLITE_CANTOPEN,
                sqlite3.SQLITE_READONLY,
                sqlite3.SQLITE_IOERR,
                sqlite3.SQLITE_PERM,
            ):
                raise output_error(OSError(str(error)), self.path) from error
            raise StoreError(f"the job store {self.path} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"the job store {self.path} is damaged or is no job store ({error}): move it "
                "away; the runs' folders stay usable"
            ) from error


def _execute_all(connection: sqlite3.Connection, statements: str) -> None:
    """Not executescript: it would end the transaction."""
    for statement in filter(str.strip, statements.split(";")):
        connection.execute(statement)
