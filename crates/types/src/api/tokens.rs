//! Tokens (contract 1.2 and 1.12).
//!
//! Never more than shapes.

use serde::{Deserialize, Serialize};

use crate::id::OrgSlug;
use crate::secret::Secret;
use crate::time::{GoDuration, Timestamp};

/// Body of the creation of a token for an app (contract 1.2).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CreateDeployToken {
    /// How long it holds, at most 20 years; default one year.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry: Option<GoDuration>,
    /// A name to tell it from others; default `deploy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Answer of the creation of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedToken {
    /// Its text, which the platform does not keep.
    pub token: Secret,
    /// Which it is, for its end.
    pub token_id: String,
    /// Until when it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// One token of the caller (contract 1.12).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Which.
    pub token_id: String,
    /// The organization's name.
    #[serde(default)]
    pub organization: String,
    /// The organization's slug.
    pub org_slug: OrgSlug,
    /// The only apps that it reaches; empty for all of the organization.
    #[serde(default)]
    pub apps: Vec<String>,
    /// Empty: tokens are not a person's here.
    #[serde(default)]
    pub user: String,
    /// Empty: no token is for one machine only.
    #[serde(default)]
    pub restricted_to_machine: String,
    /// Empty: the caller is no machine.
    #[serde(default)]
    pub source_machine_id: String,
    /// The name it was given.
    pub name: String,
    /// Until when it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// Answer of the token question.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokensCurrent {
    /// The tokens of the request.
    pub tokens: Vec<TokenInfo>,
}
