//! A comet and a logic that record their calls and return what the test wants.

use std::collections::VecDeque;
use std::sync::Mutex;

use goim_ports::{
    Accepted, Broadcast, Call, CometError, CometPort, ConnectError, ConnectRequest, Generation, KeyPush,
    LogicError, LogicPort, OnlineReport, OnlineTotals, RefreshRequest, Refreshed, RoomCounts, RoomId,
    RoomPush, SessionRef, TimelineRequest, Upstream,
};

use super::*;

/// The calls as text, so that any can be compared.
#[derive(Default)]
pub(super) struct FakeComet {
    pub(super) calls: Mutex<Vec<String>>,
    /// Results of the next calls; then `Ok`.
    pub(super) answers: Mutex<VecDeque<Result<(), CometError>>>,
    pub(super) rooms: Mutex<Vec<RoomId>>,
    /// Never replies.
    pub(super) hangs: std::sync::atomic::AtomicBool,
}

impl FakeComet {
    pub(super) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn answer(&self, call: String) -> Call<Result<(), CometError>> {
        self.calls.lock().unwrap().push(call);
        if self.hangs.load(std::sync::atomic::Ordering::Relaxed) {
            return Call::pending(std::future::pending());
        }
        Call::Ready(self.answers.lock().unwrap().pop_front().unwrap_or(Ok(())))
    }
}

impl CometPort for FakeComet {
    fn push(&self, push: KeyPush) -> Call<Result<(), CometError>> {
        self.answer(format!("{push:?}"))
    }

    fn broadcast(&self, broadcast: Broadcast) -> Call<Result<(), CometError>> {
        self.answer(format!("{broadcast:?}"))
    }

    fn push_room(&self, push: RoomPush) -> Call<Result<(), CometError>> {
        self.answer(format!("{push:?}"))
    }

    fn rooms(&self) -> Call<Result<Vec<RoomId>, CometError>> {
        let rooms = self.rooms.lock().unwrap().clone();
        self.answer("rooms".to_owned()).map(|answer| answer.map(|()| rooms))
    }
}

#[derive(Default)]
pub(super) struct FakeLogic {
    pub(super) calls: Mutex<Vec<String>>,
    pub(super) accepted: Mutex<Option<Result<Accepted, ConnectError>>>,
    pub(super) error: Mutex<Option<LogicError>>,
    pub(super) totals: Mutex<RoomCounts>,
    pub(super) generation: Mutex<Option<Generation>>,
    pub(super) body: Mutex<Bytes>,
}

impl FakeLogic {
    pub(super) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn answer<T>(&self, call: String, answer: T) -> Call<Result<T, LogicError>> {
        self.calls.lock().unwrap().push(call);
        Call::Ready(self.error.lock().unwrap().clone().map_or(Ok(answer), Err))
    }
}

impl LogicPort for FakeLogic {
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>> {
        let ConnectRequest { server, cookie, user_agent, token, remote } = request;
        self.calls.lock().unwrap().push(format!("connect {server} {cookie}{user_agent} {token:?} {remote}"));
        Call::Ready(self.accepted.lock().unwrap().clone().expect("the test has set an answer"))
    }

    fn refresh(&self, request: RefreshRequest) -> Call<Result<Refreshed, ConnectError>> {
        let RefreshRequest { session, token, remote } = request;
        self.calls.lock().unwrap().push(format!("refresh {session:?} {token:?} {remote}"));
        let accepted = self.accepted.lock().unwrap().clone().expect("the test has set an answer");
        Call::Ready(
            accepted.map(|accepted| Refreshed { scope: accepted.scope, expires_at: accepted.expires_at }),
        )
    }

    fn disconnect(&self, session: SessionRef) -> Call<Result<bool, LogicError>> {
        self.answer(format!("disconnect {session:?}"), true)
    }

    fn heartbeat(&self, session: SessionRef) -> Call<Result<(), LogicError>> {
        self.answer(format!("heartbeat {session:?}"), ())
    }

    fn renew_online(&self, report: OnlineReport) -> Call<Result<OnlineTotals, LogicError>> {
        let mut rooms: Vec<_> = report.rooms.iter().collect();
        rooms.sort();
        let call = format!("renew {} {rooms:?}", report.server);
        let rooms = Arc::clone(&self.totals.lock().unwrap());
        let generation = self.generation.lock().unwrap().clone();
        self.answer(call, OnlineTotals { rooms, generation })
    }

    fn receive(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>> {
        let body = self.body.lock().unwrap().clone();
        self.answer(format!("{upstream:?}"), body)
    }

    fn timeline(&self, request: TimelineRequest) -> Call<Result<Bytes, LogicError>> {
        let body = self.body.lock().unwrap().clone();
        self.answer(format!("{request:?}"), body)
    }
}

/// Returns its arguments.
pub(super) fn nodes() -> NodesFn {
    Arc::new(|platform, client_ip| NodesReply {
        domain: platform.to_owned(),
        nodes: vec![client_ip.to_owned()],
        backoff: Some(Backoff { max_delay: 300, base_delay: 3, factor: 1.8, jitter: 1.3 }),
        ..NodesReply::default()
    })
}
