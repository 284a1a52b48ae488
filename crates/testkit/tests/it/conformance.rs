//! Programs that others wrote for the same wire format, against a real server (conformance/).
//!
//! Never a foreign document in this repository: the contract's is looked for beside the clone.

use std::path::{Path, PathBuf};
use std::process::Command;

use perch_testkit::{Cloud, Options, skipped};
use serde_json::{Value, json};

/// Requests of one kind that schemathesis makes up for one operation.
const EXAMPLES: &str = "3";
/// Seconds that one run of schemathesis may take.
const SECONDS_MAX: &str = "200";
/// The same among the long tests.
const SECONDS_LONG_MAX: &str = "1200";
/// What schemathesis makes up: in the long tests also every value at its bounds, operation by
/// operation, which takes minutes.
const PHASES: &str = "examples,fuzzing";
const PHASES_LONG: &str = "examples,coverage,fuzzing";
/// A pool that is full after a few volumes: a document knows no bound of them.
const SETTINGS: &str = "[volumes]\nsize_gb = 8\n";
const NULLABLE: &str = r#"{"type":"string","nullable":true}"#;
const BASE64: &str = r#"{"type":"string","format":"byte"}"#;
/// Where the contract's document declares something else than its servers answer and its clients
/// read (1.8, 1.9, 1.12): nothing where there is no text, bytes as numbers where base64 is sent, a
/// sum of bits as one of them. Schemas, properties, and what those are.
const AMENDED: [(&str, &str, &str); 13] = [
    ("Volume", "attached_machine_id", NULLABLE),
    ("Volume", "attached_alloc_id", NULLABLE),
    ("OrgVolume", "attached_machine_id", NULLABLE),
    ("OrgVolume", "attached_alloc_id", NULLABLE),
    ("SecretKey", "public_key", BASE64),
    ("SetSecretkeyResponse", "public_key", BASE64),
    ("EncryptSecretkeyResponse", "ciphertext", BASE64),
    ("DecryptSecretkeyResponse", "plaintext", BASE64),
    ("SignSecretkeyResponse", "signature", BASE64),
    ("root.VerifiedToken", "permission_token", BASE64),
    ("macaroon.Nonce", "kid", BASE64),
    ("macaroon.Nonce", "rnd", BASE64),
    ("flyio.Access", "action", r#"{"type":"integer"}"#),
];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap().to_owned()
}

struct Server {
    cloud: Cloud,
    image: String,
    machine: String,
    folder: tempfile::TempDir,
}

impl Server {
    fn start(test: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("perchd.toml");
        std::fs::write(&file, SETTINGS).unwrap();
        // `flytrap` can read the region codes that it knows, and no other.
        let words = ["--region", "fra", "--config", file.to_str().unwrap()];
        let arguments = words.map(str::to_owned).to_vec();
        let options = Options { arguments, ..Options::default() };
        let cloud = Cloud::start_with(test, options).unwrap()?;
        let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
        let services = json!([
            {"protocol": "tcp", "internal_port": 8080, "ports": [{"port": 80, "handlers": ["http"]}]}
        ]);
        let config = json!({"image": image, "services": services});
        let machine = cloud.machine("web", &config, "started").unwrap();
        Some(Self { cloud, image, machine, folder })
    }

