//! Timelines on PostgreSQL: for a cluster, where any number of logics share them.
//!
//! `schema` has the tables and migrations, `connection` the connections, `writer` groups appends
//! into transactions, `retain` removes expired messages, `store` is the handle. Statements are
//! plain SQL without server-side functions, so that databases with the same protocol can be used
//! too.

mod config;
mod connection;
mod retain;
mod schema;
mod store;
mod writer;

pub use config::PostgresConfig;
pub use connection::PostgresError;
pub use store::PostgresTimelines;

#[cfg(test)]
mod tests;
