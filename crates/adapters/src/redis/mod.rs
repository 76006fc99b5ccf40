//! Sessions, room counts and nodes on Redis: goim's keys and records, shared with Go logics.
//!
//! [`RedisSessions`] uses goim's `key_<key>` and `mid_<mid>`, [`RedisRooms`] its `ol_<server>`.
//! Keys that goim does not have are under `goim:`: the sessions of each comet
//! (`goim:sessions:<server>`, a hash of keys and members), which detect a key that another member
//! has taken and let a dead comet be swept, and the leases of the nodes ([`RedisNodes`]). Only
//! `store` distinguishes a single server, a cluster and Sentinel.

mod city_hash;
mod clients;
mod config;
mod devices;
mod expired_leases;
mod health;
mod nodes;
mod rooms;
mod session_ends;
mod sessions;
mod store;

pub use config::{RedisConfig, RedisPlace, RedisTls};
pub use devices::RedisDevices;
pub use expired_leases::CometProbe;
pub use health::RedisFault;
pub use nodes::{RedisNodes, RedisNodesConfig};
pub use rooms::{RedisRooms, Servers};
pub use sessions::RedisSessions;
pub use store::{RedisError, RedisStats, RedisStore};

#[cfg(test)]
mod tests;
