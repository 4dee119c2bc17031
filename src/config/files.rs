//! Files that a configuration names: read once, when the configuration is.

use std::{fs, io::Read, path};

/// The longest file that is taken: it is held in memory.
pub(super) const MAX_FILE: usize = 1 << 20;

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
