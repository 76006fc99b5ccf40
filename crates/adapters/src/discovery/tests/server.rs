//! Two discovery servers for tests: one that plays answers, one that keeps a registry as the real
//! ones do, as far as goim uses it.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A received request.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) body: String,
}

impl Asked {
    fn pairs(&self) -> Vec<(String, String)> {
        let text = self.target.split_once('?').map_or(self.body.as_str(), |(_, query)| query);
        form_urlencoded::parse(text.as_bytes()).into_owned().collect()
    }

    fn field(&self, name: &str) -> String {
        self.pairs().into_iter().find(|(of, _)| of == name).map(|(_, value)| value).unwrap_or_default()
    }
}

/// An instance as servers give it.
pub(super) fn instance(app: &str, host: &str) -> Value {
    json!({
        "region": "sh", "zone": "sh001", "env": "dev", "appid": app, "hostname": host,
        "addrs": ["grpc://127.0.0.1:3109"], "version": "", "status": 1, "latest_timestamp": 5,
        "metadata": {"weight": "10", "offline": "false", "addrs": "", "conn_count": "0", "ip_count": "0"},
    })
}

async fn listen(address: SocketAddr) -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    // The port of a restarted server may be in use by an old connection for a moment.
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = socket.bind(address) {
        assert!(std::time::Instant::now() < until, "{address}: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
    socket.listen(64).unwrap()
}

/// Serves until it is aborted; connections end with it.
fn serve<F, A>(listener: TcpListener, answer: F) -> JoinHandle<()>
where
    F: Fn(Asked) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = (u16, String)> + Send,
{
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let (method, target) = (request.method().to_string(), request.uri().to_string());
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let body = String::from_utf8(body.to_vec()).unwrap();
                    let (status, text) = answer(Asked { method, target, body }).await;
                    let response = Response::builder().status(status).body(Full::new(Bytes::from(text)));
                    Ok::<_, Infallible>(response.unwrap())
                }
            });
            connections.spawn(async move {
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

/// Plays answers in order; a request beyond them waits for one.
pub(super) struct Scripted {
    pub(super) address: String,
    state: Arc<Mutex<Script>>,
    told: watch::Sender<()>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Script {
    answers: VecDeque<String>,
    asked: Vec<Asked>,
    status: Option<u16>,
}

impl Scripted {
    pub(super) async fn start() -> Self {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await;
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(Script::default()));
        let told = watch::channel(()).0;
        let (script, news) = (Arc::clone(&state), told.clone());
        let server = serve(listener, move |asked| {
            let (script, mut news) = (Arc::clone(&script), news.subscribe());
            async move {
                script.lock().asked.push(asked);
                loop {
                    {
                        let mut script = script.lock();
                        if let Some(status) = script.status {
                            return (status, String::new());
                        }
                        if let Some(answer) = script.answers.pop_front() {
                            return (200, answer);
                        }
                    }
                    let _ = news.changed().await;
                }
            }
        });
        Self { address, state, told, server }
    }

    pub(super) fn answers(&self, text: &str) {
        self.state.lock().answers.push_back(text.to_owned());
        let _ = self.told.send(());
    }

    pub(super) fn status(&self, status: u16) {
        self.state.lock().status = Some(status);
    }

    pub(super) fn unplayed(&self) -> usize {
        self.state.lock().answers.len()
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.state.lock().asked.clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Keeps instances, and lets polls hang until something is new.
pub(super) struct Registry {
    pub(super) address: String,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    news: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// By app, then by zone and host; with the time of the last change of the app.
    apps: BTreeMap<String, (i64, BTreeMap<(String, String), Value>)>,
    asked: Vec<Asked>,
    clock: i64,
    refuses: Option<i64>,
}

impl Registry {
    pub(super) async fn start() -> Self {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await;
        let address = listener.local_addr().unwrap().to_string();
        let state = Mutex::new(State { clock: 100, ..State::default() });
        let shared = Arc::new(Shared { state, news: watch::channel(()).0 });
        let registry = Self { server: Some(shared.serve(listener)), address, shared };
        registry.register_itself();
        registry
    }

    fn register_itself(&self) {
        let mut own = instance("infra.discovery", "test1");
        own["addrs"] = json!([format!("http://{}", self.address)]);
        self.register("infra.discovery", own);
    }

    /// Stops the server; its registry is lost.
    pub(super) async fn stop(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        let _ = server.await;
        let mut state = self.shared.state.lock();
        *state = State { clock: state.clock + 100, ..State::default() };
    }

    pub(super) async fn start_again(&mut self) {
        let listener = listen(self.address.parse().unwrap()).await;
        self.server = Some(self.shared.serve(listener));
        self.register_itself();
    }

    /// Keeps the registry after this is dropped.
    pub(super) fn keep(mut self) {
        self.server.take();
    }

    pub(super) fn register(&self, app: &str, instance: Value) {
        let mut state = self.shared.state.lock();
        state.clock += 1;
        let clock = state.clock;
        let (changed, instances) = state.apps.entry(app.to_owned()).or_default();
        let text = |name: &str| instance[name].as_str().unwrap().to_owned();
        instances.insert((text("zone"), text("hostname")), instance.clone());
        *changed = clock;
        drop(state);
        let _ = self.shared.news.send(());
    }

    pub(super) fn forget_everything(&self) {
        self.shared.state.lock().apps.clear();
    }

    /// Answers every post with this code.
    pub(super) fn refuse(&self, code: i64) {
        self.shared.state.lock().refuses = Some(code);
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.shared.state.lock().asked.clone()
    }

    /// How often something was posted for an app.
    pub(super) fn count(&self, path: &str, app: &str) -> usize {
        self.asked().iter().filter(|asked| asked.target == path && asked.field("appid") == app).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, listener: TcpListener) -> JoinHandle<()> {
        let shared = Arc::clone(self);
        serve(listener, move |asked| {
            let shared = Arc::clone(&shared);
            async move { (200, shared.answer(asked).await) }
        })
    }

    async fn answer(&self, asked: Asked) -> String {
        self.state.lock().asked.push(asked.clone());
        if asked.method == "GET" {
            return self.poll(&asked).await;
        }
        let code = self.post(&asked);
        let _ = self.news.send(());
        json!({"code": code, "message": code.to_string(), "ttl": 1}).to_string()
    }

    fn post(&self, asked: &Asked) -> i64 {
        let mut state = self.state.lock();
        if let Some(code) = state.refuses {
            return code;
        }
        state.clock += 1;
        let clock = state.clock;
        let (app, at) = (asked.field("appid"), (asked.field("zone"), asked.field("hostname")));
        let what = asked.target.rsplit('/').next().unwrap();
        if what == "register" {
            let (changed, instances) = state.apps.entry(app.clone()).or_default();
            let metadata: Value = serde_json::from_str(&asked.field("metadata")).unwrap();
            let mut new = instance(&app, &at.1);
            (new["zone"], new["metadata"]) = (json!(at.0), metadata);
            (new["addrs"], new["latest_timestamp"]) = (json!([asked.field("addrs")]), json!(clock));
            instances.insert(at, new);
            *changed = clock;
            return 0;
        }
        let Some((changed, instances)) = state.apps.get_mut(&app) else { return -404 };
        match (what, instances.get_mut(&at)) {
            ("set", None) => -400,
            (_, None) => -404,
            // Real servers do not count this as a change of the app, but hanging polls hear of it.
            ("set", Some(instance)) => {
                instance["metadata"] = serde_json::from_str(&asked.field("metadata")).unwrap();
                instance["latest_timestamp"] = json!(clock);
                *changed = clock;
                0
            }
            ("cancel", Some(_)) => {
                instances.remove(&at);
                *changed = clock;
                0
            }
            _ => 0,
        }
    }

    async fn poll(&self, asked: &Asked) -> String {
        let mut news = self.news.subscribe();
        let pairs = asked.pairs();
        let of = |name: &'static str| {
            pairs.iter().filter(move |(of, _)| of == name).map(|(_, value)| value.clone())
        };
        let apps: Vec<(String, i64)> =
            of("appid").zip(of("latest_timestamp").map(|since| since.parse().unwrap())).collect();
        let until = tokio::time::Instant::now() + Duration::from_secs(1);
        loop {
            let changed = self.newer_than(&apps);
            if !changed.is_empty() {
                return json!({"code": 0, "data": changed, "error": {"-404": null}, "message": "0"})
                    .to_string();
            }
            if tokio::time::timeout_at(until, news.changed()).await.is_err() {
                return json!({"code": -304, "message": "-304", "ttl": 1}).to_string();
            }
        }
    }

    fn newer_than(&self, apps: &[(String, i64)]) -> serde_json::Map<String, Value> {
        let state = self.state.lock();
        let mut changed = serde_json::Map::new();
        for (app, since) in apps {
            let Some((at, instances)) = state.apps.get(app).filter(|(at, _)| at > since) else { continue };
            let mut zones = BTreeMap::<&str, Vec<&Value>>::new();
            instances.iter().for_each(|((zone, _), instance)| zones.entry(zone).or_default().push(instance));
            changed.insert(app.clone(), json!({"instances": zones, "latest_timestamp": at}));
        }
        changed
    }
}
