//! What the documentation says about tests.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(path: &Path, text: &mut String) {
    if path.is_dir() {
        let mut entries: Vec<PathBuf> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for entry in entries {
            collect(&entry, text);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        text.push_str(&fs::read_to_string(path).unwrap());
    }
}

/// The source of a test: of a file or folder in `tests`, else of a module of the crate.
fn source(module: &str) -> String {
    let mut text = String::new();
    let first = module.split("::").next().unwrap();
    let tests = root().join("tests");
    let modules = root().join("src");
    for place in [
        tests.join(first),
        tests.join(first).with_extension("rs"),
        modules.join(first),
        modules.join(first).with_extension("rs"),
    ] {
        if place.exists() {
            collect(&place, &mut text);
        }
    }
    text
}

/// `module::test`, as the tables name it.
fn named(text: &str) -> Vec<(&str, &str)> {
    let path = |word: &&str| {
        word.contains("::")
            && word
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_:".contains(&b))
    };
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(path)
        .filter_map(|word| word.rsplit_once("::"))
        .collect()
}

#[test]
fn every_test_that_a_document_names_exists() {
    let document = fs::read_to_string(root().join("docs/from-flask-session.md")).unwrap();
    let named = named(&document);
    assert!(named.len() > 40, "{} tests are named", named.len());
    for (module, test) in named {
        let source = source(module);
        let there = [format!("fn {test}("), format!("fn {test}<")]
            .iter()
            .any(|definition| source.contains(definition.as_str()));
        assert!(there, "there is no test {module}::{test}");
    }
}

#[test]
fn every_row_of_the_comparison_says_how_it_is_shown() {
    let document = fs::read_to_string(root().join("docs/from-flask-session.md")).unwrap();
    let (mut in_table, mut rows) = (false, 0);
    for line in document.lines() {
        match line.strip_prefix('|') {
            Some(header) if header.trim_end().ends_with("| shown by |") => in_table = true,
            Some(row) if in_table && !row.starts_with(" ---") => {
                rows += 1;
                let last = row
                    .trim_end()
                    .trim_end_matches('|')
                    .rsplit(" | ")
                    .next()
                    .unwrap();
                assert!(last.contains("::") || last.starts_with("no: "), "{row}");
            }
            Some(_) => {}
            None => in_table = false,
        }
    }
    assert!(rows > 40, "{rows} rows");
}
