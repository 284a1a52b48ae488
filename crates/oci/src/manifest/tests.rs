//! Tables of manifests that are taken and refused.
//!
//! Never fetches.

use proptest::prelude::*;

use super::*;

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn descriptor(media_type: &str) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{D}","size":3}}"#)
}

fn image(media_type: &str) -> String {
    let config = descriptor(CONFIGS[0]);
    let layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{config},"layers":[{layer}]}}"#
    )
}

#[test]
fn types_must_agree() {
    parse(image(OCI_MANIFEST).as_bytes(), Some(OCI_MANIFEST)).unwrap();
    parse(image(OCI_MANIFEST).as_bytes(), None).unwrap();
    parse(image(OCI_MANIFEST).as_bytes(), Some("application/json")).unwrap();
    parse(image(OCI_MANIFEST).as_bytes(), Some(DOCKER_MANIFEST)).unwrap_err();
    parse(image(OCI_INDEX).as_bytes(), Some(OCI_INDEX)).unwrap_err();
    parse(image("text/plain").as_bytes(), None).unwrap_err();
    let both = image(OCI_MANIFEST).replace(r#""layers""#, r#""manifests":[],"layers""#);
    parse(both.as_bytes(), None).unwrap_err();
    let twice = image(OCI_MANIFEST).replace(r#""layers""#, r#""layers":[],"layers""#);
    assert!(parse(twice.as_bytes(), None).is_err(), "a key twice");
    parse(br#"{"schemaVersion":1,"fsLayers":[]}"#, None).unwrap_err();
}

#[test]
fn layers_outside_and_unknown_ones_are_refused() {
    let limits = Limits::default();
    let config: Descriptor = serde_json::from_str(&descriptor(CONFIGS[1])).expect("config");
    let check_one = |text: String| {
        let layer: Descriptor = serde_json::from_str(&text).expect("layer");
        check(&config, &[layer], &limits)
    };
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    assert_eq!(check_one(descriptor(gzip)), Ok(vec![Packing::Gzip]));
    for media_type in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+xz",
        OCI_MANIFEST,
    ] {
        assert!(check_one(descriptor(media_type)).is_err(), "{media_type}");
    }
    let with_urls = descriptor(gzip).replace('}', r#","urls":["http://127.0.0.1/x"]}"#);
    check_one(with_urls).unwrap_err();
    let large = descriptor(gzip).replace(":3", ":99999999999999");
    assert!(matches!(check_one(large), Err(Refusal::OverLimit { .. })));
}

#[test]
fn the_runtime_part_is_read() {
    let (here, _) = local_architecture();
    let text = format!(
        r#"{{"os":"linux","architecture":"{here}","rootfs":{{"type":"layers","diff_ids":["{D}"]}},
        "config":{{"User":"app","Env":["A=1","B=x=y","A=2"],"Cmd":null,"Entrypoint":["/a"],
        "ExposedPorts":{{"80/tcp":{{}},"53/udp":{{}},"x":{{}}}},"StopSignal":"SIGQUIT",
        "WorkingDir":"/w","Labels":{{"l":"v"}}}}}}"#
    );
    let (config, diff_ids) = parse_config(text.as_bytes(), 1).expect("config");
    assert_eq!(diff_ids.len(), 1);
    assert_eq!(config.env.get("A").map(String::as_str), Some("2"));
    assert_eq!(config.env.get("B").map(String::as_str), Some("x=y"));
    assert_eq!(config.exposed_ports.len(), 2);
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("app", "/w"));
    assert!(parse_config(text.as_bytes(), 2).is_err(), "another number of layers");
    parse_config(text.replace(here, "m68k").as_bytes(), 1).unwrap_err();
}

proptest! {
    #[test]
    fn no_text_makes_the_parsers_fall_over(text in ".{0,300}", header in ".{0,40}") {
        let _manifest = parse(text.as_bytes(), Some(&header));
        let _config = parse_config(text.as_bytes(), 0);
    }
}
