//! The machine: its host name and the limit of open files.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The machine's host name; `localhost` if it has none.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// The limit of open files before and after [`raise_open_files`]; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    /// The limit at start.
    pub(crate) before: Option<u64>,
    /// The limit now.
    pub(crate) now: Option<u64>,
}

/// Raises the soft limit of open files to the hard one: every connection is an open file.
///
/// # Errors
/// The system's error; the limit is unchanged then.
pub(crate) fn raise_open_files() -> io::Result<OpenFiles> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(OpenFiles { before: current, now: maximum })
}

/// The current limit of open files; `None` is no limit.
pub(crate) fn open_files_max() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}
