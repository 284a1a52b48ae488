CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL,
    -- The newest revision whose changes are gone.
    compacted INTEGER NOT NULL
) STRICT;
INSERT INTO meta (id, revision, compacted) VALUES (1, 0, 0);

CREATE TABLE leases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ttl_s INTEGER NOT NULL
) STRICT;

CREATE TABLE documents (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    revision INTEGER NOT NULL,
    lease INTEGER REFERENCES leases (id)
) STRICT, WITHOUT ROWID;
CREATE INDEX documents_lease ON documents (lease) WHERE lease IS NOT NULL;

CREATE TABLE changes (
    revision INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB,
    PRIMARY KEY (revision, ordinal)
) STRICT, WITHOUT ROWID;
