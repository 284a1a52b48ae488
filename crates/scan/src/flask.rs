//! Web apps on Python's Flask, run by gunicorn.
//!
//! Never the development server: it is made for one user and says so itself.

use crate::files::Files;
use crate::plan::{Family, LaunchPlan, Source};
use crate::text::names;

/// The port that gunicorn is told to listen on.
const PORT: u16 = 8080;
/// The base image; the platform's registry has one of this name.
const BASE_IMAGE: &str = "python:3.11-slim-bookworm";
/// Files that may hold the app, in the order in which they are looked at.
const MODULES: &[&str] = &["wsgi.py", "app.py", "main.py", "application.py", "server.py", "run.py"];

/// What is kept out of the build.
const DOCKERIGNORE: &str = "\
# Written by `perch launch`: what the build does not need.
.git
.gitignore
.dockerignore
Dockerfile
fly.toml
__pycache__
*.pyc
.venv
venv
.pytest_cache
.env
*.sqlite3
";

/// How the dependencies are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Installer {
    Requirements,
    Project,
    Poetry,
    Pipenv,
}

/// Plans a Flask app.
pub(crate) fn detect(files: &dyn Files) -> Option<LaunchPlan> {
    let (installer, from) = installer(files)?;
    // A dependency alone does not show where the app is: without a module there is nothing to run.
    let app = App::find(files)?;
    let dockerfile = dockerfile(installer, files, &app.target);
    let mut plan = LaunchPlan::new(Family::Flask, Source::Generated(dockerfile));
    plan.decide("build", "a new Dockerfile", format!("Flask is named in {from}"));
    plan.decide("image", BASE_IMAGE, "a small Python 3.11 on Debian 12");
    plan.decide("command", format!("gunicorn {}", app.target), app.why);
    plan.command = Some(format!("gunicorn {}", app.target));
    plan.decide("port", PORT, "gunicorn is told to listen there");
    plan.internal_port = PORT;
    plan.env.insert("PORT".to_owned(), PORT.to_string());
    plan.kill_signal = Some(perch_types::machine_config::Signal::SigTerm);
    plan.decide("signal", "SIGTERM", "gunicorn then ends its requests before it ends itself");
    plan.memory_mb = 256;
    plan.decide("memory", "256 MB", "two gunicorn workers of a small app take about 80 MB");
    if !files.has(".dockerignore") {
        plan.dockerignore = Some(DOCKERIGNORE.to_owned());
    }
    Some(plan)
}

/// Returns how the dependencies are installed, and the file that names Flask.
fn installer(files: &dyn Files) -> Option<(Installer, &'static str)> {
    let mentions = |path: &str| {
        files.text(path).is_some_and(|text| {
            text.lines().any(|line| {
                let code = line.split('#').next().unwrap_or_default();
                names(code, "flask")
            })
        })
    };
    if mentions("requirements.txt") {
        return Some((Installer::Requirements, "requirements.txt"));
    }
    if mentions("pyproject.toml") {
        let poetry = files.text("pyproject.toml").is_some_and(|it| it.contains("[tool.poetry.dep"));
        let installer = if poetry { Installer::Poetry } else { Installer::Project };
        return Some((installer, "pyproject.toml"));
    }
    mentions("Pipfile").then_some((Installer::Pipenv, "Pipfile"))
}

/// Where the app is, in gunicorn's notation.
struct App {
    target: String,
    why: String,
}

impl App {
    fn find(files: &dyn Files) -> Option<Self> {
        let packages =
            files.ending_with("/__init__.py").filter(|path| path.matches('/').count() == 1);
        let candidates: Vec<&str> = MODULES.iter().copied().chain(packages).collect();
        let read = |path: &&str| Some(((*path).to_owned(), files.text(path)?));
        let texts: Vec<(String, String)> = candidates.iter().filter_map(read).collect();
        texts.iter().find_map(|(path, text)| Self::in_module(path, text)).or_else(|| {
            // wsgi.py and app.py often import the object from somewhere else.
            let (path, _) = texts.iter().find(|(path, _)| path == "wsgi.py" || path == "app.py")?;
            Some(Self {
                target: format!("{}:app", module_of(path)),
                why: format!("{path} is there; `app` is the usual name of the object"),
            })
        })
    }

    fn in_module(path: &str, text: &str) -> Option<Self> {
        let module = module_of(path);
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if let Some((left, right)) = line.split_once('=') {
                let name = left.split(':').next().unwrap_or_default().trim_end();
                let right = right.trim_start();
                let makes = right.starts_with("Flask(")
                    || right.starts_with("flask.Flask(")
                    || right.starts_with("create_app(");
                if makes && is_name(name) {
                    return Some(Self {
                        target: format!("{module}:{name}"),
                        why: format!("line {number} of {path} makes `{name}`"),
                    });
                }
            }
            if line.starts_with("def create_app(") {
                return Some(Self {
                    target: format!("{module}:create_app()"),
                    why: format!("line {number} of {path} has the factory `create_app`"),
                });
            }
        }
        None
    }
}

/// Returns whether text is a Python name at the beginning of a line.
fn is_name(text: &str) -> bool {
    text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn module_of(path: &str) -> String {
    path.trim_end_matches(".py").trim_end_matches("/__init__").replace('/', ".")
}

/// Returns the lines that install the dependencies, and the files that they need.
fn install(installer: Installer, files: &dyn Files) -> (String, &'static str) {
    match installer {
        Installer::Requirements => {
            ("requirements.txt".to_owned(), "pip install -r requirements.txt gunicorn")
        }
        Installer::Project => (
            "pyproject.toml".to_owned(),
            "python3 -c 'import tomllib; print(*tomllib.load(open(\"pyproject.toml\", \"rb\"))[\"project\"].get(\"dependencies\", []), sep=\"\\n\")' > /tmp/requirements.txt \\\n    && pip install -r /tmp/requirements.txt gunicorn",
        ),
        Installer::Poetry => {
            let lock = if files.has("poetry.lock") { " poetry.lock" } else { "" };
            (
                format!("pyproject.toml{lock}"),
                "pip install poetry gunicorn \\\n    && poetry install --only main --no-root --no-interaction",
            )
        }
        Installer::Pipenv => {
            if files.has("Pipfile.lock") {
                (
                    "Pipfile Pipfile.lock".to_owned(),
                    "pip install pipenv gunicorn \\\n    && pipenv requirements > /tmp/requirements.txt \\\n    && pip install -r /tmp/requirements.txt",
                )
            } else {
                (
                    "Pipfile".to_owned(),
                    "pip install pipenv gunicorn \\\n    && pipenv install --skip-lock",
                )
            }
        }
    }
}

fn dockerfile(installer: Installer, files: &dyn Files, target: &str) -> String {
    let (needed, run) = install(installer, files);
    format!(
        r#"# Written by `perch launch`. It is yours now: change what you like.
FROM {BASE_IMAGE}

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH

WORKDIR /app
RUN python3 -m venv /opt/venv

# Dependencies first: this layer is built again only when they change.
COPY {needed} ./
RUN {run}

COPY . .

# The program cannot change its own code, and is root nowhere.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin app
USER app

EXPOSE {PORT}
CMD ["gunicorn", "--bind", "0.0.0.0:{PORT}", "--workers", "2", "--access-logfile", "-", "{target}"]
"#
    )
}
