//! Files that a configuration names: read once, when the configuration is.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{self, PathBuf},
};

/// The longest file that is taken: it is held in memory.
pub(super) const MAX_FILE: usize = 1 << 20;

/// Files as they were found; `None` is one that was not there.
pub type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// What changes with a file, behind all links: device and inode, size, when its content was changed last, and when
/// anything of it was, such as who may read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    file: (u64, u64),
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

/// As they are now. To be looked at before they are read: a change meanwhile shows later then.
pub fn stamps<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Stamps {
    let stamp = |file: &PathBuf| {
        let found = fs::metadata(file).ok()?;
        Some(Stamp {
            file: (found.dev(), found.ino()),
            size: found.size(),
            written: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    };
    let files = files.into_iter();
    files.map(|file| (file.clone(), stamp(file))).collect()
}

/// What is in it, or why that cannot be had and what to do.
pub(super) fn read(file: &str) -> Result<Vec<u8>, String> {
    let refused = |why: &dyn std::fmt::Display| {
        let place = path::absolute(file).unwrap_or_else(|_| file.into());
        format!(
            "{file:?} cannot be read: {why}; name a file that is there and readable (a relative \
             path starts at the working directory: this is {})",
            place.display()
        )
    };
    // Looked at before it is opened: opening a pipe waits for somebody to write.
    let metadata = fs::metadata(file).map_err(|error| refused(&error))?;
    if !metadata.is_file() {
        return Err(refused(&"it is not a file"));
    }
    let opened = fs::File::open(file).map_err(|error| refused(&error))?;
    let mut content = Vec::new();
    opened
        .take(MAX_FILE as u64 + 1)
        .read_to_end(&mut content)
        .map_err(|error| refused(&error))?;
    if content.len() > MAX_FILE {
        return Err(format!(
            "{file:?} is longer than 1MiB, and it is held in memory: make it shorter"
        ));
    }
    Ok(content)
}
