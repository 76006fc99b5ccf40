//! Limits of connections, in total and per address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};

use goim_session::CloseReason;
use parking_lot::{Mutex, MutexGuard};

const STRIPES: usize = 16;

/// Counts connections against the limits.
pub(crate) struct AddressBook {
    connections_max: usize,
    per_address_max: Option<NonZeroU32>,
    connections: AtomicUsize,
    addresses: AtomicUsize,
    stripes: Vec<Mutex<HashMap<IpAddr, u32>>>,
    hasher: std::hash::RandomState,
}

impl AddressBook {
    pub(crate) fn new(connections_max: usize, per_address_max: Option<NonZeroU32>) -> Self {
        Self {
            connections_max,
            per_address_max,
            connections: AtomicUsize::new(0),
            addresses: AtomicUsize::new(0),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: std::hash::RandomState::new(),
        }
    }

    fn stripe(&self, address: &IpAddr) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        use std::hash::BuildHasher as _;
        let index = self.hasher.hash_one(address) as usize % STRIPES;
        self.stripes[index].lock()
    }

    /// Counts a new connection.
    ///
    /// # Errors
    /// The limit that does not allow it.
    pub(crate) fn enter(&self, address: IpAddr) -> Result<(), CloseReason> {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.connections_max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(CloseReason::TooManyConnections);
        }
        let mut counts = self.stripe(&address);
        let count = counts.entry(address).or_insert(0);
        if self.per_address_max.is_some_and(|max| *count >= max.get()) {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(CloseReason::TooManyFromAddress);
        }
        *count += 1;
        if *count == 1 {
            self.addresses.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Counts a closed connection.
    pub(crate) fn leave(&self, address: IpAddr) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        let mut counts = self.stripe(&address);
        let Some(count) = counts.get_mut(&address) else { return };
        *count -= 1;
        if *count == 0 {
            counts.remove(&address);
            self.addresses.fetch_sub(1, Ordering::Relaxed);
            if counts.capacity() > 1024 && counts.len() < counts.capacity() / 4 {
                counts.shrink_to_fit();
            }
        }
    }

    /// Returns how many connections are open.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Returns how many distinct addresses they have.
    pub(crate) fn addresses(&self) -> usize {
        self.addresses.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_and_are_given_back() {
        let [a, b]: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()];
        let book = AddressBook::new(3, NonZeroU32::new(2));
        assert_eq!(book.enter(a), Ok(()));
        assert_eq!(book.enter(a), Ok(()));
        assert_eq!(book.enter(a), Err(CloseReason::TooManyFromAddress));
        assert_eq!(book.enter(b), Ok(()));
        assert_eq!(book.enter(b), Err(CloseReason::TooManyConnections));
        assert_eq!((book.connections(), book.addresses()), (3, 2));
        book.leave(a);
        book.leave(a);
        assert_eq!((book.connections(), book.addresses()), (1, 1));
        assert_eq!(book.enter(b), Ok(()));
    }
}
