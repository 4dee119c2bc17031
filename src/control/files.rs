//! Notices that the configuration, or a file that it names, has become another one (`reload.watch`).
//!
//! By looking once a second: that sees what is mounted (a ConfigMap of Kubernetes is a link that is pointed
//! elsewhere) and what is on another machine, where the system's own notifications do not reach.

use crate::config::{Stamps, stamps};

/// Files that are watched.
#[derive(Debug)]
pub struct Files {
    /// As they were when they were read.
    known: Stamps,
    last: Stamps,
}

impl Files {
    /// Which were so before they were read.
    pub fn new(known: Stamps) -> Files {
        Files {
            last: known.clone(),
            known,
        }
    }

    /// They were read again, or others; before that they were so.
    pub fn were_read(&mut self, known: Stamps) {
        self.known = known;
    }

    /// Whether one of them is another one than was read, and they are the same as when this was asked last: while
    /// somebody writes they are in between. It is said once.
    pub fn have_changed(&mut self) -> bool {
        let now = stamps(self.known.keys());
        let is_still = std::mem::replace(&mut self.last, now.clone()) == now;
        let changed = is_still && now != self.known;
        if changed {
            self.known = now;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, os::unix::fs::PermissionsExt, process};

    use super::*;

    #[test]
    fn a_change_is_told_once_and_when_it_is_over() {
        let folder = env::temp_dir().join(format!("canary-router-files-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let paths = [folder.join("config.json"), folder.join("missing")];
        fs::write(&paths[0], "1").unwrap();
        let mut files = Files::new(stamps(&paths));
        assert!(!files.have_changed());
        fs::write(&paths[0], "12").unwrap();
        assert!(!files.have_changed(), "it may not be all");
        fs::write(&paths[0], "123").unwrap();
        assert!(!files.have_changed(), "it was not");
        assert!(files.have_changed());
        assert!(!files.have_changed());
        // As Kubernetes and careful editors do it.
        fs::write(folder.join("next"), "abc").unwrap();
        fs::rename(folder.join("next"), &paths[0]).unwrap();
        assert!(!files.have_changed());
        assert!(files.have_changed());
        // Who may not read it is given it.
        fs::set_permissions(&paths[0], fs::Permissions::from_mode(0o640)).unwrap();
        assert!(!files.have_changed());
        assert!(files.have_changed());
        // The new configuration names another file, which was changed since it was read.
        let more = [&paths[..], &[folder.join("more")]].concat();
        files.were_read(stamps(&more));
        fs::write(&more[2], "").unwrap();
        assert!(!files.have_changed());
        assert!(files.have_changed());
        // What was read again for another reason is no news.
        fs::remove_file(&more[2]).unwrap();
        files.were_read(stamps(&more));
        assert!(!files.have_changed());
        assert!(!files.have_changed());
        fs::remove_dir_all(&folder).unwrap();
    }
}
