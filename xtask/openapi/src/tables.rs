//! The macros that are tables: endpoints, ids, error codes; and what their comments declare.
//!
//! Never knows what a type is.

use syn::parse::{Parse, ParseStream};
use syn::{Attribute, Ident, LitInt, LitStr, Token};

/// One line of `endpoints!`.
#[derive(Debug)]
pub(super) struct EndpointLine {
    pub(super) name: String,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) action: String,
    /// It changes something and needs no lease all the same.
    pub(super) unleased: bool,
    pub(super) notes: Notes,
}

/// All lines of `endpoints!`.
#[derive(Debug)]
pub(super) struct Endpoints(pub(super) Vec<EndpointLine>);

impl Parse for Endpoints {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut lines = Vec::new();
        while !input.is_empty() {
            let notes = Notes::of(&Attribute::parse_outer(input)?);
            let name = input.parse::<Ident>()?.to_string();
            input.parse::<Token![=]>()?;
            let method = input.parse::<LitStr>()?.value();
            let path = input.parse::<LitStr>()?.value();
            let action = input.parse::<Ident>()?.to_string();
            let unleased = input.peek(Ident) && input.parse::<Ident>()? == "Unleased";
            input.parse::<Token![;]>()?;
            lines.push(EndpointLine { name, method, path, action, unleased, notes });
        }
        Ok(Self(lines))
    }
}

/// One `text_id!`: the doc, the name, the rule.
#[derive(Debug)]
pub(super) struct TextId {
    pub(super) doc: String,
    pub(super) ident: Ident,
    pub(super) rule: String,
}

impl Parse for TextId {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let doc = doc(&Attribute::parse_outer(input)?);
        let ident = input.parse()?;
        input.parse::<Token![,]>()?;
        input.parse::<LitStr>()?;
        input.parse::<Token![,]>()?;
        let rule = input.parse::<LitStr>()?.value();
        input.parse::<proc_macro2::TokenStream>()?;
        Ok(Self { doc, ident, rule })
    }
}

/// One line of `codes!`.
#[derive(Debug)]
pub(super) struct CodeLine {
    pub(super) doc: String,
    pub(super) text: String,
    pub(super) status: u16,
}

/// All lines of `codes!`.
#[derive(Debug)]
pub(super) struct Codes(pub(super) Vec<CodeLine>);

impl Parse for Codes {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut lines = Vec::new();
        while !input.is_empty() {
            let doc = doc(&Attribute::parse_outer(input)?);
            input.parse::<Ident>()?;
            input.parse::<Token![=]>()?;
            let text = input.parse::<LitStr>()?.value();
            input.parse::<Token![,]>()?;
            let status = input.parse::<LitInt>()?.base10_parse()?;
            input.parse::<Token![;]>()?;
            lines.push(CodeLine { doc, text, status });
        }
        Ok(Self(lines))
    }
}

/// What the comment of an endpoint says: words, then lines such as
/// ``- `limit: 1..=50` how many``.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Notes {
    pub(super) words: String,
    pub(super) declared: Vec<Declared>,
}

/// Something that a handler's signature does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) kind: Kind,
    /// The parameter's or header's name, or the media type.
    pub(super) name: String,
    /// A type of Rust, or a range of integers.
    pub(super) shape: String,
    pub(super) words: String,
}

/// What is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A parameter of the query: `name: Type`.
    Query,
    /// A header of the request: `header name: Type`.
    Header,
    /// A body that no `Json` reads: `body media/type: Type`.
    Body,
    /// An answer that no `Json` writes: `answer media/type: Type`.
    Answer,
}

impl Notes {
    pub(super) fn of(attributes: &[Attribute]) -> Self {
        let mut notes = Self::default();
        let mut words: Vec<String> = Vec::new();
        for line in lines(attributes) {
            let last = notes.declared.last_mut();
            match (declared(&line), last) {
                (Some(declared), _) => notes.declared.push(declared),
                (None, Some(last)) if !line.is_empty() => {
                    last.words.push(' ');
                    last.words.push_str(&line);
                }
                (None, _) => words.push(line),
            }
        }
        notes.words = paragraphs(&words);
        notes
    }
}

fn declared(line: &str) -> Option<Declared> {
    let (declared, words) = line.strip_prefix("- `")?.split_once('`')?;
    let (left, shape) = declared.split_once(": ")?;
    let (kind, name) = match left.split_once(' ') {
        Some(("header", name)) => (Kind::Header, name),
        Some(("body", name)) => (Kind::Body, name),
        Some(("answer", name)) => (Kind::Answer, name),
        Some(_) => return None,
        None => (Kind::Query, left),
    };
    let (name, shape, words) = (name.to_owned(), shape.to_owned(), words.trim().to_owned());
    Some(Declared { kind, name, shape, words })
}

/// Returns the text of a doc comment.
pub(super) fn doc(attributes: &[Attribute]) -> String {
    paragraphs(&lines(attributes))
}

fn lines(attributes: &[Attribute]) -> Vec<String> {
    let text = |attribute: &Attribute| {
        let syn::Meta::NameValue(pair) = &attribute.meta else { return None };
        let syn::Expr::Lit(literal) = &pair.value else { return None };
        let syn::Lit::Str(text) = &literal.lit else { return None };
        pair.path.is_ident("doc").then(|| text.value().trim().to_owned())
    };
    attributes.iter().filter_map(text).collect()
}

/// Joins lines to paragraphs and turns links into the names they show.
fn paragraphs(lines: &[String]) -> String {
    let mut text = String::new();
    for line in lines {
        let line = line.replace("[`", "`").replace("`]", "`").replace("crate::", "");
        match (line.is_empty(), text.is_empty()) {
            (true, _) => text.push('\n'),
            (false, true) => text.push_str(&line),
            (false, false) => {
                if !text.ends_with('\n') {
                    text.push(' ');
                }
                text.push_str(&line);
            }
        }
    }
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_declares_what_a_signature_does_not_say() {
        let table: Endpoints = syn::parse_str(
            "/// Machines of\n/// an app.\n///\n/// - `limit: 1..=50` how\n///   many\n\
             /// - `header x-y: String` which\n/// - `answer text/plain: String` words\n\
             LIST = \"GET\" \"/v1/a\" Read;\n/// B.\nB = \"PUT\" \"/v1/b\" Write Unleased;",
        )
        .unwrap();
        assert_eq!([table.0[0].unleased, table.0[1].unleased], [false, true]);
        let notes = &table.0[0].notes;
        assert_eq!(notes.words, "Machines of an app.");
        let shown: Vec<_> = notes
            .declared
            .iter()
            .map(|it| (it.kind, it.name.as_str(), it.words.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                (Kind::Query, "limit", "how many"),
                (Kind::Header, "x-y", "which"),
                (Kind::Answer, "text/plain", "words")
            ]
        );
        assert_eq!(notes.declared[0].shape, "1..=50");
    }
}
