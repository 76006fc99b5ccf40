//! The backend: a real HTTP server on its own port, whose answers a test decides, and which may be
//! slow, down or answer nonsense.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The request target.
    pub path: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Asked {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status, and the body.
    pub status: u16,
    pub body: Vec<u8>,
    /// Before the answer is given.
    pub wait: Duration,
}

impl Answer {
    /// 200 with this body.
    pub fn ok(body: impl AsRef<[u8]>) -> Self {
        Self::status(200, body)
    }

    /// Another status with this body.
    pub fn status(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self { status, body: body.as_ref().to_vec(), wait: Duration::ZERO }
    }

    /// The same, after a while.
    pub fn after(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

type Decide = Box<dyn Fn(&Asked) -> Answer + Send + Sync>;

/// The backend.
pub struct Backend {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    decide: Arc<Mutex<Arc<Decide>>>,
    is_down: Arc<AtomicBool>,
}

impl Backend {
    /// Starts one that answers as `decide` returns.
    pub fn start(decide: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = Self {
            addr: listener.local_addr().unwrap(),
            asked: Arc::default(),
            decide: Arc::new(Mutex::new(Arc::new(Box::new(decide)))),
            is_down: Arc::default(),
        };
        let (asked, decide, is_down) =
            (backend.asked.clone(), backend.decide.clone(), backend.is_down.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, decide, is_down) = (asked.clone(), decide.clone(), is_down.clone());
                std::thread::spawn(move || serve(stream, &asked, &decide, &is_down));
            }
        });
        backend
    }

    /// From now on it answers so.
    pub fn answers(&self, decide: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
        *self.decide.lock().unwrap() = Arc::new(Box::new(decide));
    }

    /// From now on every connection is closed without an answer, or no longer.
    pub fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    /// Where it is.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Everything that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// What was asked at this path.
    pub fn asked_at(&self, path: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.path == path).collect()
    }
}

fn serve(stream: TcpStream, asked: &Mutex<Vec<Asked>>, decide: &Mutex<Arc<Decide>>, is_down: &AtomicBool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(request) = read(&mut reader) {
        if is_down.load(Ordering::SeqCst) {
            return;
        }
        asked.lock().unwrap().push(request.clone());
        let decide = decide.lock().unwrap().clone();
        let answer = decide(&request);
        std::thread::sleep(answer.wait);
        let head = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n\r\n", answer.status, answer.body.len());
        // In one write: two wait for each other's acknowledgement.
        if stream.write_all(&[head.as_bytes(), &answer.body].concat()).is_err() {
            return;
        }
    }
}

/// The next request, or `None` at the end of the connection.
fn read(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or("0", |(_, value)| value);
    let mut body = vec![0; length.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { path, headers, body })
}
