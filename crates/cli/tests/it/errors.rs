//! Every shape of an error, as it is printed.
//!
//! Never a trace or a type's name.

use std::fmt::Write as _;

use perch_types::build::BuildEvent;
use perch_types::{ApiError, Code};

use crate::fake::{Fake, Fate};
use crate::run::Perch;

const WEB: &str = "app = 'web'\n[http_service]\ninternal_port = 8080\n";

#[test]
fn errors_of_the_platform() {
    let mut text = String::new();
    let mut show = |line: &str, prepare: &dyn Fn(&Fake, &Perch)| {
        let fake = Fake::start().with_app("web");
        let perch = Perch::of(&fake);
        perch.file("fly.toml", WEB).file("Dockerfile", "FROM a\n");
        prepare(&fake, &perch);
        writeln!(text, "$ perch {line}\n{}", perch.run(line).shown(Some(&fake))).unwrap();
    };
    show("status --app none", &|_, _| {});
    show("machine status 00000000000009", &|_, _| {});
    show("apps create web", &|_, _| {});
    show("deploy --image none", &|fake, _| {
        let error = ApiError::new(Code::ImageUnknown, "no registry has `none`")
            .with_hint("look at the spelling");
        fake.world().refuse.push(("POST /v1/apps/web/machines".to_owned(), error));
    });
    show("status", &|fake, _| {
        let mut error = ApiError::new(Code::Internal, "the view is poisoned");
        error.request = Some("01ABC".to_owned());
        fake.world().refuse.push(("GET /v1/apps/web".to_owned(), error));
    });
    show("deploy", &|fake, _| {
        let error = ApiError::new(
            Code::BuildFailed,
            "step 2/3 failed with exit code 1 (line 2 of Dockerfile: RUN false)\nlast line",
        );
        fake.world().build = vec![
            BuildEvent::Progress { text: "step 2/3: RUN false".to_owned() },
            BuildEvent::Log { line: "it is \u{1b}[31mbroken".to_owned() },
            BuildEvent::Failed { error },
        ];
    });
    show("deploy --image web:2", &|fake, _| {
        fake.world().fates.insert("web:2".to_owned(), Fate::Exits(3));
        fake.world().log = vec!["Traceback".to_owned(), "\u{1b}]0;x\u{7}KeyError".to_owned()];
    });
    show("deploy --image web:2 --json", &|fake, _| {
        fake.world().fates.insert("web:2".to_owned(), Fate::Exits(3));
    });
    show("deploy --image web:2", &|fake, _| {
        fake.world().fates.insert("web:2".to_owned(), Fate::Ready);
        fake.world().edge_status = 500;
    });
    for fate in [
        Fate::OutOfMemory,
        Fate::NotReady("listens on 127.0.0.1:5000, expected 0.0.0.0:8080".to_owned()),
        Fate::Failed("no space left on the disk".to_owned()),
        Fate::Gone,
    ] {
        show("deploy --image web:2", &|fake, perch| {
            perch.file("fly.toml", &format!("{WEB}[deploy]\nwait_timeout = '1s'\n"));
            fake.world().fates.insert("web:2".to_owned(), fate.clone());
        });
    }
    insta::assert_snapshot!(text);
}

#[test]
fn errors_of_the_command_line_and_of_files() {
    let mut text = String::new();
    let fake = Fake::start().with_app("web");
    let mut show = |line: &str, file: Option<&str>| {
        let perch = Perch::of(&fake);
        if let Some(file) = file {
            perch.file("fly.toml", file);
        }
        writeln!(text, "$ perch {line}\n{}", perch.run(line).shown(Some(&fake))).unwrap();
    };
    show("status", None);
    show("deploy", None);
    show("deploy", Some("app = \n"));
    show("deploy", Some("[http_service]\ninternal_port = 1\n"));
    show("deploy", Some("app = 'web'\nmachine_config = 'a'\n[metrics]\nport = 1\n"));
    show("deploy", Some("app = 'web'\n[[vm]]\nsize = 'huge'\n"));
    show("deploy", Some(WEB));
    show("deploy --config other.toml", Some(WEB));
    insta::assert_snapshot!(text);
}

#[test]
fn errors_of_the_connection() {
    let mut text = String::new();
    let mut show = |perch: &Perch, line: &str| {
        let shown = perch.run(line).shown(None);
        let shown = shown.replace(&perch.home().display().to_string(), "[HOME]");
        writeln!(text, "$ perch {line}\n{shown}").unwrap();
    };
    show(&Perch::new().with("PERCH_API_URL", "http://127.0.0.1:1"), "apps list");
    show(&Perch::new().with("PERCH_API_URL", "http://cloud.example"), "apps list");
    let perch = Perch::new().with("PERCH_API_URL", "http://127.0.0.1:1").with("FLY_API_TOKEN", "t");
    show(&perch, "apps list");
    let perch = Perch::new();
    std::fs::write(perch.home().join("config.toml"), "token = 'hidden'\nurl = \n").unwrap();
    show(&perch, "apps list");
    std::fs::write(perch.home().join("config.toml"), "url = ''\ntoken = 'hidden\n").unwrap();
    show(&perch, "apps list");
    assert!(!text.contains("hidden"), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn a_wrong_token_is_told_how_to_log_in() {
    let fake = Fake::start();
    let perch = Perch::new().with("PERCH_API_URL", &fake.url).with("PERCH_API_TOKEN", "wrong");
    let ran = perch.run("apps list");
    assert!(ran.stderr.contains("perch auth login"), "{ran:?}");
    assert!(ran.stderr.contains("explain: perch explain unauthenticated"), "{ran:?}");
}
