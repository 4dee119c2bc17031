//! Notices that the configuration, or a file that it names, has become another one (`reload.watch`).
//!
//! By looking once a second: that sees what is mounted (a ConfigMap of Kubernetes is a link that is pointed
//! elsewhere) and what is on another machine, where the system's own notifications do not reach.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf};

type Seen = BTreeMap<PathBuf, Option<Stamp>>;

/// What changes with a file's content: device, inode, size, time of the last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, u64, i64, i64);

/// Files that are watched.
#[derive(Debug)]
pub struct Files {
    /// As they were when they were read.
    known: Seen,
    last: Seen,
}

impl Files {
    /// As they are now.
    pub fn new(files: &[PathBuf]) -> Files {
        let now = look(files);
        Files {
            known: now.clone(),
            last: now,
        }
    }

    /// Whether one of them is another one than was known, and they are the same as when this was asked last: while
    /// somebody writes they are in between. It is said once. What was not asked for before is known as it is.
    pub fn have_changed(&mut self, files: &[PathBuf]) -> bool {
        let now = look(files);
        let is_still = std::mem::replace(&mut self.last, now.clone()) == now;
        let differs = |(file, stamp)| self.known.get(file).is_some_and(|known| known != stamp);
        let changed = is_still && now.iter().any(differs);
        for (file, stamp) in now {
            let known = self.known.entry(file).or_insert(stamp);
            if changed {
                *known = stamp;
            }
        }
        changed
    }
}

fn look(files: &[PathBuf]) -> Seen {
    let stamp = |file: &PathBuf| {
        let found = fs::metadata(file).ok()?;
        Some(Stamp(
            found.dev(),
            found.ino(),
            found.size(),
            found.mtime(),
            found.mtime_nsec(),
        ))
    };
    files
        .iter()
        .map(|file| (file.clone(), stamp(file)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;

    #[test]
    fn a_change_is_told_once_and_when_it_is_over() {
        let folder = env::temp_dir().join(format!("canary-router-files-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let paths = [folder.join("config.json"), folder.join("missing")];
        fs::write(&paths[0], "1").unwrap();
        let mut files = Files::new(&paths);
        assert!(!files.have_changed(&paths));
        fs::write(&paths[0], "12").unwrap();
        assert!(!files.have_changed(&paths), "it may not be all");
        fs::write(&paths[0], "123").unwrap();
        assert!(!files.have_changed(&paths), "it was not");
        assert!(files.have_changed(&paths));
        assert!(!files.have_changed(&paths));
        // As Kubernetes and careful editors do it.
        fs::write(folder.join("next"), "abc").unwrap();
        fs::rename(folder.join("next"), &paths[0]).unwrap();
        assert!(!files.have_changed(&paths));
        assert!(files.have_changed(&paths));
        // The new configuration names another file.
        let more = [&paths[..], &[folder.join("more")]].concat();
        fs::write(&more[2], "").unwrap();
        assert!(!files.have_changed(&more));
        assert!(!files.have_changed(&more));
        fs::remove_file(&more[2]).unwrap();
        assert!(!files.have_changed(&more));
        assert!(files.have_changed(&more));
        fs::remove_dir_all(&folder).unwrap();
    }
}
