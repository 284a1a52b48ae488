//! Programs that others wrote for the same wire format, against a real server (conformance/).
//!
//! Never a foreign document in this repository: the contract's is looked for beside the clone.

use std::path::{Path, PathBuf};
use std::process::Command;

use perch_testkit::{Cloud, Options, skipped};
use serde_json::json;

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
/// Paths of the contract that its document is tested on: those that Perch serves, without what
/// would take the app or the machine away that all others are about.
const CONTRACT_PATHS: &str =
    "^/(apps$|platform/regions$|tokens/current$|apps/[^/]+/machines(/[^/]+(/[^/]+)?)?$)";

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
        // `flytrap` can read the region codes that it knows, and no other.
        let arguments = ["--region", "fra"].map(str::to_owned).to_vec();
        let options = Options { arguments, ..Options::default() };
        let cloud = Cloud::start_with(test, options).unwrap()?;
        let image = cloud.app("web", &["--listen", "0.0.0.0:8080"]).unwrap();
        let services = json!([
            {"protocol": "tcp", "internal_port": 8080, "ports": [{"port": 80, "handlers": ["http"]}]}
        ]);
        let config = json!({"image": image, "services": services});
        let machine = cloud.machine("web", &config, "started").unwrap();
        let folder = tempfile::tempdir().unwrap();
        Some(Self { cloud, image, machine, folder })
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
        command.arg(seconds).arg(program).arg("--config-file");
        command.arg(root().join("conformance/schemathesis.toml")).arg("run").arg(document);
        command.args(["--url", &url, "--phases", phases, "--workers", "2"]);
        command.args(["--max-examples", EXAMPLES, "--suppress-health-check", "all", "--no-color"]);
        // The app and the machine that the paths name have to stay, and others may not go either.
        command.args(["--exclude-method", "DELETE"]);
        // What takes minutes, and what no serializer of schemathesis can write.
        command.args(["--exclude-path", "/v1/images/bootstrap"]);
        command.args(["--exclude-path", "/v1/apps/{app}/builds"]);
        let text = self.run(command.args(more));
        assert!(text.contains("passed"), "{text}");
    }
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
    for line in text.lines().filter_map(|line| line.strip_prefix("skipped: ")) {
        skipped(test, line);
    }
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
    let checks = "not_a_server_error,content_type_conformance,response_schema_conformance";
    let paths = ["--checks", checks, "--include-path-regex", CONTRACT_PATHS];
    server.schemathesis(&program, &document, "/v1", &paths);
    server.cloud.finish().unwrap();
}
