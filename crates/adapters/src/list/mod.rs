//! Nodes by address: a static list, or one that DNS provides for a headless service.
//!
//! [`Addresses`] resolves the list; [`ListedNodes`] polls each address for its comet. There are no
//! announcements and nothing is stored: a comet is listed while it responds.

mod addresses;
mod nodes;
#[cfg(test)]
mod tests;

pub use addresses::Addresses;
pub use nodes::{ListedNodes, ListedNodesConfig};
