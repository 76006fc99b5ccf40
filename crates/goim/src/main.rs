//! The command line of goim.
fn main() {}
