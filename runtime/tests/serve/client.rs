//! A running server, and requests to it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture;

const LONG: Duration = Duration::from_secs(60);

/// A running server. Dropping it ends it.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    stderr: Arc<(Mutex<String>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server with the model of the fixture, and waits until it is ready.
    pub(crate) fn start(folder: &TempDir, arguments: &[&str]) -> Self {
        Self::start_with(fixture::runtime(folder, "serve"), arguments)
    }

    /// As `start`, with a model that takes a few milliseconds per image, called `tiny`.
    pub(crate) fn start_tiny(folder: &TempDir, arguments: &[&str]) -> Self {
        std::fs::write(folder.path().join("tiny.onnx"), fixture::tiny_model()).unwrap();
        let mut command = fixture::program(folder);
        command.args(["serve", "--model", "tiny.onnx"]);
        Self::start_with(command, arguments)
    }

    pub(crate) fn start_with(command: Command, arguments: &[&str]) -> Self {
        let server = Self::spawn(command, arguments);
        server.wait_until_ready();
        server
    }

    /// Starts a server, and waits until it listens.
    pub(crate) fn spawn(mut command: Command, arguments: &[&str]) -> Self {
        let command = command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (lines, shared) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&stderr));
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *shared.0.lock().unwrap() += &(line + "\n");
                shared.1.notify_all();
            }
        });
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into(), stderr, reader: Some(reader) };
        server.wait_for("listening on http://");
        let text = server.stderr();
        let address = text.split("listening on http://").nth(1).and_then(|rest| rest.lines().next());
        server.address = address.unwrap().trim().parse().unwrap();
        server
    }

    /// What the server has written to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.0.lock().unwrap().clone()
    }

    /// Waits until the server has written this to stderr.
    pub(crate) fn wait_for(&self, text: &str) {
        let found =
            self.stderr.1.wait_timeout_while(self.stderr.0.lock().unwrap(), LONG, |found| !found.contains(text));
        let (found, result) = found.unwrap();
        assert!(!result.timed_out(), "`{text}` is not in: {found}");
    }

    pub(crate) fn wait_until_ready(&self) {
        until(|| self.get("/v2/health/ready").status == 200);
    }

    pub(crate) fn kill(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap().success());
    }

    /// Waits for the end, and returns the exit code and what was written to stderr.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        self.reader.take().unwrap().join().unwrap();
        (code, self.stderr())
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// Sends a request. The response is to be read from the stream.
    pub(crate) fn send(&self, request: &str, headers: &[&str], body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        write!(stream, "{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n").unwrap();
        // A server that refuses the request may have closed the connection.
        let _ = stream.write_all(body);
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        Response::read(self.send(&format!("GET {path}"), &[], b""))
    }

    pub(crate) fn post(&self, path: &str, headers: &[&str], body: &[u8]) -> Response {
        Response::read(self.begin_post(path, headers, body))
    }

    /// Sends a request whose response is to be read from the stream.
    pub(crate) fn begin_post(&self, path: &str, headers: &[&str], body: &[u8]) -> TcpStream {
        let length = format!("Content-Length: {}", body.len());
        self.send(&format!("POST {path}"), &[&[length.as_str()], headers].concat(), body)
    }

    /// Starts to send an image, of which only the first `sent` bytes are sent.
    pub(crate) fn begin_upload(&self, image: &[u8], sent: usize) -> TcpStream {
        self.send("POST /detect", &[&format!("Content-Length: {}", image.len())], &image[..sent])
    }

    pub(crate) fn detect(&self, image: &[u8]) -> Response {
        self.post("/detect", &[], image)
    }

    /// Sends images as a binary tensor, and asks for all outputs in JSON.
    pub(crate) fn infer(&self, path: &str, images: &[&[u8]], parameters: Value) -> Response {
        let data = tensor(images);
        let input = json!({
            "name": "image", "shape": [images.len(), 1], "datatype": "BYTES", "parameters": {"binary_data_size": data.len()}
        });
        let header = json!({"id": "7", "inputs": [input], "parameters": parameters}).to_string();
        let length = format!("Inference-Header-Content-Length: {}", header.len());
        self.post(path, &[&length], &[header.as_bytes(), &data].concat())
    }

    /// The value of a metric.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
    }
}

impl Drop for Server {
    /// Also after a failed test, no server remains.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A binary BYTES tensor.
pub(crate) fn tensor(elements: &[&[u8]]) -> Vec<u8> {
    elements.iter().flat_map(|bytes| [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), *bytes].concat()).collect()
}

/// Waits until the condition holds.
pub(crate) fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "it takes too long");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) struct Response {
    pub(crate) status: u16,
    /// With names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// Reads a response up to the end of the connection.
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no response: {read:?} {:?}", String::from_utf8_lossy(&bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        Self {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
            body: bytes[end + 4..].to_vec(),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Expects an error with this status, whose message contains `part`.
    pub(crate) fn expect_error(&self, status: u16, part: &str) {
        let text = self.text();
        assert!(self.status == status && text.contains(part), "{} {text}, expected {status} {part}", self.status);
        assert!(self.json()["error"].is_string(), "{text}");
    }
}

pub(crate) fn image(folder: &TempDir, name: &str) -> Vec<u8> {
    std::fs::read(folder.path().join(name)).unwrap()
}

/// What `runtime detect --json` says about these images, without their names.
pub(crate) fn expected(folder: &TempDir, names: &[&str]) -> Vec<Value> {
    let (_, text, _) = fixture::run(fixture::detect(folder).args(["--json", "-"]).args(names));
    let mut expected: Vec<Value> = serde_json::from_str(&text).unwrap();
    for image in &mut expected {
        image.as_object_mut().unwrap().remove("file");
    }
    expected
}
