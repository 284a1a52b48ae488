//! What serde's attributes say.
//!
//! Never an attribute of another crate.

use anyhow::{Context as _, Result};
use proc_macro2::Ident;
use syn::{Attribute, LitStr, Token};

/// Attributes of a type.
#[derive(Debug, Default)]
pub(super) struct TypeWords {
    rename_all: Option<String>,
    pub(super) tag: Option<String>,
    pub(super) untagged: bool,
    pub(super) transparent: bool,
    pub(super) default: bool,
    /// It is read from a text and written as one.
    pub(super) as_text: bool,
}

/// Attributes of a field or a variant.
#[derive(Debug, Default)]
pub(super) struct FieldWords {
    pub(super) rename: Option<String>,
    pub(super) default: bool,
    pub(super) flatten: bool,
    pub(super) skip: bool,
    pub(super) null_is_default: bool,
}

impl TypeWords {
    pub(super) fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut words = Self::default();
        each(attributes, |word, value| match (word, value) {
            ("rename_all", Some(value)) => words.rename_all = Some(value),
            ("tag", Some(value)) => words.tag = Some(value),
            ("untagged", _) => words.untagged = true,
            ("transparent", _) => words.transparent = true,
            ("default", _) => words.default = true,
            ("try_from" | "from" | "into", Some(value)) => words.as_text |= value == "String",
            _ => {}
        })?;
        Ok(words)
    }

    pub(super) fn field_name(&self, ident: &str) -> String {
        match self.rename_all.as_deref() {
            Some("kebab-case") => ident.replace('_', "-"),
            Some("UPPERCASE" | "SCREAMING_SNAKE_CASE") => ident.to_uppercase(),
            Some("camelCase") => {
                let pascal = pascal(ident);
                let head = pascal.chars().take(1).flat_map(char::to_lowercase);
                head.chain(pascal.chars().skip(1)).collect()
            }
            Some("PascalCase") => pascal(ident),
            _ => ident.to_owned(),
        }
    }

    pub(super) fn variant_name(&self, ident: &Ident) -> String {
        let ident = ident.to_string();
        let parts = |separator: char| {
            let mut text = String::new();
            for letter in ident.chars() {
                if letter.is_uppercase() && !text.is_empty() {
                    text.push(separator);
                }
                text.extend(letter.to_lowercase());
            }
            text
        };
        match self.rename_all.as_deref() {
            Some("lowercase") => ident.to_lowercase(),
            Some("UPPERCASE") => ident.to_uppercase(),
            Some("snake_case") => parts('_'),
            Some("SCREAMING_SNAKE_CASE") => parts('_').to_uppercase(),
            Some("kebab-case") => parts('-'),
            Some("camelCase") => {
                let head = ident.chars().take(1).flat_map(char::to_lowercase);
                head.chain(ident.chars().skip(1)).collect()
            }
            _ => ident,
        }
    }
}

impl FieldWords {
    pub(super) fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut words = Self::default();
        each(attributes, |word, value| match (word, value) {
            ("rename", Some(value)) => words.rename = Some(value),
            ("default", _) => words.default = true,
            ("flatten", _) => words.flatten = true,
            ("skip" | "skip_deserializing", _) => words.skip = true,
            ("deserialize_with", Some(value)) => {
                words.null_is_default |= value.ends_with("null_is_default");
            }
            _ => {}
        })?;
        Ok(words)
    }
}

fn pascal(ident: &str) -> String {
    let capital = |part: &str| {
        let head = part.chars().take(1).flat_map(char::to_uppercase);
        head.chain(part.chars().skip(1)).collect::<String>()
    };
    ident.split('_').map(capital).collect()
}

/// Calls `take` with each word of the `#[serde(...)]` attributes.
fn each(attributes: &[Attribute], mut take: impl FnMut(&str, Option<String>)) -> Result<()> {
    for attribute in attributes.iter().filter(|it| it.path().is_ident("serde")) {
        let parsed = attribute.parse_nested_meta(|meta| {
            let word = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            let value = if meta.input.peek(Token![=]) {
                Some(meta.value()?.parse::<LitStr>()?.value())
            } else {
                if meta.input.peek(syn::token::Paren) {
                    // `rename(serialize = ...)` and the like: not used here.
                    let inside;
                    syn::parenthesized!(inside in meta.input);
                    inside.parse::<proc_macro2::TokenStream>()?;
                }
                None
            };
            take(&word, value);
            Ok(())
        });
        parsed.context("read an attribute of serde")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_serde_writes() {
        let of = |rule: &str, name: &str| {
            let words = TypeWords { rename_all: Some(rule.to_owned()), ..TypeWords::default() };
            words.variant_name(&syn::parse_str(name).unwrap())
        };
        assert_eq!(of("kebab-case", "OnFailure"), "on-failure");
        assert_eq!(of("snake_case", "EdgeHttp"), "edge_http");
        assert_eq!(of("UPPERCASE", "SigTerm"), "SIGTERM");
        assert_eq!(of("camelCase", "EdgeHttp"), "edgeHttp");
        let camel = TypeWords { rename_all: Some("camelCase".to_owned()), ..TypeWords::default() };
        assert_eq!(camel.field_name("net_id"), "netId");
    }
}
