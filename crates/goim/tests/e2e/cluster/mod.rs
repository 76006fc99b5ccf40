//! The roles as processes of their own over Redis, Kafka and PostgreSQL, and their failures.

mod death;
mod frozen;
mod half_failed;
mod partition;
mod rows;
mod waits;
