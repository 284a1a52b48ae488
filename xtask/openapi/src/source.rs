//! The source of the crates `types` and `api`, parsed: modules, their items, what they import.
//!
//! Never expands a macro or follows a glob.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use syn::{Item, UseTree};

/// The crate with the shapes.
pub(super) const TYPES: &str = "types";
/// The crate with the handlers.
pub(super) const API: &str = "api";
/// How many re-exports are followed.
const HOPS_MAX: usize = 4;

/// All modules by their path, such as `types::machine_config`.
pub(super) struct Source {
    pub(super) modules: BTreeMap<String, Module>,
}

/// One file.
pub(super) struct Module {
    pub(super) items: Vec<Item>,
    uses: BTreeMap<String, Vec<String>>,
}

/// An item and the module that has it.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) module: &'a str,
    pub(super) item: &'a Item,
}

impl Source {
    /// Parses both crates.
    pub(super) fn load(root: &Path) -> Result<Self> {
        let mut modules = BTreeMap::new();
        for name in [TYPES, API] {
            let folder = root.join("crates").join(name).join("src");
            let mut files = Vec::new();
            collect(&folder, &mut files)?;
            for path in files {
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("read `{}`", path.display()))?;
                let below = path.strip_prefix(&folder).unwrap_or(&path).with_extension("");
                let key = module_key(name, &below);
                let module = Module::parse(&key, &text)
                    .with_context(|| format!("parse `{}`", path.display()))?;
                modules.insert(key, module);
            }
        }
        Ok(Self { modules })
    }

    #[cfg(test)]
    pub(super) fn of_texts(texts: &[(&str, &str)]) -> Self {
        let parse =
            |(key, text): &(&str, &str)| ((*key).to_owned(), Module::parse(key, text).unwrap());
        Self { modules: texts.iter().map(parse).collect() }
    }

    /// Finds what a path means inside a module.
    pub(super) fn resolve<'a>(&'a self, module: &str, path: &[String]) -> Option<Found<'a>> {
        let (first, rest) = path.split_first()?;
        if rest.is_empty()
            && let Some(found) = self.own(module, first)
        {
            return Some(found);
        }
        let imported = self.modules.get(module).and_then(|it| it.uses.get(first));
        let mut full = match imported {
            Some(full) => full.clone(),
            None => absolute(module, std::slice::from_ref(first)),
        };
        full.extend(rest.iter().cloned());
        self.absolute(&full)
    }

    /// Finds an item by its whole path, through re-exports.
    fn absolute<'a>(&'a self, path: &[String]) -> Option<Found<'a>> {
        let mut path = path.to_vec();
        for _ in 0..HOPS_MAX {
            let (name, module) = path.split_last()?;
            let key = module.join("::");
            if let Some(found) = self.own(&key, name) {
                return Some(found);
            }
            path = self.modules.get(&key)?.uses.get(name)?.clone();
        }
        None
    }

    fn own<'a>(&'a self, module: &str, name: &str) -> Option<Found<'a>> {
        let (module, content) = self.modules.get_key_value(module)?;
        let item = content.items.iter().find(|item| defines(item, name))?;
        Some(Found { module, item })
    }
}

impl Module {
    fn parse(key: &str, text: &str) -> syn::Result<Self> {
        let items = syn::parse_file(text)?.items;
        let mut uses = BTreeMap::new();
        for item in &items {
            if let Item::Use(item) = item {
                flatten(key, &item.tree, &mut Vec::new(), &mut uses);
            }
        }
        Ok(Self { items, uses })
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("list `{}`", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list `{}`", folder.display()))?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

fn module_key(name: &str, below: &Path) -> String {
    let mut key = name.to_owned();
    for part in below.iter().map(|part| part.to_string_lossy()).filter(|part| part != "lib") {
        key.push_str("::");
        key.push_str(&part);
    }
    key
}

fn flatten(
    module: &str,
    tree: &UseTree,
    above: &mut Vec<String>,
    uses: &mut BTreeMap<String, Vec<String>>,
) {
    match tree {
        UseTree::Path(path) => {
            above.push(path.ident.to_string());
            flatten(module, &path.tree, above, uses);
            above.pop();
        }
        UseTree::Name(name) => {
            let mut full = above.clone();
            if name.ident != "self" {
                full.push(name.ident.to_string());
            }
            if let Some(last) = full.last().cloned() {
                uses.insert(last, absolute(module, &full));
            }
        }
        UseTree::Rename(rename) => {
            let mut full = above.clone();
            full.push(rename.ident.to_string());
            uses.insert(rename.rename.to_string(), absolute(module, &full));
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(module, tree, above, uses);
            }
        }
        UseTree::Glob(_) => {}
    }
}

/// Turns a path as written in a module into a whole one.
fn absolute(module: &str, path: &[String]) -> Vec<String> {
    let mut full: Vec<String> = module.split("::").map(str::to_owned).collect();
    for (index, part) in path.iter().enumerate() {
        match part.as_str() {
            "crate" => full.truncate(1),
            "self" => {}
            "super" => drop(full.pop()),
            "perch_types" if index == 0 => full = vec![TYPES.to_owned()],
            _ => full.push(part.clone()),
        }
    }
    full
}

fn defines(item: &Item, name: &str) -> bool {
    match item {
        Item::Struct(item) => item.ident == name,
        Item::Enum(item) => item.ident == name,
        Item::Type(item) => item.ident == name,
        Item::Fn(item) => item.sig.ident == name,
        Item::Macro(item) => macro_defines(item, name),
        _ => false,
    }
}

/// The two macros of `types` that make a type: `text_id!` and `codes!`.
fn macro_defines(item: &syn::ItemMacro, name: &str) -> bool {
    if item.mac.path.is_ident("text_id") {
        return item.mac.parse_body::<super::tables::TextId>().is_ok_and(|id| id.ident == name);
    }
    item.mac.path.is_ident("codes") && name == "Code"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_followed_through_imports_and_re_exports() {
        let source = Source::of_texts(&[
            ("types", "pub use a::Thing;\npub use deep::b as other;"),
            ("types::a", "pub struct Thing;"),
            ("types::deep::b", "pub struct Far;"),
            ("api::x", "use perch_types::{Thing, other::{self, Far}};\nuse super::y;\nfn f() {}"),
            ("api::y", "pub struct Near;"),
        ]);
        let at = |path: &str| {
            let path: Vec<_> = path.split("::").map(str::to_owned).collect();
            source.resolve("api::x", &path).map(|found| found.module.to_owned())
        };
        assert_eq!(at("Thing").as_deref(), Some("types::a"));
        assert_eq!(at("y::Near").as_deref(), Some("api::y"));
        assert_eq!(at("crate::y::Near").as_deref(), Some("api::y"));
        assert_eq!(at("f").as_deref(), Some("api::x"));
        assert_eq!(at("Nothing"), None);
    }
}
