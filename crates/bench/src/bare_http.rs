//! An HTTP server that only answers, to compare the push API with: the same stack with the same
//! settings, which reads the body of a request and accepts it. It is a separate process, so that it
//! is measured like a server.

use std::convert::Infallible;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use crate::error::BenchError;
use crate::machine::bound_to_cpus;

/// The server as a child process. Dropping it ends the process.
pub(crate) struct BareHttp {
    child: Child,
    _input: ChildStdin,
    /// `http://host:port`.
    pub(crate) url: String,
}

impl BareHttp {
    /// Starts the process.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(processors: &[usize]) -> Result<Self, BenchError> {
        let mut command = crate::fleet::own_command("bare-http")?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = bound_to_cpus(processors, || command.spawn())?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(BenchError::Failed("no pipes to the bare HTTP server".into()));
        };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        Ok(Self { child, _input: input, url: format!("http://{}", line.trim()) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BareHttp {
    fn drop(&mut self) {
        crate::spawn::stop(&mut self.child);
    }
}

/// Serves until the parent ends.
///
/// # Errors
/// When a listener or a runtime cannot be created.
pub(crate) fn run() -> Result<(), BenchError> {
    let failed = |error: io::Error| BenchError::failed("no HTTP server", error);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    writeln!(io::stdout().lock(), "{addr}")?;
    io::stdout().lock().flush()?;
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    // Standard input is closed when the parent ends.
    io::stdin().lock().lines().for_each(drop);
    Ok(())
}

async fn serve(stream: tokio::net::TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut http1 = http1::Builder::new();
    http1.half_close(true).title_case_headers(true);
    // The client reports a broken connection.
    let _ = http1.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    // An incomplete body gets the same response.
    let _ = request.into_body().collect().await;
    let body = Full::new(Bytes::from_static(br#"{"code":0,"message":""}"#));
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    Ok(response)
}
