//! Trees and the plans that come of them.
//!
//! Never a tree on disk; `folder` has those.

use std::fmt::Write as _;

use perch_scan::{LaunchPlan, MemoryFiles, Source, scan};

fn tree(files: &[(&str, &str)]) -> MemoryFiles {
    MemoryFiles::new(files.iter().map(|(path, text)| (*path, text.as_bytes())))
}

fn plan(files: &[(&str, &str)]) -> LaunchPlan {
    scan(&tree(files)).unwrap()
}

fn shown(plan: &LaunchPlan) -> String {
    let mut text = format!("{}, port {}, {} MB\n", plan.family, plan.internal_port, plan.memory_mb);
    for decision in &plan.decisions {
        writeln!(text, "{:<9} {:<28} {}", decision.what, decision.value, decision.why).unwrap();
    }
    for warning in &plan.warnings {
        writeln!(text, "warning: {warning}").unwrap();
    }
    text
}

fn generated(plan: &LaunchPlan) -> &str {
    match &plan.dockerfile {
        Source::Generated(text) => text,
        Source::Existing(path) => panic!("{path}"),
    }
}

#[test]
fn a_flask_app_with_requirements() {
    let plan = plan(&[
        ("requirements.txt", "# web\nFlask==3.0\n"),
        ("app.py", "from flask import Flask\n\napp = Flask(__name__)\n"),
    ]);
    insta::assert_snapshot!("flask_plan", shown(&plan));
    insta::assert_snapshot!("flask_dockerfile", generated(&plan));
    insta::assert_snapshot!("flask_dockerignore", plan.dockerignore.unwrap());
    assert_eq!(plan.env["PORT"], "8080");
}

#[test]
fn where_a_flask_app_is() {
    for (path, text, target) in [
        ("app.py", "server: Flask = Flask(__name__)", "app:server"),
        ("main.py", "import flask\napi = flask.Flask('x')", "main:api"),
        ("wsgi.py", "from shop import app", "wsgi:app"),
        ("wsgi.py", "from shop import create_app\napplication = create_app()", "wsgi:application"),
        (
            "shop/__init__.py",
            "def create_app(config=None):\n    app = Flask(__name__)",
            "shop:create_app()",
        ),
    ] {
        let plan = plan(&[("requirements.txt", "flask"), (path, text)]);
        assert_eq!(plan.command.as_deref(), Some(format!("gunicorn {target}").as_str()), "{path}");
        assert!(generated(&plan).contains(&format!("\"{target}\"")), "{path}");
    }
}

#[test]
fn flask_named_by_other_files() {
    let app = ("app.py", "app = Flask(__name__)");
    let project =
        plan(&[("pyproject.toml", "[project]\ndependencies = [\n  \"flask>=3\",\n]\n"), app]);
    insta::assert_snapshot!("flask_project_dockerfile", generated(&project));
    let poetry = plan(&[
        ("pyproject.toml", "[tool.poetry.dependencies]\npython = \"^3.11\"\nflask = \"^3\"\n"),
        ("poetry.lock", ""),
        app,
    ]);
    assert!(generated(&poetry).contains("COPY pyproject.toml poetry.lock ./\n"));
    let pipenv = plan(&[("Pipfile", "[packages]\nflask = \"*\"\n"), app]);
    assert!(generated(&pipenv).contains("pipenv install --skip-lock"));
}

#[test]
fn odd_spellings_of_requirements() {
    let app = ("app.py", "app = Flask(__name__)".as_bytes());
    let utf16: Vec<u8> = [0xff, 0xfe]
        .into_iter()
        .chain("Flask==3.0\r\n".encode_utf16().flat_map(u16::to_le_bytes))
        .collect();
    for (bytes, found) in [
        (b"Flask\r\ngunicorn\r\n".as_slice(), true),
        (b"flask[async]>=2 ; python_version > '3'", true),
        (&utf16, true),
        (b"# Flask would be nice\nbottle\n", false),
        (b"bottle # not flask\n", false),
        (b"flask-login\n", false),
        (b"\x00\xff\xfe\x80", false),
    ] {
        let files = MemoryFiles::new([("requirements.txt", bytes), app]);
        assert_eq!(scan(&files).is_ok(), found, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn php_pages() {
    let plain = plan(&[("index.php", "<?php echo 'hi';")]);
    insta::assert_snapshot!("php_plan", shown(&plain));
    insta::assert_snapshot!("php_dockerfile", generated(&plain));
    let composer = plan(&[
        ("public/index.php", "<?php"),
        (
            "composer.json",
            r#"{"require": {"php": ">=8", "ext-gmp": "*", "monolog/monolog": "^3"}}"#,
        ),
        ("composer.lock", "{}"),
        (".dockerignore", ""),
    ]);
    insta::assert_snapshot!("php_composer_plan", shown(&composer));
    insta::assert_snapshot!("php_composer_dockerfile", generated(&composer));
    assert_eq!(composer.dockerignore, None);
    let none = plan(&[("index.php", ""), ("composer.json", r#"{"require": {"php": ">=8"}}"#)]);
    assert!(!generated(&none).contains("composer install"));
}

#[test]
fn a_dockerfile_wins_over_a_family() {
    let plan = plan(&[
        (
            "Dockerfile",
            "FROM a AS build\nUSER x\nEXPOSE 1\nFROM b\nARG PORT=3000\nEXPOSE $PORT 9/udp\nCMD [\"run\"]\n",
        ),
        ("requirements.txt", "flask"),
        ("app.py", "app = Flask(__name__)"),
    ]);
    insta::assert_snapshot!("dockerfile_plan", shown(&plan));
    assert_eq!(plan.dockerfile, Source::Existing("Dockerfile".to_owned()));
}

#[test]
fn a_containerfile_without_expose_warns() {
    let plan =
        plan(&[("Containerfile", "FROM a\nUSER app\nVOLUME /data\n"), (".dockerignore", "")]);
    insta::assert_snapshot!("containerfile_plan", shown(&plan));
}

#[test]
fn what_is_not_recognised_says_what_it_looks_like() {
    let mut text = String::new();
    for files in [
        [].as_slice(),
        &[("index.html", "<h1>hi</h1>"), ("style.css", "")],
        &[("package.json", "{}"), ("index.html", "")],
        &[("artisan", ""), ("index.php", ""), ("public/index.php", "")],
        &[("requirements.txt", "flask"), ("tool.py", "")],
        &[("notes.txt", "")],
    ] {
        let error = scan(&tree(files)).unwrap_err();
        writeln!(text, "{error}\n  {}", error.hint()).unwrap();
    }
    insta::assert_snapshot!("unrecognised", text);
}
