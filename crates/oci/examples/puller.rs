//! A process that pulls one image, for tests that kill it; `puller unpack` is the unpacking child.
//!
//! Never does more than `ensure`: what is left behind is the library's doing.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use perch_oci::{ClientConfig, Endpoint, ImageStore, Limits, Privilege, StoreConfig};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        // Before any thread.
        [word] if word == "unpack" => perch_oci::unpack::child_main(),
        [root, base_url, reference] => match pull(root, base_url, reference) {
            Ok(digest) => say(&digest, ExitCode::SUCCESS),
            Err(error) => say(&format!("error: {error}"), ExitCode::FAILURE),
        },
        _ => say("error: puller FOLDER URL REFERENCE", ExitCode::FAILURE),
    }
}

fn say(text: &str, code: ExitCode) -> ExitCode {
    let written = writeln!(std::io::stdout(), "{text}");
    if written.is_ok() { code } else { ExitCode::FAILURE }
}

fn pull(root: &str, base_url: &str, reference: &str) -> Result<String, Box<dyn std::error::Error>> {
    let reference: perch_types::image::Reference = reference.parse()?;
    let endpoint = Endpoint { base_url: base_url.to_owned(), credentials: None };
    let config = StoreConfig {
        root: root.into(),
        client: ClientConfig {
            endpoints: [(reference.registry().to_owned(), endpoint)].into(),
            allow_private_addresses: false,
        },
        limits: Limits::default(),
        privilege: Privilege::Child {
            program: std::env::current_exe()?,
            args: vec!["unpack".to_owned()],
            host_id_base: perch_oci::unpack::HOST_ID_BASE,
        },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let digest = runtime.block_on(async {
        let store = ImageStore::open(config).await?;
        store.ensure(&reference, None).await.map(|image| image.digest)
    })?;
    Ok(digest.to_string())
}
