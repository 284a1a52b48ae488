//! Hostile and odd layers, unpacked in this process into a temporary folder.
//!
//! Never compares times of the disk: only what a layer may and may not do.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::path::{Target, classify, clean};
use super::*;

/// Returns the bytes of one entry with any name, `..` included.
fn entry(kind: EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    let bytes = header.as_mut_bytes();
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut all = header.as_bytes().to_vec();
    all.extend_from_slice(content);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn file(name: &str) -> Vec<u8> {
    entry(EntryType::Regular, name, "", name.as_bytes())
}

fn link(name: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Symlink, name, target, b"")
}

fn unpack_all(work: &Path, layers: &[Vec<u8>], limits: &Limits) -> Result<Report, Fault> {
    fs::create_dir(work.join(TREE)).expect("tree");
    let layers = layers.iter().enumerate().map(|(number, bytes)| {
        fs::write(work.join(number.to_string()), bytes).expect("layer");
        Layer {
            file: number.to_string(),
            packing: Packing::Plain,
            diff_id: Digest::from_sha256(&Sha256::digest(bytes).into()),
            size_bytes: bytes.len() as u64,
        }
    });
    layer::unpack(work, &Job { layers: layers.collect(), limits: limits.clone() })
}

fn unpack(layers: &[Vec<u8>]) -> (tempfile::TempDir, Result<Report, Fault>) {
    let work = tempfile::tempdir().expect("folder");
    let outcome = unpack_all(work.path(), layers, &Limits::default());
    (work, outcome)
}

#[test]
fn links_lead_nowhere_but_into_the_tree() {
    let outside = tempfile::tempdir().expect("folder");
    let target = outside.path().to_str().expect("text").to_owned();
    fs::write(outside.path().join("victim"), "before").expect("file");
    let layer = [link("abs", &target), file("abs2/x"), link("up", "../../../../../../tmp")];
    let (work, outcome) = unpack(&[layer.concat()]);
    outcome.expect("links alone are fine");
    assert!(fs::symlink_metadata(work.path().join("tree/abs")).expect("link").is_symlink());
    // The link leads to a folder that is not in the tree: nothing is made through it.
    let (_work, outcome) = unpack(&[[link("abs", &target), file("abs/victim")].concat()]);
    assert!(matches!(outcome, Err(Fault::Invalid(_))), "{outcome:?}");
    // A link in the tree's sense leads to the tree's own folder.
    let inside = [file("real/a"), link("abs", "/real"), file("abs/b")];
    let (work, outcome) = unpack(&[inside.concat()]);
    outcome.expect("links inside are followed inside");
    assert!(work.path().join("tree/real/b").is_file());
    // A file takes a link's place and is not written through it.
    let victim = format!("{target}/victim");
    let (_work, outcome) = unpack(&[[link("f", &victim), file("f")].concat()]);
    outcome.expect("replaced");
    assert_eq!(fs::read_to_string(outside.path().join("victim")).expect("file"), "before");
    let hard = entry(EntryType::Link, "h", &victim, b"");
    let (_work, outcome) = unpack(&[hard]);
    assert!(matches!(outcome, Err(Fault::Invalid(_))), "{outcome:?}");
    let through = [link("f", &victim), entry(EntryType::Link, "h", "f", b""), file("h")];
    unpack(&[through.concat()]).1.expect("a hard link to a link is the link");
    assert_eq!(fs::read_to_string(outside.path().join("victim")).expect("file"), "before");
}

#[test]
fn names_that_climb_are_refused() {
    for name in ["../x", "a/../../x", "/../x", "a/..", ".wh...", ".wh.", "a/.wh..", "..//x"] {
        let (_work, outcome) = unpack(&[file(name)]);
        assert!(matches!(outcome, Err(Fault::Invalid(_))), "{name}: {outcome:?}");
    }
    let (work, outcome) = unpack(&[[file("//abs//x"), file("./dot/./y")].concat()]);
    outcome.expect("cleaned");
    assert!(work.path().join("tree/abs/x").is_file() && work.path().join("tree/dot/y").is_file());
}

