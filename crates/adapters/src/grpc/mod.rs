//! goim's gRPC services, both ends.
//!
//! The servers ([`comet_service()`], [`logic_service()`], [`serve`]) call a port; the clients
//! ([`GrpcComet`], [`GrpcLogic`]) are a port. The contracts are in `api/`: goim's packages, paths
//! and numbers, so each end works with a Go process. What goim does not have uses fields from
//! number 16 up, which Go skips, and our own services (`goim.cluster`), without which everything
//! works as in goim.
//!
//! Invariant: nothing is decided here. Errors have the status UNKNOWN and goim's text; a header of
//! ours distinguishes a refusal from a failure.

mod address;
mod backend_client;
mod channel;
mod comet_client;
mod comet_pool;
mod comet_service;
mod config;
pub(crate) mod convert;
mod logic_client;
mod logic_pool;
mod logic_service;
mod server;
mod status;

/// The messages and services of `api/`, generated.
pub(crate) mod proto {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

    pub mod protocol {
        tonic::include_proto!("goim.protocol");
    }
    pub mod comet {
        tonic::include_proto!("goim.comet");
    }
    pub mod cluster {
        tonic::include_proto!("goim.cluster");
    }
    pub mod backend {
        tonic::include_proto!("goim.backend");
    }
    pub mod logic {
        tonic::include_proto!("goim.logic");
    }
}

pub use address::{AddressError, check as check_address};
pub use backend_client::GrpcBackend;
pub use channel::ClientConfig;
pub use comet_client::GrpcComet;
pub use comet_pool::GrpcComets;
pub use comet_service::comet_service;
pub use config::ServerConfig;
pub use logic_client::GrpcLogic;
pub use logic_pool::{GrpcLogics, LogicAddresses};
pub use logic_service::{NodesFn, logic_service};
pub use proto::logic::{Backoff, NodesReply};
pub use server::{ServeError, serve};
pub use tonic::service::Routes;

#[cfg(test)]
mod tests;
