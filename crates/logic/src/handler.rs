//! Handlers of the packets that clients send upstream.
//!
//! comet forwards every packet that it does not handle itself. Its reply has the packet's operation
//! and sequence, and the handler's result as its body. Without a handler the body is empty, as in
//! goim v2.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use goim_ports::{Call, LogicError, Operation, Schema, Upstream};

/// Handles packets of some operations.
pub trait Handler: Send + Sync {
    /// Returns the body of the reply. The embedded server calls this on comet's own threads, so
    /// work that takes time must be a pending call.
    fn handle(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>>;
}

/// The handlers by operation. The table may change while packets arrive; each packet sees one
/// version of it.
#[derive(Default)]
pub struct Handlers(ArcSwap<HandlerTable>);

#[derive(Default, Clone)]
struct HandlerTable {
    single: HashMap<i32, Arc<dyn Handler>>,
    /// For one schema. These take precedence.
    of_schema: HashMap<(i32, Schema), Arc<dyn Handler>>,
    /// Ascending, without overlaps.
    ranges: Vec<(RangeInclusive<i32>, Arc<dyn Handler>)>,
}

/// Two handlers for the same operations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operations {} to {} have a handler already", .0.start(), .0.end())]
pub struct Overlap(RangeInclusive<i32>);

impl Handlers {
    /// Registers the handler of one operation. It takes precedence over a range that contains the
    /// operation.
    ///
    /// # Errors
    /// [`Overlap`] when the operation already has a handler.
    pub fn register(&self, operation: Operation, handler: Arc<dyn Handler>) -> Result<(), Overlap> {
        self.change(|table| {
            if table.single.contains_key(&operation.0) {
                return Err(Overlap(operation.0..=operation.0));
            }
            table.single.insert(operation.0, Arc::clone(&handler));
            Ok(())
        })
    }

    /// Registers the handler of one operation for bodies in one schema. Bodies in other schemas
    /// keep their handler. Use it to support a new version of a message beside the old one.
    ///
    /// # Errors
    /// [`Overlap`] when this operation and schema already have a handler.
    pub fn register_schema(
        &self,
        operation: Operation,
        schema: Schema,
        handler: Arc<dyn Handler>,
    ) -> Result<(), Overlap> {
        self.change(|table| {
            if table.of_schema.contains_key(&(operation.0, schema)) {
                return Err(Overlap(operation.0..=operation.0));
            }
            table.of_schema.insert((operation.0, schema), Arc::clone(&handler));
            Ok(())
        })
    }

    /// Registers the handler of a range of operations.
    ///
    /// # Errors
    /// [`Overlap`] when the range overlaps another one.
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

    /// Returns the handler of packets with this operation and a body in this schema.
    pub(crate) fn find(&self, operation: Operation, schema: Schema) -> Option<Arc<dyn Handler>> {
        let table = self.0.load();
        if !table.of_schema.is_empty()
            && let Some(handler) = table.of_schema.get(&(operation.0, schema))
        {
            return Some(Arc::clone(handler));
        }
        if let Some(handler) = table.single.get(&operation.0) {
            return Some(Arc::clone(handler));
        }
        let after = table.ranges.partition_point(|(range, _)| *range.start() <= operation.0);
        let (range, handler) = table.ranges.get(after.checked_sub(1)?)?;
        range.contains(&operation.0).then(|| Arc::clone(handler))
    }

    fn change(&self, mut edit: impl FnMut(&mut HandlerTable) -> Result<(), Overlap>) -> Result<(), Overlap> {
        let mut result = Ok(());
        self.0.rcu(|table| {
            let mut table = HandlerTable::clone(table);
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
        let upstream = Upstream {
            mid: Mid(1),
            key: SessionKey::from("k"),
            packet,
            schema: goim_ports::Schema::FIRST,
            negotiated: false,
        };
        match handlers.find(Operation(operation), Schema::FIRST)?.handle(upstream) {
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
    fn a_schema_may_have_its_own_handler() {
        let handlers = Handlers::default();
        handlers.register_range(1000..=1999, named("old")).unwrap();
        handlers.register_schema(Operation(1001), Schema(2), named("new")).unwrap();
        assert!(handlers.register_schema(Operation(1001), Schema(2), named("newer")).is_err());
        let who = |operation, schema| {
            handlers.find(Operation(operation), Schema(schema)).map(|found| Arc::as_ptr(&found).cast::<u8>())
        };
        assert_ne!(who(1001, 2), who(1001, 1));
        assert_eq!((who(1001, 3), who(1000, 2)), (who(1001, 1), who(1001, 1)));
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
