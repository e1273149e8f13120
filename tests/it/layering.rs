//! The direction of dependencies, and other rules about the tree that a compiler does not keep.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Returns the packages of this workspace that a package depends on, apart from those its tests use.
fn edges(folder: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let mut section = "";
    let mut edges = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
        if section == "[dependencies]" && name.starts_with("refrain") {
            edges.insert(name.to_owned());
        }
    }
    edges
}

#[track_caller]
fn check_edges(folder: &str, allowed: &[&str]) {
    let allowed: BTreeSet<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(edges(folder), allowed, "dependencies of {folder}/Cargo.toml on packages of this workspace");
}

#[test]
fn packages_depend_in_one_direction() {
    check_edges("serving", &[]);
    check_edges("udf", &["refrain-serving"]);
    check_edges("optimizer", &["refrain-udf"]);
    check_edges("datasets", &[]);
    check_edges("engine", &["refrain-datasets", "refrain-optimizer", "refrain-serving", "refrain-udf"]);
}

#[test]
fn serving_knows_no_sql() {
    let manifest = fs::read_to_string(root().join("serving/Cargo.toml")).unwrap();
    for foreign in ["datafusion", "arrow", "parquet", "sqlparser"] {
        assert!(!manifest.contains(foreign), "serving depends on {foreign}");
    }
}

/// Returns every Rust file below a folder with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = vec![];
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), fs::read_to_string(path).unwrap()));
            }
        }
    }
    found
}

#[test]
fn reordering_knows_no_plans() {
    for (path, text) in sources("optimizer/src/reorder") {
        for foreign in ["datafusion", "arrow", "refrain_udf"] {
            assert!(
                !text.lines().any(|line| line.starts_with("use") && line.contains(foreign)),
                "{} uses {foreign}",
                path.display()
            );
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    for folder in ["serving/src", "udf/src", "optimizer/src", "engine/src", "datasets/src", "tests/it"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
        }
    }
}

#[test]
fn libraries_do_not_read_the_environment() {
    for folder in ["serving/src", "udf/src", "optimizer/src", "datasets/src", "engine/src"] {
        for (path, text) in sources(folder) {
            let is_program = ["bin", "cli"].iter().any(|part| path.components().any(|c| c.as_os_str() == *part));
            assert!(is_program || !text.contains("std::env::var"), "{} reads the environment", path.display());
        }
    }
}
