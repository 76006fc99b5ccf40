//! The ports that logic needs, in memory, with faults that tests inject.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use goim_logic::{Config, Dependencies, Logic};
use goim_ports::{
    AppendError, Appended, Call, CometNode, CometPool, CometPort, Device, DeviceDirectory, DirectoryError,
    HttpClient, HttpError, HttpRequest, HttpResponse, Mid, NodeDirectory, NodeError, PushLog, PushRecord,
    PushTarget, RoomCounts, RoomDirectory, RoomId, ServerId, SessionDirectory, SessionKey, SessionRecord,
    SessionRef,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use crate::client::{Connection, Response};

/// What logic depends on.
#[derive(Default)]
pub(crate) struct World {
    state: Mutex<WorldState>,
}

#[derive(Default)]
pub(crate) struct WorldState {
    pub(crate) sessions: BTreeMap<String, SessionRef>,
    pub(crate) touched: Vec<SessionRef>,
    pub(crate) rooms: RoomCounts,
    pub(crate) comets: Arc<Vec<CometNode>>,
    pub(crate) log: Vec<PushRecord>,
    /// The members whose sessions were looked up, one list per call.
    pub(crate) asked_mids: Vec<Vec<Mid>>,
    pub(crate) directory_fault: Fault,
    pub(crate) append_error: Option<AppendError>,
    /// Records that the log still accepts before `append_error` applies.
    pub(crate) appends_left: usize,
    pub(crate) append_hangs: bool,
    /// The number of calls that append several records.
    pub(crate) append_calls: usize,
    /// Appends wait until this is notified.
    pub(crate) append_gate: Option<Arc<Notify>>,
}

/// How the directories fail.
#[derive(Default, Clone)]
pub(crate) enum Fault {
    #[default]
    None,
    Error(String),
    Panic,
    Hangs,
    /// The answer is correct but pending.
    Slow,
}

impl World {
    pub(crate) fn state(&self) -> MutexGuard<'_, WorldState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn dependencies(self: &Arc<Self>) -> Dependencies {
        Dependencies {
            sessions: Arc::clone(self) as _,
            rooms: Arc::clone(self) as _,
            devices: Arc::new(Unavailable),
            nodes: Arc::clone(self) as _,
            push_log: Arc::clone(self) as _,
            comets: Arc::new(Unavailable),
            http: Arc::new(Unavailable),
            timelines: None,
        }
    }

    pub(crate) fn enter(&self, mid: i64, key: &str, server: &str) {
        let session =
            SessionRef { mid: Mid(mid), key: SessionKey::from(key), server: ServerId::from(server) };
        self.state().sessions.insert(key.to_owned(), session);
    }

    pub(crate) fn set_rooms(&self, rooms: &[(&str, u32)]) {
        self.state().rooms = Arc::new(rooms.iter().map(|(id, count)| (RoomId::from(*id), *count)).collect());
    }

    pub(crate) fn set_comets(&self, comets: Vec<CometNode>) {
        self.state().comets = Arc::new(comets);
    }

    /// Takes what was appended since the last call.
    pub(crate) fn take_log(&self) -> Vec<PushRecord> {
        std::mem::take(&mut self.state().log)
    }

    fn answer<T: Send + 'static>(
        &self,
        answer: impl FnOnce(&mut WorldState) -> T,
    ) -> Call<Result<T, DirectoryError>> {
        let mut state = self.state();
        match state.directory_fault.clone() {
            Fault::None => Call::Ready(Ok(answer(&mut state))),
            Fault::Error(text) => Call::Ready(Err(DirectoryError::Unavailable(text))),
            Fault::Panic => panic!("the test wants it"),
            Fault::Hangs => Call::pending(std::future::pending()),
            Fault::Slow => {
                let answer = answer(&mut state);
                Call::pending(async move {
                    tokio::task::yield_now().await;
                    Ok(answer)
                })
            }
        }
    }
}

impl SessionDirectory for World {
    fn add(&self, session: SessionRef) -> Call<Result<(), DirectoryError>> {
        self.answer(|state| drop(state.sessions.insert(session.key.to_string(), session)))
    }

    fn remove(&self, session: SessionRef) -> Call<Result<bool, DirectoryError>> {
        self.answer(|state| {
            let held =
                state.sessions.get(session.key.as_str()).is_some_and(|held| held.server == session.server);
            if held {
                state.sessions.remove(session.key.as_str());
            }
            held
        })
    }

    fn touch(&self, session: SessionRef) -> Call<Result<(), DirectoryError>> {
        self.answer(|state| state.touched.push(session))
    }

    fn servers_of(&self, keys: &[SessionKey]) -> Call<Result<Vec<Option<ServerId>>, DirectoryError>> {
        self.answer(|state| {
            let server = |key: &SessionKey| state.sessions.get(key.as_str()).map(|held| held.server.clone());
            keys.iter().map(server).collect()
        })
    }

    fn sessions_of(&self, mids: Vec<Mid>) -> Call<Result<Vec<SessionRecord>, DirectoryError>> {
        self.answer(|state| {
            let of_mids = state.sessions.values().filter(|held| mids.contains(&held.mid));
            let record =
                |held: &SessionRef| SessionRecord { key: held.key.clone(), server: held.server.clone() };
            let records = of_mids.map(record).collect();
            state.asked_mids.push(mids);
            records
        })
    }
}

impl RoomDirectory for World {
    fn report(&self, _: ServerId, rooms: RoomCounts) -> Call<Result<(), DirectoryError>> {
        self.answer(|state| state.rooms = rooms)
    }

