//! What to say when no family knows the files.
//!
//! Never a plan.

use crate::files::{Files, Kind};

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unrecognised {
    /// There is nothing in the folder.
    #[error("the folder is empty")]
    Empty,
    /// Pages without a program.
    #[error("the folder holds only static pages (`{page}`), which need a web server")]
    Static {
        /// One of them.
        page: String,
    },
    /// Something that is known by its files, but not how to launch it.
    #[error("this looks like {framework} (`{file}`), which is not recognised yet")]
    NotYet {
        /// What it looks like, with its article.
        framework: &'static str,
        /// What shows it.
        file: String,
    },
    /// Nothing that is known.
    #[error("none of the {files} files shows what this app is")]
    Unknown {
        /// How many there are.
        files: usize,
    },
}

/// Files by which other families are known, with their words.
const KNOWN: &[(&str, &str)] = &[
    ("artisan", "a Laravel app"),
    ("manage.py", "a Django app"),
    ("bin/rails", "a Rails app"),
    ("mix.exs", "an Elixir app"),
    ("package.json", "a Node.js app"),
    ("go.mod", "a Go app"),
    ("Cargo.toml", "a Rust app"),
    ("Gemfile", "a Ruby app"),
    ("deno.json", "a Deno app"),
    ("pom.xml", "a Java app"),
    ("build.gradle", "a Java app"),
    ("requirements.txt", "a Python app"),
    ("pyproject.toml", "a Python app"),
    ("Pipfile", "a Python app"),
];

impl Unrecognised {
    /// Returns why no family knows the files.
    pub(crate) fn of(files: &dyn Files) -> Self {
        let count = files.entries().iter().filter(|entry| entry.kind == Kind::File).count();
        if count == 0 {
            return Self::Empty;
        }
        if let Some((file, framework)) = KNOWN.iter().find(|(file, _)| files.has(file)) {
            return Self::NotYet { framework, file: (*file).to_owned() };
        }
        let page = ["index.html", "public/index.html"].into_iter().find(|page| files.has(page));
        match page {
            Some(page) => Self::Static { page: page.to_owned() },
            None => Self::Unknown { files: count },
        }
    }

    /// Returns what to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Empty => {
                "change into the folder with the app's source, or name it: `perch launch PATH`"
            }
            Self::Static { .. } | Self::NotYet { .. } | Self::Unknown { .. } => {
                "write a Dockerfile and run `perch launch` again, or launch a ready image with \
                 `perch launch --image REFERENCE`; without one, PHP pages and Flask apps are \
                 recognised"
            }
        }
    }
}
