//! Exchanges captured from goim's own processes, played against this server.

mod frames;
mod http;