    fn totals(&self) -> Call<Result<RoomCounts, DirectoryError>> {
        self.answer(|state| Arc::clone(&state.rooms))
    }
}

impl NodeDirectory for World {
    fn announce(&self, _: CometNode) -> Call<Result<(), NodeError>> {
        Call::Ready(Ok(()))
    }

    fn withdraw(&self, _: ServerId) -> Call<Result<(), NodeError>> {
        Call::Ready(Ok(()))
    }

    fn comets(&self) -> Arc<Vec<CometNode>> {
        Arc::clone(&self.state().comets)
    }
}

impl PushLog for World {
    fn append(&self, record: PushRecord) -> Call<Result<(), AppendError>> {
        let mut state = self.state();
        if state.append_hangs {
            return Call::pending(std::future::pending());
        }
        if let Some(gate) = state.append_gate.clone() {
            state.log.push(record);
            return Call::pending(async move {
                gate.notified().await;
                Ok(())
            });
        }
        match state.append_error.clone() {
            Some(error) if state.appends_left == 0 => Call::Ready(Err(error)),
            error => {
                state.appends_left -= usize::from(error.is_some());
                state.log.push(record);
                Call::Ready(Ok(()))
            }
        }
    }

    fn append_all(&self, records: Vec<PushRecord>) -> Call<Appended> {
        let mut state = self.state();
        if state.append_hangs {
            return Call::pending(std::future::pending());
        }
        let room = if state.append_error.is_some() { state.appends_left } else { usize::MAX };
        let accepted = records.len().min(room);
        let error = state.append_error.clone().filter(|_| accepted < records.len());
        state.appends_left = state.appends_left.saturating_sub(accepted);
        state.log.extend(records.into_iter().take(accepted));
        state.append_calls += 1;
        Call::Ready(Appended { accepted, error })
    }
}

/// A comet as goim v2's processes had it: host `h1` with the public address 127.0.0.1.
pub(crate) fn comet(server: &str, connections: u64) -> CometNode {
    CometNode {
        server: ServerId::from(server),
        region: "sh".to_owned(),
        zone: "sh001".to_owned(),
        env: "dev".to_owned(),
        rpc_addrs: vec!["grpc://:3109".to_owned()],
        public_addrs: vec!["127.0.0.1".to_owned()],
        weight: 10,
        offline: false,
        connections,
        addresses: 1,
        latest_timestamp: 1_795_449_284_025_630_708,
    }
}

/// A record without its time, to compare.
pub(crate) fn flat(record: &PushRecord) -> (String, i32, Vec<u8>) {
    let target = match &record.target {
        PushTarget::Keys { server, keys } => {
            format!("{server}: {}", keys.iter().map(SessionKey::as_str).collect::<Vec<_>>().join(" "))
        }
        PushTarget::Room(room) => format!("room {room}"),
        PushTarget::All { speed } => format!("all {}", speed.map_or(0, NonZeroU32::get)),
    };
    (target, record.operation.0, record.payload.primary_bytes().to_vec())
}

/// logic behind a listener on loopback.
pub(crate) struct Server {
    pub(crate) world: Arc<World>,
    pub(crate) logic: Arc<Logic>,
    pub(crate) addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::with_extra(change, Router::new()).await
    }

    pub(crate) async fn with_extra(change: impl FnOnce(&mut Config), extra: Router) -> Self {
        Self::start_with(change, |_| (), extra).await
    }

    pub(crate) async fn with_dependencies(
        change: impl FnOnce(&mut Config),
        change_dependencies: impl FnOnce(&mut Dependencies),
    ) -> Self {
        Self::start_with(change, change_dependencies, Router::new()).await
    }

    async fn start_with(
        change: impl FnOnce(&mut Config),
        change_dependencies: impl FnOnce(&mut Dependencies),
        extra: Router,
    ) -> Self {
        let mut config = Config::default();
        change(&mut config);
        let world = Arc::new(World::default());
        let mut dependencies = world.dependencies();
        change_dependencies(&mut dependencies);
        let logic = Logic::new(config, dependencies).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(goim_logic::http::serve(Arc::clone(&logic), listener, extra, async {
            let _ = stopped.await;
        }));
        Self { world, logic, addr, stop: Some(stop), served }
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(self.addr).await
    }

    pub(crate) async fn get(&self, target: &str) -> Response {
        self.connect().await.request("GET", target, &[], b"").await
    }

    pub(crate) async fn post(&self, target: &str, body: &[u8]) -> Response {
        self.connect().await.request("POST", target, &[], body).await
    }

    /// Requests the server to stop.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has stopped.
    pub(crate) async fn stopped(self) {
        self.served.await.unwrap().unwrap();
    }
}

/// A port that never answers with anything.
struct Unavailable;

impl CometPool for Unavailable {
    fn get(&self, _: &ServerId) -> Option<Arc<dyn CometPort>> {
        None
    }

    fn all(&self) -> Vec<(ServerId, Arc<dyn CometPort>)> {
        Vec::new()
    }
}

impl DeviceDirectory for Unavailable {
    fn enter(
        &self,
        _: Mid,
        _: SessionKey,
        _: Device,
    ) -> Call<Result<Vec<(SessionKey, Device)>, DirectoryError>> {
        Call::Ready(Ok(Vec::new()))
    }

    fn forget(&self, _: Mid, _: Vec<SessionKey>) -> Call<Result<(), DirectoryError>> {
        Call::Ready(Ok(()))
    }
}

impl HttpClient for Unavailable {
    fn send(&self, _: HttpRequest) -> Call<Result<HttpResponse, HttpError>> {
        Call::Ready(Err(HttpError::Unreachable("unreachable".to_owned())))
    }
}
