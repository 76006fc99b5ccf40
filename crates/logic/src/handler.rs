//! Where the business hangs itself in: who answers the packets that clients send upstream.
//!
//! comet brings every packet that is not its own; the reply that it sends carries the same operation and sequence
//! and, as body, what a handler answered. Nobody handles anything by default: the body is then empty, as in goim.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use goim_ports::{Call, LogicError, Operation, Upstream};

/// Answers packets of some operations.
pub trait Handler: Send + Sync {
    /// The body of the reply. Called on comet's own threads in the embedded server: an answer that takes time must be
    /// a pending call.
    fn handle(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>>;
}

/// Which handler answers which operation. May be changed while packets come in; a packet sees one state or the other.
#[derive(Default)]
pub struct Handlers(ArcSwap<Table>);

#[derive(Default, Clone)]
struct Table {
    single: HashMap<i32, Arc<dyn Handler>>,
    /// Ascending, without overlaps.
    ranges: Vec<(RangeInclusive<i32>, Arc<dyn Handler>)>,
}

/// Two handlers want the same operations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operations {} to {} have a handler already", .0.start(), .0.end())]
pub struct Overlap(RangeInclusive<i32>);

impl Handlers {
    /// Gives the packets of one operation to `handler`, even when the operation is in a range of another one.
    ///
    /// # Errors
    /// [`Overlap`] when the operation itself has a handler.
    pub fn register(&self, operation: Operation, handler: Arc<dyn Handler>) -> Result<(), Overlap> {
        self.change(|table| {
            if table.single.contains_key(&operation.0) {
                return Err(Overlap(operation.0..=operation.0));
            }
            table.single.insert(operation.0, Arc::clone(&handler));
            Ok(())
        })
    }

    /// Gives the packets of a range of operations to `handler`.
    ///
    /// # Errors
    /// [`Overlap`] when the range touches another one.
    pub fn register_range(
        &self,
        operations: RangeInclusive<i32>,
        handler: Arc<dyn Handler>,
    ) -> Result<(), Overlap> {
        self.change(|table| {
            let touches = |taken: &RangeInclusive<i32>| {
                taken.start() <= operations.end() && operations.start() <= taken.end()
            };
            if let Some((taken, _)) = table.ranges.iter().find(|(taken, _)| touches(taken)) {
                return Err(Overlap(taken.clone()));
            }
            let place = table.ranges.partition_point(|(taken, _)| taken.start() < operations.start());
            table.ranges.insert(place, (operations.clone(), Arc::clone(&handler)));
            Ok(())
        })
    }

    /// Who answers `operation`.
    pub(crate) fn find(&self, operation: Operation) -> Option<Arc<dyn Handler>> {
        let table = self.0.load();
        if let Some(handler) = table.single.get(&operation.0) {
            return Some(Arc::clone(handler));
        }
        let after = table.ranges.partition_point(|(range, _)| *range.start() <= operation.0);
        let (range, handler) = table.ranges.get(after.checked_sub(1)?)?;
        range.contains(&operation.0).then(|| Arc::clone(handler))
    }

    fn change(&self, mut edit: impl FnMut(&mut Table) -> Result<(), Overlap>) -> Result<(), Overlap> {
        let mut result = Ok(());
        self.0.rcu(|table| {
            let mut table = Table::clone(table);
            result = edit(&mut table);
            table
        });
        result
    }
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let table = self.0.load();
        let ranges: Vec<_> = table.ranges.iter().map(|(range, _)| range).collect();
        f.debug_struct("Handlers").field("single", &table.single.keys()).field("ranges", &ranges).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str);

    impl Handler for Named {
        fn handle(&self, _: Upstream) -> Call<Result<Bytes, LogicError>> {
            Call::Ready(Ok(Bytes::from_static(self.0.as_bytes())))
        }
    }

    fn named(name: &'static str) -> Arc<dyn Handler> {
        Arc::new(Named(name))
    }

    fn answer(handlers: &Handlers, operation: i32) -> Option<Bytes> {
        use goim_ports::{Mid, PacketBuf, SessionKey};
        let packet = PacketBuf::push(Operation(operation), Bytes::new());
        let upstream = Upstream { mid: Mid(1), key: SessionKey::from("k"), packet };
        match handlers.find(Operation(operation))?.handle(upstream) {
            Call::Ready(answer) => answer.ok(),
            Call::Pending(_) => None,
        }
    }

    #[test]
    fn an_operation_finds_its_handler() {
        let handlers = Handlers::default();
        handlers.register_range(2000..=2999, named("upper")).unwrap();
        handlers.register_range(1000..=1999, named("lower")).unwrap();
        handlers.register(Operation(1500), named("one")).unwrap();
        handlers.register(Operation(-5), named("negative")).unwrap();
        let expected = [
            (999, None),
            (1000, Some("lower")),
            (1500, Some("one")),
            (1999, Some("lower")),
            (2000, Some("upper")),
            (3000, None),
            (-5, Some("negative")),
            (i32::MIN, None),
            (i32::MAX, None),
        ];
        for (operation, name) in expected {
            assert_eq!(answer(&handlers, operation).as_deref(), name.map(str::as_bytes), "{operation}");
        }
    }

    #[test]
    fn an_overlap_is_refused_and_changes_nothing() {
        let handlers = Handlers::default();
        handlers.register_range(1000..=1999, named("first")).unwrap();
        assert_eq!(handlers.register_range(1999..=3000, named("second")), Err(Overlap(1000..=1999)));
        assert_eq!(handlers.register_range(0..=1000, named("second")), Err(Overlap(1000..=1999)));
        handlers.register(Operation(7), named("first")).unwrap();
        assert!(handlers.register(Operation(7), named("second")).is_err());
        assert_eq!(answer(&handlers, 1000).as_deref(), Some(b"first".as_slice()));
        assert_eq!(answer(&handlers, 2000), None);
    }
}
