//! The binary as a user runs it: arguments, exit status, output, start and stop.

mod arguments;
mod binary;
mod connect;
mod serve;
mod token;
