//! Words about files for messages: lists of names, and files that stand for others.

/// Maximum number of names in one message.
const MAX_NAMED: usize = 4;
/// Begin of the text that Git keeps in place of a large file.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The first of `names`, and how many more there are.
pub fn named(names: &[String]) -> String {
    let shown = names.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// What is wrong with a file that holds a Git LFS pointer.
pub fn pointer(content: &[u8]) -> Option<String> {
    content.starts_with(POINTER).then(|| {
        "the file is a Git LFS pointer, a text that stands for the real file: the repository was cloned without LFS. \
         Run `git lfs install && git lfs pull` in it, or download the model with `hf download`"
            .to_string()
    })
}
