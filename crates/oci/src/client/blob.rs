//! One layer to a file: counted and hashed while it comes, taken up where a connection broke.
//!
//! Never trusts a registry about where a part begins, and never asks more often than
//! [`BLOB_TRIES_MAX`] times.

use std::io::{self, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use perch_types::image::Digest;
use reqwest::header::{ACCEPT, CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::{Resolved, Session};
use crate::error::Error;
use crate::limits::{BLOB_RETRY_WAIT, BLOB_TRIES_MAX};
use crate::manifest::Descriptor;

/// What of a blob is here.
#[derive(Debug)]
struct Transfer<'a> {
    path: &'a Path,
    file: File,
    hash: Sha256,
    count: u64,
}

impl Resolved {
    /// Writes a layer to a new file that everybody may read and nobody write, verified. Goes on
    /// from where it was when the connection breaks.
    ///
    /// # Errors
    /// As [`Error`] tells apart; the file is then incomplete and the caller's to remove.
    pub async fn layer_to_file(&self, layer: &Descriptor, path: &Path) -> Result<(), Error> {
        let mut transfer = Transfer::begin(path).await?;
        let mut wait = BLOB_RETRY_WAIT;
        for _ in 1..BLOB_TRIES_MAX {
            match self.session.receive(layer, &mut transfer).await {
                Err(error) if error.is_transient() => {
                    tracing::debug!(digest = %layer.digest, count = transfer.count, %error, "blob broke off");
                }
                other => return other,
            }
            tokio::time::sleep(wait).await;
            wait = wait.saturating_mul(2);
        }
        self.session.receive(layer, &mut transfer).await
    }

    /// Asks the registry, with this pull's own credentials, whether a layer may be read.
    ///
    /// # Errors
    /// As [`Error`] tells apart.
    pub(crate) async fn check_layer(&self, layer: &Descriptor) -> Result<(), Error> {
        let path = format!("blobs/{}", layer.digest);
        let asked = self.session.send(Method::HEAD, &path, &[]);
        self.session.timed(asked).await.map(drop)
    }
}

impl<'a> Transfer<'a> {
    /// Begins with a file of its own: what a broken-off transfer still writes goes to another.
    async fn begin(path: &'a Path) -> Result<Self, Error> {
        match tokio::fs::remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", path, error));
            }
            _ => {}
        }
        // Without a wait: whoever gives this up takes the file away, and one that was still being
        // made then would stay.
        let file = std::fs::File::create_new(path).map_err(|e| Error::io("create", path, e))?;
        let file = File::from_std(file);
        Ok(Self { path, file, hash: Sha256::new(), count: 0 })
    }

    async fn restart(&mut self) -> Result<(), Error> {
        (self.hash, self.count) = (Sha256::new(), 0);
        self.file.set_len(0).await.map_err(|e| Error::io("empty", self.path, e))?;
        self.file.seek(SeekFrom::Start(0)).await.map_err(|e| Error::io("rewind", self.path, e))?;
        Ok(())
    }

    async fn add(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.hash.update(chunk);
        self.count += chunk.len() as u64;
        self.file.write_all(chunk).await.map_err(|e| Error::io("write", self.path, e))
    }

    async fn end(&mut self) -> Result<(), Error> {
        self.file.flush().await.map_err(|e| Error::io("write", self.path, e))?;
        let everybody = std::fs::Permissions::from_mode(0o444);
        self.file.set_permissions(everybody).await.map_err(|e| Error::io("lock", self.path, e))
    }
}

impl Session {
    /// Receives a blob, or what is missing of it.
    async fn receive(&self, blob: &Descriptor, transfer: &mut Transfer<'_>) -> Result<(), Error> {
        let size = |actual| Error::SizeMismatch {
            reference: self.boxed(),
            digest: blob.digest.clone(),
            expected: blob.size,
            actual,
        };
        if transfer.count < blob.size || blob.size == 0 {
            let mut response = self.ask(blob, transfer).await?;
            if let Some(length) = response.content_length()
                && transfer.count.saturating_add(length) != blob.size
            {
                return Err(size(transfer.count.saturating_add(length)));
            }
            while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(e))? {
                let count = transfer.count.saturating_add(chunk.len() as u64);
                if count > blob.size {
                    return Err(size(count));
                }
                transfer.add(&chunk).await?;
            }
        }
        if transfer.count != blob.size {
            return Err(size(transfer.count));
        }
        let actual = Digest::from_sha256(&transfer.hash.clone().finalize().into());
        if actual != blob.digest {
            let (reference, expected) = (self.boxed(), blob.digest.clone());
            return Err(Error::DigestMismatch { reference, expected, actual });
        }
        transfer.end().await
    }

    /// Asks for a blob from where the transfer is; a registry that does not give parts begins anew.
    async fn ask(&self, blob: &Descriptor, transfer: &mut Transfer<'_>) -> Result<Response, Error> {
        let mut headers = vec![(ACCEPT, "*/*".to_owned())];
        if transfer.count > 0 {
            headers.push((RANGE, format!("bytes={}-", transfer.count)));
        }
        let response = self.send(Method::GET, &format!("blobs/{}", blob.digest), &headers).await?;
        if transfer.count > 0 && !continues(&response, transfer.count) {
            if response.status() == StatusCode::PARTIAL_CONTENT {
                return Err(Error::invalid(&self.reference, "its registry sent another part"));
            }
            transfer.restart().await?;
        }
        Ok(response)
    }
}

/// Tells whether an answer is the part that begins at `count`.
fn continues(response: &Response, count: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|text| text.strip_prefix("bytes ")?.split('-').next());
    response.status() == StatusCode::PARTIAL_CONTENT
        && start.and_then(|text| text.trim().parse().ok()) == Some(count)
}
