//! Words that were meant to be known ones.

use super::error::Problems;

/// The known word that is most like this one, if any is.
pub(super) fn nearest<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let normal = written.to_lowercase().replace('_', "-");
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&normal, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.75)
        .map(|(_, known)| known)
}

/// What the one word of a key stands for.
pub(super) fn word<T: Copy>(
    path: &str,
    written: &str,
    known: &[(&str, T)],
    problems: &mut Problems,
) -> Option<T> {
    let found = known.iter().find(|(word, _)| *word == written);
    if found.is_none() {
        let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
        problems.add(path, unknown(written, written, &words));
    }
    found.map(|(_, meaning)| *meaning)
}

/// `part` is what of `written` should be one of the words.
pub(super) fn unknown(written: &str, part: &str, known: &[&str]) -> String {
    let hint = match nearest(part, known.iter().copied()) {
        Some(nearest) => format!("did you mean {nearest:?}? "),
        None => String::new(),
    };
    let known = known.join(", ");
    format!("{written:?} is not known; {hint}the words here are {known}")
}
