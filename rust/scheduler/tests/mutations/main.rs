//! Mutations of the core: `list.txt` names faults as changes of the source. All of them are applied to one copy of the two
//! crates, each behind a switch, and the simulation must catch each one there.
//!
//! `cargo test -p octavo-scheduler --test mutations -- --ignored --nocapture` builds the copy in `target/tmp/mutations` and
//! runs `hunt.rs` in it. The ordinary test run only checks that the list fits the source.
#![allow(missing_docs)]

mod edits;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use edits::Mutation;

/// The folder `rust/` of the source.
fn rust_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder above").to_owned()
}

/// All Rust files below `folder`, a path from `rust/`.
fn read_sources(folder: &str, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(rust_folder().join(folder)).expect("a folder of the source") {
        let name = format!("{folder}/{}", entry.expect("an entry").file_name().to_string_lossy());
        if name.ends_with(".rs") {
            let text = fs::read_to_string(rust_folder().join(&name)).expect("a file of the source");
            files.insert(name, text);
        } else {
            read_sources(&name, files);
        }
    }
}

/// The mutated sources of both crates.
fn mutated(mutations: &[Mutation]) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for folder in ["cache/src", "scheduler/src"] {
        read_sources(folder, &mut files);
    }
    edits::apply(mutations, &mut files);
    files
}

#[test]
fn every_mutation_fits_the_source() {
    let mutations = edits::mutations();
    assert!(mutations.len() >= 20, "there are at least twenty mutations");
    mutated(&mutations);
}

#[test]
#[ignore = "builds a copy of the core; takes minutes"]
fn every_mutation_is_caught() {
    let mutations = edits::mutations();
    let mut files = mutated(&mutations);
    read_sources("scheduler/tests/sim", &mut files);
    let rows = mutations.iter().map(|m| format!("    ({:?}, {:?}),\n", m.name, m.what));
    let switch = include_str!("mutation.rs").replace("    // MUTATIONS\n", &rows.collect::<String>());
    files.insert("cache/src/mutation.rs".into(), switch);
    *files.get_mut("cache/src/lib.rs").expect("the crate's root") += "pub mod mutation;\n";
    files.insert("scheduler/tests/mutations/main.rs".into(), include_str!("hunt.rs").into());
    let root = rust_folder().join("..");
    let read = |path: &str| fs::read_to_string(root.join(path)).expect("a manifest");
    for name in ["cache/Cargo.toml", "scheduler/Cargo.toml"] {
        let keep = ["[package]", "[dependencies]", "[lints]"];
        files.insert(name.into(), sections(&read(&format!("rust/{name}")), |header| keep.contains(&header)));
    }
    let members = "[workspace]\nresolver = \"3\"\nmembers = [\"rust/cache\", \"rust/scheduler\"]\n\n";
    let manifest = sections(&read("Cargo.toml"), |header| header != "[workspace]");
    files.insert("../Cargo.toml".into(), format!("{members}{manifest}"));
    files.insert("../Cargo.lock".into(), read("Cargo.lock"));

    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations");
    // What a file of an earlier copy holds would be compiled too.
    let _ = fs::remove_dir_all(copy.join("rust"));
    for (name, text) in files {
        let path = copy.join("rust").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder in target");
        fs::write(path, text).expect("a file in target");
    }
    let status = Command::new(env!("CARGO"))
        .args([
            "test",
            "--quiet",
            "--offline",
            "-p",
            "octavo-scheduler",
            "--test",
            "mutations",
            "--",
            "--nocapture",
        ])
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", copy.join("target"))
        .env("RUSTFLAGS", "-Awarnings")
        .status();
    assert!(status.expect("cargo runs").success(), "see above");
}

/// The sections of a manifest whose headers `keep` accepts.
fn sections(manifest: &str, keep: impl Fn(&str) -> bool) -> String {
    let mut kept = true;
    let lines = manifest.lines().filter(|line| {
        if line.starts_with('[') {
            kept = keep(line);
        }
        kept
    });
    lines.map(|line| format!("{line}\n")).collect()
}
