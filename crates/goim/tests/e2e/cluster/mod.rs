//! The roles as separate processes over Redis, Kafka and PostgreSQL, and their failures.

mod death;
mod frozen;
mod half_failed;
mod partition;
mod rows;
mod waits;
