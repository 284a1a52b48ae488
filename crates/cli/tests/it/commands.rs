//! One test for every command: what it asks of the platform and what it prints.
//!
//! Never more than the wiring: the parts have tests of their own.

use std::os::unix::fs::PermissionsExt as _;

use perch_types::build::BuildEvent;
use perch_types::image::Digest;
use perch_types::{ApiError, Code, MachineConfig, MachineState};

use crate::fake::{Fake, Fate, TOKEN};
use crate::run::Perch;

fn image() -> BuildEvent {
    BuildEvent::Image {
        reference: "registry.internal/web:deployment-1".to_owned(),
        digest: Digest::from_sha256(&[7; 32]),
        size_bytes: 52_000_000,
    }
}

fn one_machine() -> Fake {
    let fake = Fake::start().with_app("web");
    let config = MachineConfig { image: "web:1".to_owned(), ..MachineConfig::default() };
    fake.world().add_machine(MachineState::Started, config);
    fake
}

#[test]
fn apps() {
    let fake = Fake::start();
    let perch = Perch::of(&fake);
    let empty = perch.run("apps list");
    assert_eq!((empty.code, empty.stdout.as_str()), (0, ""));
    assert!(empty.stderr.starts_with("there are no apps yet"));
    assert_eq!(perch.run("apps list --json").good(), "[]\n");
    perch.run("apps create web").good();
    insta::assert_snapshot!(perch.run("apps list").good(), @"
    NAME  OWNER     STATUS   MACHINES  HOSTNAME
    web   personal  pending  0         web.localhost
    ");
    let asked = perch.run("apps destroy web");
    assert_eq!(asked.code, 1);
    assert!(asked.stderr.contains("hint: add `--yes`"));
    perch.run("apps destroy web --yes").good();
    assert_eq!(fake.changes(), ["POST /v1/apps", "DELETE /v1/apps/web"]);
    assert_eq!(perch.run("apps create Web").code, 2);
}

#[test]
fn tokens() {
    let fake = Fake::start().with_app("web");
    let perch = Perch::of(&fake);
    let made = perch.run("tokens create deploy -a web -n ci -x 24h");
    assert_eq!((made.code, made.stdout.as_str()), (0, "perch_deploy_text\n"), "{}", made.stderr);
    assert!(made.stderr.contains("token 0123456789ab for the app `web` until"), "{}", made.stderr);
    insta::assert_snapshot!(perch.run("tokens list -a web").good(), @"
    ID            NAME  UNTIL
    0123456789ab  ci
    ");
    perch.run("tokens revoke 0123456789ab -a web").good();
    assert_eq!(perch.run("tokens revoke ../../web -a web").code, 2);
    assert_eq!(
        fake.changes(),
        ["POST /v1/apps/web/deploy_token", "DELETE /v1/apps/web/tokens/0123456789ab"]
    );
}

#[test]
fn status() {
    let fake = one_machine();
    let perch = Perch::of(&fake);
    perch.file("fly.toml", "app = 'web'\n");
    let shown = perch.run("status");
    insta::assert_snapshot!(steady_ages(&shown.shown(Some(&fake))));
    let json: serde_json::Value = serde_json::from_str(&perch.run("status --json").good()).unwrap();
    assert_eq!(json["machines"][0]["id"], "00000000000001");
}

/// Replaces the last column, which is an age.
fn steady_ages(text: &str) -> String {
    let line = |line: &str| match line.rsplit_once("  ") {
        Some((rest, age)) if age.ends_with('d') && !age.contains(' ') => format!("{rest}  [AGE]"),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn logs_of_an_app_and_of_a_machine_are_escaped() {
    let fake = one_machine();
    fake.world().log = vec!["hello".to_owned(), "\u{1b}[2Jgone\u{7}".to_owned()];
    let perch = Perch::of(&fake);
    insta::assert_snapshot!(perch.run("logs --app web").good(), @r"
    2023-11-14T22:13:20.000Z 00000000000001 local [info] hello
    2023-11-14T22:13:20.000Z 00000000000001 local [info] \x1b[2Jgone\x07
    ");
    insta::assert_snapshot!(perch.run("logs -a web -m 00000000000001").good(), @r"
    2023-11-14T22:13:20.000Z [stdout] hello
    2023-11-14T22:13:20.000Z [stdout] \x1b[2Jgone\x07
    ");
    assert!(!perch.run("logs -a web --json").good().contains('\u{1b}'));
}

#[test]
fn machine_run_says_the_id_and_sends_what_was_asked() {
    let fake = Fake::start().with_app("web");
    let perch = Perch::of(&fake);
    let line = "machine run -a web alpine -e A=1 -p 8080 -m 512 --restart no --rm -- sleep inf";
    // All that follows the program's name is the program's; options may stand on either side of
    // the image.
    assert_eq!(perch.run(line).code, 0);
    let line = "machine run -a web -e A=1 -p 8080 -m 512 --restart no --rm alpine sleep inf";
    assert_eq!(perch.run(line).good(), "00000000000003\n");
    let request = fake.world().requests[1].clone();
    insta::assert_snapshot!(serde_json::to_string(&request.config).unwrap());
    assert_eq!(fake.world().requests[0].config, request.config);
}

#[test]
fn machine_run_takes_a_configuration_of_containers_and_status_shows_them() {
    let fake = Fake::start().with_app("web");
    let perch = Perch::of(&fake).with("NO_COLOR", "1");
    let config = serde_json::json!({
        "env": {"A": "1"},
        "containers": [{"name": "db", "image": "db:1"}, {"name": "web", "image": "web:2"}],
    });
    perch.file("machine.json", &config.to_string());
    let line = "machine run -a web --machine-config machine.json -e B=2 -m 512";
    let id = perch.run(line).good();
    let sent = fake.world().requests[0].config.clone();
    assert_eq!(serde_json::to_value(&sent.containers).unwrap(), config["containers"]);
    assert_eq!((sent.env.len(), sent.memory_mb(), sent.image.as_str()), (2, 512, ""));
    let summary = |name: &str, state: &str| perch_types::api::ContainerSummary {
        name: name.to_owned(),
        state: state.to_owned(),
    };
    fake.world().machines[0].containers = vec![summary("db", "started"), summary("web", "created")];
    let shown = perch.run(&format!("machine status -a web {}", id.trim())).good();
    let table = "CONTAINER  STATE    IMAGE\ndb         started  db:1\nweb        created  web:2\n";
    assert!(shown.contains(table), "{shown}");
    let program = perch.run(&format!("machine exec -a web --container db {} ls", id.trim()));
    assert_eq!(program.code, 7, "{program:?}");
    let none = perch.run("machine run -a web --machine-config none.json");
    assert!(none.stderr.contains("read the machine's configuration from `none.json`"), "{none:?}");
    assert_eq!(perch.run("machine run -a web").code, 2);
}

#[test]
fn machine_list_status_and_changes() {
    let fake = one_machine();
    let perch = Perch::of(&fake).with("NO_COLOR", "1");
    assert_eq!(perch.run("machine list -a web").good().lines().count(), 2);
    assert!(perch.run("machine status -a web 00000000000001").good().contains("state    started"));
    for verb in ["start", "stop", "restart", "cordon", "uncordon"] {
        perch.run(&format!("machine {verb} -a web 00000000000001")).good();
    }
    perch.run("machine destroy --force -a web 00000000000001").good();
    assert_eq!(
        fake.changes(),
        [
            "POST /v1/apps/web/machines/00000000000001/start",
            "POST /v1/apps/web/machines/00000000000001/stop",
            "POST /v1/apps/web/machines/00000000000001/restart",
            "POST /v1/apps/web/machines/00000000000001/cordon",
            "POST /v1/apps/web/machines/00000000000001/uncordon",
            "DELETE /v1/apps/web/machines/00000000000001",
        ]
    );
}

#[test]
fn machine_lists_are_filtered_and_quiet() {
    let fake = one_machine();
    let perch = Perch::of(&fake);
    assert_eq!(perch.run("machine list -a web -q").good(), "00000000000001\n");
    let line = "machine list -a web --state started,stopped --metadata a=b --region fra --all";
    perch.run(line).good();
    let wrong = perch.run("machine list -a web --metadata a");
    assert_eq!((wrong.code, wrong.stderr.contains("`a` is no label")), (2, true));
}

#[test]
fn machine_labels_versions_and_waits() {
    let fake = one_machine();
    let perch = Perch::of(&fake).with("NO_COLOR", "1");
    let none = perch.run("machine metadata list -a web 00000000000001");
    assert_eq!((none.code, none.stdout.as_str()), (0, ""));
    assert_eq!(none.stderr, "machine 00000000000001 has no labels\n");
    perch.run("machine metadata set -a web 00000000000001 colour=blue size=").good();
    perch.run("machine metadata set -a web 00000000000001 role=a=b").good();
    perch.run("machine metadata unset -a web 00000000000001 size").good();
    insta::assert_snapshot!(perch.run("machine metadata ls -a web 00000000000001").good(), @r"
    KEY     VALUE
    colour  blue
    role    a=b
    ");
    let json = perch.run("machine metadata list -a web 00000000000001 --json").good();
    let labels: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(labels, serde_json::json!({"colour": "blue", "role": "a=b"}));
    assert_eq!(perch.run("machine metadata set -a web 00000000000001 colour").code, 2);
    insta::assert_snapshot!(perch.run("machine versions -a web 00000000000001").good(), @r"
    VERSION                     SIZE           IMAGE
    00000000010000000000000001  1 CPU, 256 MB  web:1
    ");
    let waited = perch.run("machine wait -a web 00000000000001 --state started,stopped -t 5");
    assert_eq!(waited.code, 0, "{waited:?}");
    assert!(waited.stderr.ends_with("ok: machine 00000000000001 is started\n"), "{waited:?}");
}

#[test]
fn machine_leases_are_shown_and_ended() {
    let fake = one_machine();
    let perch = Perch::of(&fake).with("NO_COLOR", "1");
    let none = perch.run("machine lease view -a web 00000000000001");
    assert_eq!((none.code, none.stdout.as_str()), (0, ""));
    assert_eq!(none.stderr, "machine 00000000000001 has no lease\n");
    fake.world().lease = Some(perch_types::api::Lease {
        nonce: "abc".to_owned(),
        expires_at: 0,
        owner: "admin".to_owned(),
        description: "deploy".to_owned(),
        version: perch_types::InstanceId::from_parts(1, 1),
    });
    insta::assert_snapshot!(perch.run("machine leases view -a web 00000000000001").good(), @r"
    MACHINE         OWNER  ENDS   NONCE  DESCRIPTION
    00000000000001  admin  in 0s  abc    deploy
    ");
    let ended = perch.run("machine lease clear -a web 00000000000001");
    assert_eq!(ended.stderr, "ok: lease of machine 00000000000001 is ended; admin held it\n");
    let again = perch.run("machine lease clear -a web 00000000000001");
    assert_eq!((again.code, again.stderr), (0, none.stderr));
    assert_eq!(fake.changes(), ["DELETE /v1/apps/web/machines/00000000000001/lease"]);
}

#[test]
fn exec_passes_output_and_exit_code_through() {
    let fake = one_machine();
    let ran = Perch::of(&fake).run("machine exec -a web 00000000000001 ls -la");
    assert_eq!(ran.code, 7);
    assert_eq!(ran.stdout, "out\u{1b}[2J\n");
    assert_eq!(ran.stderr, "err\n");
}

#[test]
fn an_interactive_exec_carries_bytes_both_ways() {
    let fake = one_machine();
    let perch = Perch::of(&fake);
    let sent = "line\n".repeat(30_000);
    let ran = perch.run_with("machine exec -i -a web 00000000000001 cat", &sent);
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert_eq!(ran.stdout, sent);
}

#[test]
fn images() {
    let fake = Fake::start();
    let perch = Perch::of(&fake);
    insta::assert_snapshot!(perch.run("images list").good(), @"
    REPOSITORY      TAGS                SIZE
    library/python  3.11-slim-bookworm  52.0 MB
    ");
    fake.world().build = vec![
        BuildEvent::Progress { text: "step 1/3: debian".to_owned() },
        BuildEvent::Log { line: "unpacking".to_owned() },
        image(),
        BuildEvent::Done,
    ];
    insta::assert_snapshot!(perch.run("images bootstrap").shown(None));
    let error = ApiError::new(Code::Unavailable, "mirror does not answer");
    fake.world().build = vec![BuildEvent::Failed { error }];
    assert_eq!(perch.run("images bootstrap").code, 1);
    fake.world().build = Vec::new();
    assert_eq!(perch.run("images bootstrap").code, 1);
}

#[test]
fn build_sends_the_context_and_prints_the_image() {
    let fake = Fake::start().with_app("web");
    fake.world().build = vec![BuildEvent::Log { line: "STEP 1".to_owned() }, image()];
    let perch = Perch::of(&fake);
    perch.file("Dockerfile", "FROM a").file(".dockerignore", "secret").file("secret", "x");
    let out = perch.run("build -a web --build-arg A=1 --build-target prod --no-cache").good();
    assert_eq!(out, format!("registry.internal/web:deployment-1@sha256:{}\n", "07".repeat(32)));
    let request: serde_json::Value = serde_json::from_str(&fake.world().build_requests[0]).unwrap();
    assert_eq!(request["dockerfile"], "Dockerfile");
    assert_eq!(request["args"]["A"], "1");
    assert_eq!(request["target"], "prod");
    assert_eq!(request["no_cache"], true);
    let context = fake.world().contexts[0].clone();
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&context[..]));
    let names: Vec<String> = tar
        .entries()
        .unwrap()
        .map(|it| it.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, [".dockerignore", "Dockerfile"]);
}

#[test]
fn deploy_builds_rolls_out_and_looks_at_the_edge() {
    let fake = Fake::start().with_app("web");
    fake.world().build = vec![image()];
    let image = format!("registry.internal/web:deployment-1@sha256:{}", "07".repeat(32));
    fake.world().fates.insert(image.clone(), Fate::Ready);
    let perch = Perch::of(&fake);
    perch.file("fly.toml", "app = 'web'\n[http_service]\ninternal_port = 8080\n");
    perch.file("Dockerfile", "FROM a");
    insta::assert_snapshot!(perch.run("deploy").shown(Some(&fake)));
    assert_eq!(fake.world().requests[0].config.image, image);
    // A second time the machine is there already.
    let json: serde_json::Value =
        serde_json::from_str(&perch.run("deploy --json --image web:2").good()).unwrap();
    assert_eq!(json["release"], 2);
    let plan = perch.run("deploy --plan --image web:3").good();
    assert!(plan.contains("[1/1] update machine"), "{plan}");
}

#[test]
fn open_prints_the_address() {
    let fake = Fake::start().with_app("web");
    let ran = Perch::of(&fake).run("open -a web /status");
    assert!(ran.good().ends_with("/status\n"));
}

#[test]
fn login_checks_and_stores_the_token_for_its_owner_alone() {
    let fake = Fake::start();
    let perch = Perch::new();
    let wrong = perch.run_with(&format!("auth login {}", fake.url), "wrong\n");
    assert_eq!(wrong.code, 1);
    let stored = perch.home().join("config.toml");
    assert!(!stored.exists());
    let right = perch.run_with(&format!("auth login {}", fake.url), &format!("{TOKEN}\n"));
    assert_eq!(right.code, 0, "{right:?}");
    assert_eq!(stored.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(perch.run("auth whoami").good().contains("personal"));
    assert_eq!(perch.run("auth token").good(), format!("{TOKEN}\n"));
    assert_eq!(perch.run("apps list --json").good(), "[]\n");
    // The stored token goes nowhere else.
    let other = Fake::start();
    let elsewhere = perch.run(&format!("apps list --api-url {}", other.url));
    assert_eq!(elsewhere.code, 1);
    assert_eq!(other.world().calls, Vec::<String>::new());
}

#[test]
fn version_works_without_a_platform() {
    let out = Perch::new().run("version").good();
    assert!(out.ends_with("platform not reached\n"), "{out}");
    let fake = Fake::start();
    assert!(Perch::of(&fake).run("version").good().ends_with("platform 0.1.0\n"));
}

#[test]
fn the_doctor_says_what_is_missing_and_gives_the_servers_authority() {
    let fake = Fake::start();
    let perch = Perch::of(&fake);
    let plain = perch.run("doctor");
    assert!(plain.code == 0 && plain.stderr.contains("without HTTPS"), "{plain:?}");
    assert_eq!(perch.run("doctor --certificate").code, 1);
    let pem = local_authority("localhost");
    fake.world().https = Some((443, pem.clone()));
    assert_eq!(perch.run("doctor --certificate").good(), pem);
    // There is nobody to ask: it is only told how.
    let told = perch.run("doctor");
    assert!(told.stderr.contains("does not trust"), "{told:?}");
    assert!(told.stdout.contains("perch doctor --certificate"), "{told:?}");
    let findings = perch.run("doctor --json").good();
    assert!(findings.contains("\"authority_trusted\": false"), "{findings}");
    // One that could vouch for others too is not even shown.
    fake.world().https = Some((443, local_authority("example")));
    for line in ["doctor", "doctor --certificate"] {
        let refused = perch.run(line);
        assert!(refused.code == 1 && refused.stderr.contains("do not trust it"), "{refused:?}");
        assert!(!refused.stdout.contains("CERTIFICATE"), "{refused:?}");
    }
}

/// Makes an authority as a server does.
fn local_authority(domain: &str) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName(domain.to_owned())],
        excluded_subtrees: vec![
            rcgen::GeneralSubtree::IpAddress(rcgen::CidrSubnet::V4([0; 4], [0; 4])),
            rcgen::GeneralSubtree::IpAddress(rcgen::CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

#[test]
fn secrets_go_in_and_names_come_out() {
    let fake = Fake::start().with_app("web");
    let config = MachineConfig {
        image: "web:1".to_owned(),
        metadata: [("fly_platform_version".to_owned(), "v2".to_owned())].into(),
        ..MachineConfig::default()
    };
    fake.world().add_machine(MachineState::Started, config.clone());
    fake.world().add_machine(MachineState::Stopped, config);
    fake.world().fates.insert("web:1".to_owned(), Fate::Ready);
    let perch = Perch::of(&fake);
    assert!(perch.run("secrets list -a web").stderr.contains("has no secrets"));

    let staged = perch.run("secrets set A=hunter2 B=x --stage -a web");
    assert!(
        staged.stderr.contains("2 secrets") && !staged.stderr.contains("hunter2"),
        "{staged:?}"
    );
    assert_eq!(fake.changes(), ["POST /v1/apps/web/secrets"]);
    let set = perch.run_with("secrets set C=- -a web", "from input\n");
    assert!(set.stderr.contains("1 machine sees version 2"), "{set:?}");
    assert_eq!(fake.world().secrets["C"], "from input");
    let request = fake.world().requests.last().cloned().unwrap();
    assert_eq!(request.min_secrets_version, Some(2));
    assert_eq!(fake.world().requests.len(), 1, "the machine that rests is left alone");

    perch.run_with("secrets import --stage -a web", "# some\nD=1\nE=\"\"\"a\nb\"\"\"\n").good();
    assert_eq!(fake.world().secrets["E"], "a\nb");
    perch.run("secrets unset A E --stage -a web").good();
    insta::assert_snapshot!(perch.run("secrets list -a web").good(), @r"
    NAME  DIGEST            UPDATED AT
    B     0011223344556677  2023-11-14T22:13:20.000Z
    C     0011223344556677  2023-11-14T22:13:20.000Z
    D     0011223344556677  2023-11-14T22:13:20.000Z
    ");
    for line in ["secrets set A -a web", "secrets set 1A=hunter2 -a web", "secrets set -a web"] {
        let wrong = perch.run(line);
        assert_eq!(wrong.code, 2, "{line}");
        assert!(!wrong.stderr.contains("hunter2"), "{wrong:?}");
    }
}

#[test]
fn secret_keys_are_made_imported_and_deleted_and_never_shown() {
    let fake = Fake::start().with_app("web");
    let perch = Perch::of(&fake);
    assert!(perch.run("secrets keys list -a web").stderr.contains("has no secret keys"));
    perch.run("secrets keys generate nacl_box seal -a web").good();
    let set = perch.run_with("secrets keys import hs256 mac -a web", "aHVudGVyMg==\n");
    assert!(set.code == 0 && !set.stderr.contains("aHVu") && set.stdout.is_empty(), "{set:?}");
    let value = fake.world().secret_keys["mac"].value.clone();
    assert_eq!(value.unwrap().expose(), b"hunter2");
    insta::assert_snapshot!(perch.run("secrets keys list -a web").good(), @"
    NAME  TYPE      PUBLIC KEY  UPDATED AT
    mac   hs256                 2023-11-14T22:13:20.000Z
    seal  nacl_box              2023-11-14T22:13:20.000Z
    ");
    let again = perch.run("secrets keys generate nacl_box seal -a web");
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("`--force`"), "{again:?}");
    perch.run("secrets keys generate es256 seal --force -a web").good();
    let asked = perch.run("secrets keys delete mac -a web");
    assert!(asked.code == 1 && asked.stderr.contains("`--yes`"), "{asked:?}");
    perch.run("secrets keys delete mac --yes -a web").good();
    assert_eq!(fake.world().secret_keys.keys().collect::<Vec<_>>(), ["seal"]);
    for line in ["secrets keys generate rsa a -a web", "secrets keys import hs256 1a -a web"] {
        assert_eq!(perch.run_with(line, "aHVudGVyMg==").code, 2, "{line}");
    }
}

#[test]
fn addresses_are_allocated_listed_and_released() {
    let fake = Fake::start().with_app("web");
    let perch = Perch::of(&fake);
    assert!(perch.run("ips list -a web").stderr.contains("has no addresses"));
    assert_eq!(perch.run("ips allocate-v4 --shared -a web").good(), "192.0.2.1\n");
    assert_eq!(perch.run("ips allocate-v6 -r fra -a web").good(), "2001:db8::1\n");
    let list = perch.run("ips list -a web").good();
    let lines: Vec<Vec<&str>> =
        list.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(lines[1..], [["192.0.2.1", "shared_v4", "fra"], ["2001:db8::1", "v6", "fra"]]);
    perch.run("ips release 192.0.2.1 -a web").good();
    assert_eq!(fake.world().ips.len(), 1);
    assert_eq!(perch.run("ips release web -a web").code, 2);
}
