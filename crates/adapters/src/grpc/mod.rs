//! goim's gRPC services, on both ends.
//!
//! The servers put a port behind the wire ([`comet_service()`], [`logic_service()`], [`serve`]); the clients put the wire behind
//! a port ([`GrpcComet`], [`GrpcLogic`]). The contracts are in `api/`: goim's packages, paths and numbers, so each end
//! works with a Go process on the other. What goim lacks travels in fields from number 16 up, which Go skips, and in calls of
//! our own (`goim.cluster`), which Go does not know; without them everything works as in goim.
//!
//! Nothing here decides anything: a request becomes a call of the port, its answer becomes the reply. Errors have the status
//! UNKNOWN and goim's text. Because that does not tell a refusal from a failure, our servers add a header that says
//! which it is, and our clients look for it.

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
