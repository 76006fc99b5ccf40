//! Nodes by address: a list that the operator keeps, or that DNS keeps for a headless service.
//!
//! [`Addresses`] are what the list stands for at the moment; [`ListedNodes`] asks each address
//! which comet is there. Nobody announces itself and nothing is stored: a comet is listed while it
//! answers.

mod addresses;
mod nodes;
#[cfg(test)]
mod tests;

pub use addresses::Addresses;
pub use nodes::{ListedNodes, ListedNodesConfig};
