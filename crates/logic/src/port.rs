//! The calls of comet: [`LogicPort`] over the directories and the handlers.

use std::sync::Arc;

use bytes::Bytes;
use goim_ports::{
    Accepted, Call, ConnectError, ConnectRequest, DirectoryError, LifecycleEvent, LogicError, LogicPort,
    OnlineReport, OnlineTotals, Operation, PacketBuf, RefreshRequest, Refreshed, Schema, ServerId,
    SessionRef, TimelineCall, TimelineRequest, Upstream,
};

use crate::deadline::{and_then, directory_late, with_timeout};
use crate::logic::Logic;
use crate::timelines::TimelineRequestError;

impl LogicPort for Logic {
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>> {
        let identified =
            with_timeout(self.config.directory_timeout, self.identity.identify(&request), identity_late);
        let server = request.server;
        let sessions = Arc::clone(&self.sessions);
        let deadline = self.config.directory_timeout;
        let metrics = self.metrics.connects.clone();
        let entered = and_then(identified, move |identified| {
            let (accepted, platform) = match identified {
                Ok(identified) => identified,
                Err(error) => return Call::Ready(Err(error)),
            };
            let added = sessions.add(session_of(&accepted, server));
            with_timeout(deadline, added, directory_late).map(|added| match added {
                Ok(()) => Ok((accepted, platform)),
                Err(DirectoryError::Unavailable(reason)) => {
                    let negotiated = accepted.protover.is_some();
                    Err(ConnectError { negotiated, ..ConnectError::unavailable(reason) })
                }
            })
        });
        self.limit_devices(entered).map(move |result| {
            metrics.count(result.as_ref().err().map(|error| error.reason));
            result
        })
    }

    fn refresh(&self, request: RefreshRequest) -> Call<Result<Refreshed, ConnectError>> {
        let refreshes = self.metrics.refreshes.clone();
        let refreshed = self.identity.refresh(request);
        with_timeout(self.config.directory_timeout, refreshed, identity_late).map(move |result| {
            refreshes.count(result.as_ref().err().map(|error| error.reason));
            result
        })
    }

    fn disconnect(&self, session: SessionRef) -> Call<Result<bool, LogicError>> {
        let removed = self.sessions.remove(session.clone());
        if self.devices.are_unlimited() || session.mid.is_anonymous() {
            return self.ask(removed);
        }
        let devices = self.devices.clone();
        let removed = and_then(removed, move |removed| match removed {
            // When false, another session has the key now.
            Ok(true) => devices.forget(session.mid, session.key).map(|forgotten| forgotten.map(|()| true)),
            removed => Call::Ready(removed),
        });
        self.ask(removed)
    }

    fn heartbeat(&self, session: SessionRef) -> Call<Result<(), LogicError>> {
        self.ask(self.sessions.touch(session))
    }

    fn renew_online(&self, report: OnlineReport) -> Call<Result<OnlineTotals, LogicError>> {
        let OnlineReport { server, rooms: here } = report;
        let (sessions, timeout) = (Arc::clone(&self.sessions), self.config.directory_timeout);
        and_then(self.online.report(server.clone(), here), move |totals| match totals {
            // The counts are valid without the generation.
            Ok(rooms) => with_timeout(timeout, sessions.generation(server), directory_late)
                .map(|generation| Ok(OnlineTotals { rooms, generation: generation.ok() })),
            Err(error) => Call::Ready(Err(unavailable(error))),
        })
    }

    fn events(&self, events: Vec<LifecycleEvent>) -> Call<Result<(), LogicError>> {
        match self.event_sink.get() {
            Some(sink) => sink.deliver(events),
            // No sink is set.
            None => Call::Ready(Ok(())),
        }
    }

    fn receive(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>> {
        let operation = upstream.packet.operation;
        if let Some(handler) = self.handlers.find(operation, upstream.schema) {
            self.metrics.upstream.handled.inc();
            return handler.handle(upstream);
        }
        self.metrics.upstream.unhandled.inc();
        tracing::debug!(
            mid = upstream.mid.0,
            key = upstream.key.as_str(),
            operation = operation.0,
            body_bytes = upstream.packet.body.len(),
            "a packet has an operation without a handler"
        );
        Call::Ready(Ok(Bytes::new()))
    }

    fn timeline(&self, request: TimelineRequest) -> Call<Result<Bytes, LogicError>> {
        match (&self.timelines, request) {
            (Some(timelines), request) => timelines.answer(request),
            // Without timelines the backend may have a route for operation 4.
            (
                None,
                TimelineRequest { mid, key, protover, sequence, call: TimelineCall::Send { body, .. } },
            ) => {
                let packet = PacketBuf { version: protover, operation: Operation::SEND, sequence, body };
                self.receive(Upstream { mid, key, packet, schema: Schema::FIRST, negotiated: true })
            }
            (None, _) => Call::Ready(Err(LogicError::Failed(TimelineRequestError::None.to_string()))),
        }
    }
}

impl Logic {
    /// Ends the member's sessions that exceed the device policy.
    fn limit_devices(
        &self,
        entered: Call<Result<(Accepted, String), ConnectError>>,
    ) -> Call<Result<Accepted, ConnectError>> {
        if self.devices.are_unlimited() {
            return entered.map(|entered| entered.map(|(accepted, _)| accepted));
        }
        let devices = self.devices.clone();
        Call::pending(async move {
            let (accepted, platform) = entered.await?;
            if !accepted.mid.is_anonymous() {
                devices.session_opened(accepted.mid, accepted.key.clone(), platform).await;
            }
            Ok(accepted)
        })
    }

    /// Limits a call of a directory to its deadline.
    fn ask<T: Send + 'static>(&self, call: Call<Result<T, DirectoryError>>) -> Call<Result<T, LogicError>> {
        with_timeout(self.config.directory_timeout, call, directory_late)
            .map(|answer| answer.map_err(unavailable))
    }
}

fn session_of(accepted: &Accepted, server: ServerId) -> SessionRef {
    SessionRef { mid: accepted.mid, key: accepted.key.clone(), server }
}

fn identity_late() -> ConnectError {
    ConnectError::unavailable("identity did not answer in time")
}

fn unavailable(error: DirectoryError) -> LogicError {
    let DirectoryError::Unavailable(reason) = error;
    LogicError::Unavailable(reason)
}
