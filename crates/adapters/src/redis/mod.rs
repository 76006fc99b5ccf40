//! Sessions, room counts and nodes on Redis: goim's keys and records, so that logics of either kind
//! share them.
//!
//! [`RedisSessions`] has goim's `key_<key>` and `mid_<mid>`, [`RedisRooms`] its `ol_<server>`; what
//! goim does not have lies beside them under `goim:`: for each comet the sessions that it holds
//! (`goim:sessions:<server>`, a hash of keys with their members), by which a key that another
//! member has taken over is told apart and a comet that died is swept; and the leases of the nodes
//! ([`RedisNodes`]). One server, a cluster and Sentinel are told apart in `store` and nowhere else.

mod city_hash;
mod config;
mod devices;
mod ends;
mod health;
mod lapsed;
mod nodes;
mod open;
mod rooms;
mod sessions;
mod store;

pub use config::{RedisConfig, RedisPlace, RedisTls};
pub use devices::RedisDevices;
pub use health::RedisTrouble;
pub use lapsed::Answers;
pub use nodes::{RedisNodes, RedisNodesConfig};
pub use rooms::{RedisRooms, Servers};
pub use sessions::RedisSessions;
pub use store::{RedisError, RedisStats, RedisStore};

#[cfg(test)]
mod tests;
