CREATE TABLE durable_schema (version INTEGER NOT NULL) STRICT;
INSERT INTO durable_schema (version) VALUES (0);

CREATE TABLE records (
    collection TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (collection, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    kind TEXT NOT NULL,
    input TEXT NOT NULL,
    steps TEXT NOT NULL,
    point_of_no_return INTEGER,
    began_ms INTEGER NOT NULL,
    finished_ms INTEGER
) STRICT;
-- An owner has one run at a time.
CREATE UNIQUE INDEX runs_unfinished ON runs (owner) WHERE finished_ms IS NULL;
CREATE INDEX runs_history ON runs (owner, id) WHERE finished_ms IS NOT NULL;

CREATE TABLE run_events (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    event TEXT NOT NULL,
    PRIMARY KEY (run, sequence)
) STRICT, WITHOUT ROWID;
