//! Typed records: a key and a JSON value, written in the same transaction as the journal.
//!
//! Never lets one record that does not parse hide the others.

use std::{fmt, fmt::Display, marker::PhantomData, str::FromStr};

use rusqlite::{OptionalExtension as _, params};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Snapshot, Tx};

/// A named collection of records `K -> V`. Keys are ordered as text.
pub struct Table<K, V> {
    name: &'static str,
    types: PhantomData<fn(K) -> V>,
}

/// What a list found.
#[derive(Debug)]
pub struct Listed<K, V> {
    /// The records, ordered by key.
    pub records: Vec<(K, V)>,
    /// The records that do not parse: for the log and for an operator.
    pub unreadable: Vec<Unreadable>,
}

/// A record that does not parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// Why, in the parser's words.
    pub reason: String,
}

impl<K, V> Table<K, V>
where
    K: Display + FromStr,
    V: Serialize + DeserializeOwned,
{
    /// Names the collection. Two tables of one name are one table.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, types: PhantomData }
    }

    /// Returns the record, if there is one.
    ///
    /// # Errors
    /// When it does not parse, or on a fault of the file.
    pub fn get(&self, snapshot: &Snapshot<'_>, key: &K) -> Result<Option<V>, Error> {
        let key = key.to_string();
        let value: Option<String> = snapshot
            .sql()
            .prepare_cached("SELECT value FROM records WHERE collection = ? AND key = ?")
            .and_then(|mut query| {
                query.query_row(params![self.name, key], |row| row.get(0)).optional()
            })
            .map_err(|source| Error::sql("read record", source))?;
        let Some(value) = value else { return Ok(None) };
        serde_json::from_str(&value).map(Some).map_err(|error| Error::Decode {
            what: self.name,
            key,
            reason: error.to_string(),
        })
    }

    /// Writes the record, over an older one.
    ///
    /// # Errors
    /// When the value does not turn into JSON, or on a fault of the file.
    pub fn put(&self, tx: &Tx<'_>, key: &K, value: &V) -> Result<(), Error> {
        let key = key.to_string();
        let value = match serde_json::to_string(value) {
            Ok(value) => value,
            Err(source) => {
                return Err(Error::Encode { what: self.name, key, source });
            }
        };
        let written = tx
            .sql()
            .prepare_cached(
                "INSERT INTO records (collection, key, value) VALUES (?, ?, ?)
                 ON CONFLICT (collection, key) DO UPDATE SET value = excluded.value",
            )
            .and_then(|mut statement| statement.execute(params![self.name, key, value]));
        tx.check("write record", written).map(drop)
    }

    /// Removes the record; returns whether there was one.
    ///
    /// # Errors
    /// On a fault of the file.
    pub fn delete(&self, tx: &Tx<'_>, key: &K) -> Result<bool, Error> {
        let removed = tx
            .sql()
            .prepare_cached("DELETE FROM records WHERE collection = ? AND key = ?")
            .and_then(|mut statement| statement.execute(params![self.name, key.to_string()]));
        tx.check("delete record", removed).map(|count| count > 0)
    }

    /// Returns all records.
    ///
    /// # Errors
    /// On a fault of the file; records that do not parse are reported beside the others.
    pub fn list(&self, snapshot: &Snapshot<'_>) -> Result<Listed<K, V>, Error> {
        self.list_prefix(snapshot, "")
    }

    /// Returns the records whose key, as text, begins with `prefix`.
    ///
    /// # Errors
    /// As [`Table::list`].
    pub fn list_prefix(
        &self,
        snapshot: &Snapshot<'_>,
        prefix: &str,
    ) -> Result<Listed<K, V>, Error> {
        let mut listed = Listed { records: Vec::new(), unreadable: Vec::new() };
        let mut scan = || -> rusqlite::Result<()> {
            let mut query = snapshot.sql().prepare_cached(
                "SELECT key, value FROM records
                 WHERE collection = ?1 AND key >= ?2 AND substr(key, 1, length(?2)) = ?2
                 ORDER BY key",
            )?;
            let mut rows = query.query(params![self.name, prefix])?;
            while let Some(row) = rows.next()? {
                let (key, value): (String, String) = (row.get(0)?, row.get(1)?);
                match parse(&key, &value) {
                    Ok(record) => listed.records.push(record),
                    Err(reason) => listed.unreadable.push(Unreadable { key, reason }),
                }
            }
            Ok(())
        };
        scan().map_err(|source| Error::sql("list records", source))?;
        Ok(listed)
    }
}

fn parse<K: FromStr, V: DeserializeOwned>(key: &str, value: &str) -> Result<(K, V), String> {
    let value = serde_json::from_str(value).map_err(|error| error.to_string())?;
    let key = key.parse().map_err(|_| "the key does not parse".to_owned())?;
    Ok((key, value))
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Table<K, V> {}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Table").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests;
