//! Timelines on PostgreSQL: for a cluster, where any number of logics share them.
//!
//! `schema` has the tables and how they came to be, `link` the connections, `writer` groups appends into transactions, `retain` removes what is
//! old, `store` is the handle. Statements are plain SQL without functions of the server's own, so that what speaks its protocol can serve
//! too.

mod config;
mod link;
mod retain;
mod schema;
mod store;
mod writer;

pub use config::PostgresConfig;
pub use link::PostgresError;
pub use store::PostgresTimelines;

#[cfg(test)]
mod tests;
