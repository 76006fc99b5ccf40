//! Bad input, slow readers, drains, secrets, and descriptors running out.

mod bodies;
mod descriptors;
mod drain;
mod input;
mod secrets;
mod slow_reader;
