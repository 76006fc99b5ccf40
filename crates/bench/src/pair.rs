//! The system under test and the reference beside it.
//!
//! Both run at the same time, each with its own clients, and are measured in short windows that
//! alternate. The ratio of two separate runs would include everything that the machine did in
//! between; the ratio of two adjacent windows does not, so a few pairs are enough.

use crate::error::BenchError;
use crate::figures::{Figure, Pair};
use crate::options::{Options, ReferenceMode};
use crate::progress::Progress;
use crate::sizes::Sizes;
use crate::system::{Server, System};
use crate::usage::Memory;

/// The system under test and the reference.
pub(crate) struct Systems {
    /// The server; with `--reference only` the reference itself.
    pub(crate) measured: System,
    pub(crate) reference: Option<System>,
}

/// The same of both systems.
pub(crate) type Both<T> = (T, Option<T>);

impl Systems {
    /// Connects the clients of both systems. Messages will have numbers in so many streams.
    ///
    /// # Errors
    /// When a system cannot be started or reached, or when a client cannot connect.
    pub(crate) fn connect(
        options: &Options,
        streams: u32,
        sizes: Sizes,
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        Self::connect_with_memory(options, streams, sizes, progress).map(|(systems, _)| systems)
    }

    /// Connects the clients of both systems, and reads the memory of the server before that.
    ///
    /// # Errors
    /// See [`Systems::connect`].
    pub(crate) fn connect_with_memory(
        options: &Options,
        streams: u32,
        sizes: Sizes,
        progress: &Progress,
    ) -> Result<(Self, Option<Memory>), BenchError> {
        if options.run.reference == ReferenceMode::Only {
            let Some(bare) = System::bare(options)? else {
                return Err(BenchError::Usage(
                    "the reference does not use TLS: choose another --over".into(),
                ));
            };
            let measured = System::of_bare(options, bare, 1, sizes, progress)?;
            return Ok((Self { measured, reference: None }, None));
        }
        let server = Server::start(options)?;
        let memory = server.memory();
        let measured = System::of_server(options, server, streams, sizes, progress)?;
        let reference = match System::bare(options)? {
            Some(bare) => Some(System::of_bare(options, bare, 1, sizes, progress)?),
            None => None,
        };
        Ok((Self { measured, reference }, memory))
    }

    /// Measures a window of each system. The system that is first alternates with `pair`.
    ///
    /// # Errors
    /// Those of `window`.
    pub(crate) fn alternate<T>(
        &mut self,
        pair: u32,
        mut window: impl FnMut(&mut System) -> Result<T, BenchError>,
    ) -> Result<Both<T>, BenchError> {
        let Some(reference) = &mut self.reference else { return Ok((window(&mut self.measured)?, None)) };
        if pair.is_multiple_of(2) {
            let measured = window(&mut self.measured)?;
            Ok((measured, Some(window(reference)?)))
        } else {
            let reference = window(reference)?;
            Ok((window(&mut self.measured)?, Some(reference)))
        }
    }

    /// Applies a function to both systems.
    ///
    /// # Errors
    /// Those of the function.
    pub(crate) fn for_each(
        &mut self,
        mut apply: impl FnMut(&mut System) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        std::iter::once(&mut self.measured).chain(&mut self.reference).try_for_each(&mut apply)
    }

    /// Returns a line about the deliveries of each system.
    pub(crate) fn accounts(&self) -> Vec<String> {
        std::iter::once(&self.measured).chain(&self.reference).map(System::account).collect()
    }

    /// Returns the faults of the messages of both systems.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub(crate) fn faults(&mut self) -> Result<Vec<String>, BenchError> {
        let mut faults = Vec::new();
        self.for_each(|system| {
            faults.extend(system.faults()?);
            Ok(())
        })?;
        Ok(faults)
    }
}

/// Returns the figures of each pair of windows.
pub(crate) fn figures<T>(windows: &[Both<T>], of: impl Fn(&T) -> Vec<Figure>) -> Vec<Pair> {
    windows.iter().map(|(measured, reference)| (of(measured), reference.as_ref().map(&of))).collect()
}
