//! The list of mutations, and its application to the source.

use std::collections::BTreeMap;

const LIST: &str = include_str!("list.txt");

/// A named fault, as changes of the source.
pub struct Mutation {
    pub name: &'static str,
    pub what: &'static str,
    edits: Vec<Edit>,
}

/// Lines that follow each other in one file, each with its mark: `=` stays, `-` goes, `+` is inserted.
struct Edit {
    file: &'static str,
    lines: Vec<(char, &'static str)>,
}

/// Reads the list.
pub fn mutations() -> Vec<Mutation> {
    let mut all: Vec<Mutation> = Vec::new();
    for line in LIST.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (mark, text) = line.split_at(1);
        match mark {
            "@" => {
                let mutation = all.last_mut().expect("an edit belongs to a mutation");
                mutation.edits.push(Edit { file: text.trim(), lines: Vec::new() });
            }
            "=" | "-" | "+" => {
                let edit = all.last_mut().and_then(|mutation| mutation.edits.last_mut());
                let mark = mark.chars().next().expect("a mark");
                edit.expect("a line belongs to an edit").lines.push((mark, text.trim()));
            }
            _ => {
                let (name, what) =
                    line.split_once(": ").unwrap_or_else(|| panic!("a name is expected: {line}"));
                all.push(Mutation { name, what, edits: Vec::new() });
            }
        }
    }
    all
}

/// Applies all mutations to `files` (path from `rust/`, text).
pub fn apply(mutations: &[Mutation], files: &mut BTreeMap<String, String>) {
    for (path, text) in files.iter_mut() {
        let source: Vec<String> = text.lines().map(str::to_owned).collect();
        // After each line, what is inserted there; and the lines that go.
        let mut inserted = vec![String::new(); source.len() + 1];
        let mut gone = vec![None; source.len()];
        for (index, mutation) in mutations.iter().enumerate() {
            for edit in mutation.edits.iter().filter(|edit| edit.file == path) {
                let mut line = find(&source, edit, mutation.name);
                let krate = if path.starts_with("cache/") { "crate" } else { "octavo_cache" };
                let on = format!("{krate}::mutation::is_on({index})");
                for (mark, text) in &edit.lines {
                    match mark {
                        '+' => inserted[line] += &format!("{}\n", replace_word(text, "ON", &on)),
                        '-' => {
                            let before = gone[line].replace(mutation.name);
                            assert_eq!(
                                before,
                                None,
                                "{}: another mutation changes {path}:{}",
                                mutation.name,
                                line + 1
                            );
                            line += 1;
                        }
                        _ => line += 1,
                    }
                }
            }
        }
        let mut mutated = inserted[0].clone();
        for (line, text) in source.iter().enumerate() {
            if gone[line].is_none() {
                mutated += &format!("{text}\n");
            }
            mutated += &inserted[line + 1];
        }
        *text = mutated;
    }
    for mutation in mutations {
        for edit in &mutation.edits {
            assert!(files.contains_key(edit.file), "{}: there is no file {}", mutation.name, edit.file);
        }
    }
}

/// Index of the first line of the one place in the source where an edit fits.
fn find(source: &[String], edit: &Edit, name: &str) -> usize {
    let old: Vec<&str> = edit.lines.iter().filter(|(mark, _)| *mark != '+').map(|(_, text)| *text).collect();
    let fits = |at: &usize| source[*at..].iter().zip(&old).all(|(line, old)| line.trim() == *old);
    let found: Vec<usize> = (0..source.len() + 1 - old.len()).filter(fits).collect();
    let [at] = found[..] else {
        panic!("{name}: {} places in {} have these lines: {old:#?}", found.len(), edit.file)
    };
    at
}

/// `text` with `to` in place of the word `from`.
fn replace_word(text: &str, from: &str, to: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        let (before, after) = (&rest[..at], &rest[at + from.len()..]);
        let alone = !before.ends_with(is_word) && !after.starts_with(is_word);
        out += before;
        out += if alone { to } else { from };
        rest = after;
    }
    out + rest
}