    /// Makes what paths name beside the app and its machine; returns it as the variables of
    /// schemathesis.toml. What has a name there has the same here.
    fn furnish(&self) -> [(&'static str, String); 4] {
        let make = |path: &str, body: Value| {
            self.cloud.must("POST", &format!("/v1/apps/web/{path}"), &body).unwrap()
        };
        let text = |made: Value, field: &str| made[field].as_str().unwrap().to_owned();
        make(&format!("machines/{}/metadata/conformance", self.machine), json!({"value": "blue"}));
        make("secrets/conformance", json!({"value": "blue"}));
        for (name, kind) in
            [("conformance", "es256"), ("encrypts", "nacl_secretbox"), ("signs", "hs256")]
        {
            make(&format!("secretkeys/{name}/generate"), json!({"type": kind}));
        }
        // For no machine: those that there are go on being reached.
        let policy = json!({"name": "conformance", "selector": {"metadata": {"no": "machine"}},
            "rules": [{"action": "allow", "direction": "ingress",
                "ports": [{"protocol": "tcp", "port": 8080}]}]});
        [
            ("PERCH_VOLUME", text(make("volumes", json!({"name": "data", "size_gb": 1})), "id")),
            ("PERCH_POLICY", text(make("network_policies", policy), "id")),
            ("PERCH_IP", text(make("ip_assignments", json!({"type": "shared_v4"})), "ip")),
            ("PERCH_TOKEN_ID", text(make("deploy_token", json!({})), "token_id")),
        ]
    }

    /// Runs a program that finds the server in its environment; returns what it printed.
    fn run(&self, program: &mut Command) -> String {
        let output = program
            .env("PERCH_URL", format!("http://{}", self.cloud.api))
            .env("PERCH_TOKEN", &self.cloud.token)
            .env("PERCH_APP", "web")
            .env("PERCH_IMAGE", &self.image)
            .env("PERCH_MACHINE", &self.machine)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{text}\n{}", self.cloud.server_log());
        text
    }

    fn schemathesis(&self, program: &Path, document: &Path, base: &str, more: &[&str]) {
        let url = format!("http://{}{base}", self.cloud.api);
        let (phases, seconds) = match std::env::var_os("PERCH_TEST_LONG") {
            Some(_) => (PHASES_LONG, SECONDS_LONG_MAX),
            None => (PHASES, SECONDS_MAX),
        };
        let mut command = Command::new("timeout");
        command.envs(self.furnish());
        command.arg(seconds).arg(program).arg("--config-file");
        command.arg(root().join("conformance/schemathesis.toml")).arg("run").arg(document);
        command.args(["--url", &url, "--phases", phases, "--workers", "2"]);
        command.args(["--max-examples", EXAMPLES, "--suppress-health-check", "all", "--no-color"]);
        let text = self.run(command.args(more));
        assert!(text.contains("passed"), "{text}");
        // What all paths are about was there to the end.
        self.cloud.machine_of("web", &self.machine).unwrap();
    }
}

/// Writes the contract's document with what is amended of it.
fn amended(document: &Path, folder: &Path) -> PathBuf {
    let mut contract: Value = serde_json::from_slice(&std::fs::read(document).unwrap()).unwrap();
    for (schema, property, declared) in AMENDED {
        let pointer = format!("/components/schemas/{schema}/properties/{property}");
        let found = contract.pointer_mut(&pointer).unwrap();
        let declared: Value = serde_json::from_str(declared).unwrap();
        assert_ne!(*found, declared, "{schema}.{property} needs no amendment");
        *found = declared;
    }
    let amended = folder.join("contract.json");
    std::fs::write(&amended, contract.to_string()).unwrap();
    amended
}

/// Returns a program that scripts/setup installs, or says that it is not there.
fn tool(test: &str, path: &str) -> Option<PathBuf> {
    let path = root().join("target/conformance").join(path);
    if path.exists() {
        return Some(path);
    }
    skipped(test, &format!("{}: run `scripts/setup test`", path.display()));
    None
}

#[test]
fn fly_admin_works_with_a_real_server() {
    let test = "fly_admin_works_with_a_real_server";
    let Some(modules) = tool(test, "node/node_modules") else { return };
    let Some(server) = Server::start(test) else { return };
    let script = root().join("conformance/fly-admin.js");
    let text = server.run(Command::new("node").arg(script).env("NODE_PATH", modules));
    assert!(text.contains("passed: fly-admin deletion"), "{text}");
    server.cloud.finish().unwrap();
}

#[test]
fn flytrap_works_with_a_real_server_and_a_machines_environment() {
    let test = "flytrap_works_with_a_real_server_and_a_machines_environment";
    let Some(program) = tool(test, "flytrap/debug/conformance-flytrap") else { return };
    let Some(server) = Server::start(test) else { return };
    let environment = server.cloud.get("web", "/env").unwrap().text();
    let of_machine = environment.lines().filter_map(|line| line.split_once('='));
    let of_machine = of_machine.filter(|(name, _)| name.starts_with("FLY_"));
    let text = server.run(Command::new(program).envs(of_machine));
    assert!(text.contains("passed: flytrap environment"), "{text}");
    server.cloud.finish().unwrap();
}

#[test]
fn schemathesis_finds_nothing_with_our_own_document() {
    let test = "schemathesis_finds_nothing_with_our_own_document";
    let Some(program) = tool(test, "python/bin/schemathesis") else { return };
    let Some(server) = Server::start(test) else { return };
    // Not `ignored_auth`: a token that was refused too often is told to wait, which it takes for a
    // fault. That no endpoint is open is tested in `api`.
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,\
                  response_headers_conformance,response_schema_conformance";
    let document = root().join("docs/openapi.json");
    server.schemathesis(&program, &document, "", &["--checks", checks]);
    server.cloud.finish().unwrap();
}

#[test]
fn schemathesis_finds_nothing_with_the_contracts_document() {
    let test = "schemathesis_finds_nothing_with_the_contracts_document";
    let document = root().join("../shared/contract/machines-openapi.json");
    if !document.is_file() {
        return skipped(test, "the contract's document beside the clone");
    }
    let Some(program) = tool(test, "python/bin/schemathesis") else { return };
    let Some(server) = Server::start(test) else { return };
    // Not `status_code_conformance`: of what is refused, the document has some 400 and hardly any
    // other. Our own document has them all, and is tested with it.
    let checks = "not_a_server_error,content_type_conformance,response_schema_conformance";
    let document = amended(&document, server.folder.path());
    server.schemathesis(&program, &document, "/v1", &["--checks", checks]);
    server.cloud.finish().unwrap();
}
