//! Identity tokens of machines, and what tokens may (contract 1.12).
//!
//! Never more than shapes.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::octets::Octets;

/// Body of the wish for an identity token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CreateOidcToken {
    /// Who is to believe it; default `https://fly.io/` and the organization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
    /// Whether the claims are in it as session tags too, as AWS reads them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws_principal_tags: Option<bool>,
}

/// Body of the question what a header's tokens are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AuthenticateTokens {
    /// The value of an `Authorization` header.
    pub header: String,
}

/// A token that is known and holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifiedToken {
    /// Empty: a token's text is not sent back.
    pub header: String,
    /// Empty: tokens here are no macaroons.
    pub permission_token: Octets,
    /// Which token.
    pub nonce: TokenNonce,
    /// What it is narrowed down to.
    pub caveats: CaveatSet,
}

/// Which token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenNonce {
    /// The token's id, as bytes.
    pub kid: Octets,
    /// Empty.
    pub rnd: Octets,
    /// Always true: it was looked up.
    pub proof: bool,
}

/// What a token is narrowed down to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CaveatSet {
    /// `Organization`, and `Apps` and `ValidityWindow` where they hold, each with its body.
    pub caveats: Vec<Value>,
}

/// Body of the question whether a header's tokens may do something.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AuthorizeTokens {
    /// The value of an `Authorization` header.
    pub header: String,
    /// What is to be done.
    pub access: TokenAccess,
}

/// What is to be done, and to what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenAccess {
    /// The sum of 1 (read), 2 (write), 4 (create), 8 (delete) and 16 (control).
    #[serde(default)]
    pub action: u8,
    /// To an organization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// To an app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_name: Option<String>,
    /// To a machine of that app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// To a volume of that app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<String>,
    /// A program to run in that machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Refused: this platform has no such thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_feature: Option<String>,
    /// Refused: this platform has no such thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_feature: Option<String>,
    /// Refused: this platform has no such thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_feature: Option<String>,
    /// Refused: this platform has no such thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutation: Option<String>,
    /// Refused: no token is for one machine only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_machine: Option<String>,
    /// Refused: this platform has no such thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_object: Option<String>,
}

/// Answer of the question whether something may be done: it may.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Authorized {
    /// What was asked for, with what it is about as numbers and ids.
    pub access: AuthorizedAccess,
    /// The token that allows it.
    pub verified_token: VerifiedToken,
}

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AuthorizedAccess {
    /// As in the question.
    pub action: u8,
    /// The organization's number.
    pub orgid: u64,
    /// The app's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appid: Option<u64>,
    /// The machine's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The volume's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
}