#[test]
fn whiteouts_mean_the_layers_below_only() {
    let below = [file("d/old"), file("d/sub/old"), file("gone"), file("e/x")].concat();
    let above = [
        file("d/new"),
        file("d/sub/new"),
        file("d/.wh..wh..opq"),
        file(".wh.gone"),
        file("e/x"),
        file("e/.wh.x"),
        file("nowhere/.wh.x"),
        file(".wh..wh.plnk/1.2"),
    ];
    let (work, outcome) = unpack(&[below, above.concat()]);
    outcome.expect("unpacked");
    let there = |name: &str| work.path().join("tree").join(name).exists();
    assert!(there("d/new") && there("d/sub/new") && there("e/x"));
    assert!(!there("d/old") && !there("d/sub/old") && !there("gone") && !there("nowhere"));
    assert!(!there(".wh..wh.plnk") && !there(".wh.gone"));
    // Through a link, a whiteout stays in the tree.
    let outside = tempfile::tempdir().expect("folder");
    fs::write(outside.path().join("victim"), "").expect("file");
    let target = outside.path().to_str().expect("text");
    unpack(&[[link("l", target), file("l/.wh.victim"), file("l/.wh..wh..opq")].concat()])
        .1
        .expect("nothing to remove");
    assert!(outside.path().join("victim").exists());
}

#[test]
fn limits_hold_and_specials_are_left_out() {
    let small =
        Limits { entries_max: 5, depth_max: 3, uncompressed_bytes_max: 8192, ..Limits::default() };
    let run = |layer: Vec<u8>| {
        let work = tempfile::tempdir().expect("folder");
        unpack_all(work.path(), &[layer], &small)
    };
    let over = |outcome: Result<Report, Fault>| matches!(outcome, Err(Fault::OverLimit { .. }));
    assert!(over(run(["1", "2", "3", "4", "5", "6"].map(file).concat())));
    assert!(over(run(file("1/2/3/4"))));
    assert!(over(run(entry(EntryType::Regular, "big", "", &[0; 9000]))));
    // Depth is counted in the tree, not in the name: links do not help.
    let deeper = [file("1/2/x"), link("l", "1/2"), file("l/3/x"), link("m", "l/3")];
    run(deeper.concat()).unwrap();
    assert!(over(run([deeper.concat(), file("m/4/x")].concat())));
    let specials =
        [EntryType::Char, EntryType::Fifo, EntryType::Block].map(|kind| entry(kind, "s", "", b""));
    let (work, outcome) = unpack(&[specials.concat()]);
    assert_eq!(outcome.expect("left out").specials_dropped, 3);
    assert!(!work.path().join("tree/s").exists());
    let mut header = Header::new_gnu();
    header.set_uid(70_000);
    header.set_size(0);
    header.set_mode(0o644);
    header.set_path("f").expect("path");
    header.set_cksum();
    assert!(over(unpack(&[header.as_bytes().to_vec()]).1));
}

#[test]
fn packing_and_diff_id_must_be_as_said() {
    let work = tempfile::tempdir().expect("folder");
    fs::create_dir(work.path().join(TREE)).expect("tree");
    fs::write(work.path().join("0"), file("a")).expect("layer");
    let layer = |packing, diff_id: Digest| Layer {
        file: "0".to_owned(),
        packing,
        diff_id,
        size_bytes: 1024,
    };
    let right = Digest::from_sha256(&Sha256::digest(file("a")).into());
    let wrong = Digest::from_sha256(&[0; 32]);
    for (layer, good) in [
        (layer(Packing::Gzip, right.clone()), false),
        (layer(Packing::Plain, wrong), false),
        (layer(Packing::Plain, right), true),
    ] {
        let job = Job { layers: vec![layer], limits: Limits::default() };
        assert_eq!(layer::unpack(work.path(), &job).is_ok(), good);
    }
}

proptest! {
    #[test]
    fn cleaned_names_are_plain(path in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(cleaned) = clean(&path, 128) {
            prop_assert!(!cleaned.starts_with(b"/") && !cleaned.contains(&0));
            let plain = |part: &[u8]| !matches!(part, b"." | b"..");
            prop_assert!(cleaned.split(|b| *b == b'/').all(plain));
            prop_assert_eq!(clean(&cleaned, 128), Ok(cleaned));
        }
        if let Ok(Target::Whiteout(place)) = classify(&path, 128) {
            prop_assert!(!matches!(place.name.as_slice(), b"" | b"." | b".."));
            prop_assert!(!place.name.contains(&b'/'));
        }
    }
}
