//! What the process asks of the machine it runs on: its name and its limit of open files.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The machine's host name; `localhost` when it has none.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// Open files that this process may have after [`raise_open_files`]; `None` is no limit.
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
/// What the system said; the limit is as it was then.
pub(crate) fn raise_open_files() -> io::Result<OpenFiles> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(OpenFiles { before: current, now: maximum })
}

/// The limit of open files as it is; `None` is no limit.
pub(crate) fn open_files_max() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}
