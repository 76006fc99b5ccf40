//! The binary as a user has it: its arguments, its exit status, what it says, and how it comes and goes.

mod arguments;
mod bench;
mod binary;
mod connect;
mod serve;
mod token;
