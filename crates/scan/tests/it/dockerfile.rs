//! Reading of Dockerfiles.
//!
//! Never a build.

use perch_scan::Dockerfile;

fn ports(text: &str) -> Vec<u16> {
    Dockerfile::parse(text).exposed.iter().map(|it| it.port).collect()
}

#[test]
fn exposed_ports_in_all_their_forms() {
    for (text, want) in [
        ("FROM a\nEXPOSE 80", vec![80]),
        ("FROM a\nexpose 80/tcp 81/UDP 82/TCP", vec![80, 82]),
        ("FROM a\nEXPOSE 8000-8010", vec![8000]),
        ("FROM a\nENV PORT 5000\nEXPOSE ${PORT}", vec![5000]),
        ("FROM a\nENV A=1 PORT=\"5001\"\nEXPOSE $PORT", vec![5001]),
        ("FROM a\nEXPOSE ${PORT:-5002}", vec![5002]),
        ("FROM a\nEXPOSE $PORT", vec![]),
        ("FROM a\nEXPOSE 0 70000 x", vec![]),
        ("FROM a\nEXPOSE \\\n  80 \\\n# and\n  81\nRUN x", vec![80, 81]),
        ("FROM a\nRUN <<EOF\nEXPOSE 1\nEOF\nEXPOSE 2", vec![2]),
        ("# EXPOSE 1\n\nFROM a", vec![]),
        ("FROM a\nEXPOSE 1\nFROM b", vec![]),
        ("", vec![]),
    ] {
        assert_eq!(ports(text), want, "{text:?}");
    }
}

#[test]
fn the_last_stage_counts() {
    let file =
        Dockerfile::parse("FROM a AS x\nUSER u\nCMD a\nVOLUME /v\nFROM b\nENTRYPOINT [\"e\"]\n");
    assert_eq!(file.stages, ["a AS x", "b"]);
    assert_eq!(file.user, None);
    assert_eq!(file.command.as_deref(), Some("[\"e\"]"));
    assert!(file.volumes.is_empty());
}
